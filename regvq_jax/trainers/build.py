"""From a config to trainers; with `stages`, the only code that reads config fields."""

import dataclasses
import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from regvq_jax.conditioning.text import make_tokenizer
from regvq_jax.data.pipeline import evaluation_batches, make_batches
from regvq_jax.data.sources import Source, make_source
from regvq_jax.data.tokens import TokenSource, check_meta
from regvq_jax.data.transforms import Transform, encode_text, keep, resize_and_crop
from regvq_jax.errors import UserError
from regvq_jax.evaluate import EVALUATORS
from regvq_jax.evaluate.samples import SampleSettings
from regvq_jax.models.discriminator import PatchDiscriminator
from regvq_jax.models.features import RandomFeatures
from regvq_jax.models.prior import PriorNet
from regvq_jax.models.tokenizer import ImageTokenizer
from regvq_jax.optim import OptimSettings, make_optimizer
from regvq_jax.priors.schedules import SCHEDULES
from regvq_jax.settings import DataSettings, TrainSettings, choose, from_config
from regvq_jax.trainers.masked import MaskedSettings, MaskedTrainer
from regvq_jax.trainers.tokenizer import LossSettings, QuantizerSettings, TokenizerTrainer

PyTree = Any
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def make_module(cls: type, group: Mapping[str, Any], field: str):
    """A Linen module from a config group with its fields' names; dtypes are given by name."""
    fields = dict(group)
    if "dtype" in fields:
        fields["dtype"] = choose(DTYPES, fields["dtype"], f"{field}.dtype")
    return from_config(cls, fields, field)


def make_image_tokenizer(config: ConfigDict) -> ImageTokenizer:
    """The tokenizer network of `config.model`.

    Raises:
        UserError: an unknown field, or an image size that the network cannot halve often enough.
    """
    model = make_module(ImageTokenizer, config.model, "model")
    if config.data.image_size % model.downsampling:
        raise UserError(
            f"config.data.image_size={config.data.image_size} is not a multiple of "
            f"{model.downsampling}, by which config.model.multipliers={model.multipliers} shrink it."
        )
    return model


def make_prior_net(config: ConfigDict, has_text: bool) -> PriorNet:
    """The prior network of `config.prior.model`, on the grid of the tokenizer."""
    side = config.data.image_size // make_image_tokenizer(config).downsampling
    derived = {"codebook_size": config.model.codebook_size, "grid": (side, side)}
    if not has_text:
        derived["text_length"] = 0
    return make_module(PriorNet, dict(config.prior.model) | derived, "prior.model")


def open_source(config: ConfigDict, split: str) -> Source:
    """The data source of a config, "train" or "heldout"."""
    data = from_config(DataSettings, config.data, "data")
    return make_source(data.source, split=split, image_size=data.image_size, upscale=data.upscale)


def image_transforms(config: ConfigDict, training: bool) -> list[Transform]:
    """Elements to {"image": uint8 [S, S, 3]}: cropped, at random in training, without caption and labels."""
    data = config.data
    crop = partial(
        resize_and_crop,
        size=data.image_size,
        random=training and data.random_crop,
        flip=training and data.flip,
    )
    return [crop, partial(keep, names=("image",))]


def token_transforms(model: PriorNet) -> list[Transform]:
    """Elements of a token cache to {"tokens": int32 [N]} and, for a conditional model, "text_tokens"."""
    if not model.text_length:
        return [partial(keep, names=("tokens",))]
    return [partial(encode_text, encode_fn=make_tokenizer().encode, length=model.text_length)]


def training_batches(source: Source, transforms: list[Transform], config: ConfigDict, batch_size: int):
    """A function that makes this process's training batches, for `loop.Trainer.make_batches`."""
    return partial(
        make_batches,
        source,
        transforms,
        batch_size=batch_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def heldout_batches(source: Source, transforms: list[Transform], batch_size: int):
    """A function that starts one pass of this process over a held-out source."""
    return partial(
        evaluation_batches,
        source,
        transforms,
        batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def make_evaluators(evals: ConfigDict, field: str, **shared) -> tuple:
    """The evaluators that a config's group names, each given what it knows of `shared`."""
    evaluators = []
    for name, settings in evals.items():
        cls = choose(EVALUATORS, name, field)
        known = {f.name for f in dataclasses.fields(cls)}
        given = {key: value for key, value in shared.items() if key in known}
        evaluators.append(from_config(cls, given | dict(settings), f"{field}.{name}"))
    return tuple(evaluators)


def make_tokenizer_trainer(config: ConfigDict) -> TokenizerTrainer:
    """Stage one as `config` describes it.

    Raises:
        UserError: the config or its data are wrong.
    """
    data = from_config(DataSettings, config.data, "data")
    train = from_config(TrainSettings, config.train, "train")
    loss = from_config(LossSettings, config.loss, "loss")
    optim = from_config(OptimSettings, config.optim, "optim")
    model = make_image_tokenizer(config)
    heldout = open_source(config, "heldout")
    # The discriminator's schedule begins when it does.
    adversarial_steps = max(train.total_steps - loss.adversarial_start_step, optim.warmup_steps + 1)
    return TokenizerTrainer(
        model=model,
        discriminator=make_module(PatchDiscriminator, config.discriminator, "discriminator"),
        features=make_module(RandomFeatures, config.features, "features"),
        quantizer=from_config(QuantizerSettings, config.quantizer, "quantizer"),
        loss=loss,
        optimizers={
            "tokenizer": make_optimizer(optim, train.total_steps),
            "discriminator": make_optimizer(optim, adversarial_steps),
        },
        seed=config.seed,
        train=train,
        data=data,
        make_batches=training_batches(
            open_source(config, "train"), image_transforms(config, True), config, train.batch_size
        ),
        evaluators=make_evaluators(
            config.evals,
            "evals",
            model=model,
            batches=heldout_batches(heldout, image_transforms(config, False), train.batch_size),
        ),
    )


def make_prior_trainer(config: ConfigDict, tokens_directory: Path, tokenizer_params: PyTree) -> MaskedTrainer:
    """Stage two as `config.prior` describes it.

    Args:
        config: of the run.
        tokens_directory: holds the token caches `train` and `heldout`.
        tokenizer_params: of the frozen tokenizer that made them.

    Raises:
        UserError: the config is wrong, or a token cache is missing or made from something else.
    """
    prior = config.prior
    choose(PRIORS, prior.name, "prior.name")
    train = from_config(TrainSettings, prior.train, "prior.train")
    optim = from_config(OptimSettings, prior.optim, "prior.optim")
    settings = from_config(MaskedSettings, prior.masked, "prior.masked")
    tokens, heldout = (TokenSource(tokens_directory / split) for split in ("train", "heldout"))
    model = make_prior_net(config, tokens.has_text)
    for source in (tokens, heldout):
        check_meta(
            source.meta,
            directory=source.name.removeprefix("tokens:"),
            tokenizer_hash=hash_params(tokenizer_params),
            codebook_size=model.codebook_size,
            grid=model.grid,
        )
    transforms = token_transforms(model)
    return MaskedTrainer(
        model=model,
        masked=settings,
        optimizer=make_optimizer(optim, train.total_steps),
        frozen={"tokenizer": tokenizer_params},
        seed=config.seed,
        train=train,
        data=from_config(DataSettings, config.data, "data"),
        make_batches=training_batches(tokens, transforms, config, train.batch_size),
        evaluators=make_evaluators(
            prior.evals,
            "prior.evals",
            model=model,
            tokenizer=make_image_tokenizer(config),
            batches=heldout_batches(heldout, transforms, train.batch_size),
            schedule_fn=choose(SCHEDULES, settings.schedule, "prior.masked.schedule"),
            settings=sample_settings(config, heldout),
            seed=config.seed,
        ),
    )


def sample_settings(config: ConfigDict, heldout: TokenSource) -> SampleSettings:
    """A config's `sample` group; without captions in it, those of the first 16 held-out images."""
    settings = from_config(SampleSettings, config.sample, "sample")
    if settings.captions:
        return settings
    captions = [heldout[i].get("text", "") for i in range(min(16, len(heldout)))]
    return dataclasses.replace(settings, captions=tuple(captions))


PRIORS = {"masked": make_prior_trainer}


def hash_params(params: PyTree) -> str:
    """16 hex digits of the names, shapes and values of a parameter tree."""
    digest = hashlib.sha256()
    for path, value in sorted(
        (jax.tree_util.keystr(path), value) for path, value in jax.tree.leaves_with_path(params)
    ):
        digest.update(f"{path}{value.shape}{value.dtype}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()[:16]
