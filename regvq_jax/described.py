"""Trainings that are only described: a trainer without data, and the shapes of all that its step takes."""

import dataclasses
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from regvq_jax import loop
from regvq_jax.conditioning.condition import Condition
from regvq_jax.errors import UserError
from regvq_jax.models.bert import BertEncoder
from regvq_jax.models.clip_text import CLIPTextEncoder
from regvq_jax.models.conditioners import FeatureConditioner
from regvq_jax.models.discriminator import PatchDiscriminator
from regvq_jax.models.features import RandomFeatures
from regvq_jax.models.imagenet import LAYERS, ImageNetFeatures
from regvq_jax.models.layers import DTYPES
from regvq_jax.models.tokenizer import ImageTokenizer
from regvq_jax.optim import OptimSettings, make_optimizer
from regvq_jax.settings import DataSettings, TrainSettings, choose, from_config
from regvq_jax.token_stage import best_codes
from regvq_jax.trained import load_tokenizer
from regvq_jax.trainers import build, build_condition, build_prior, build_sampling
from regvq_jax.trainers.build_condition import PriorFacts, TextSettings
from regvq_jax.trainers.map_tokenizer import MapLossSettings, MapTokenizerTrainer
from regvq_jax.trainers.prior import PriorTrainer
from regvq_jax.trainers.tokenizer import TokenizerTrainer
from regvq_jax.trainers.tokenizer_settings import (
    FeatureSettings,
    LossSettings,
    QuantizerSettings,
    check_terms,
)

PyTree = Any
log = logging.getLogger("regvq_jax")
# Of data that are not opened and do not say: ImageNet's classes, and all ids that a map can hold.
ASSUMED_CLASSES, ASSUMED_LABEL_CLASSES = 1000, 256


@dataclasses.dataclass(frozen=True)
class Described:
    """A training to be compiled.

    Attributes:
        trainer: whose `train_step` and `train` can be used; it has no data.
        state, frozen: pytrees of ShapeDtypeStruct.
        example: a batch of one row.
    """

    trainer: loop.Trainer
    state: PyTree
    frozen: PyTree
    example: dict[str, jax.ShapeDtypeStruct]

    def batch(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of a batch."""
        resize = lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype)
        return {name: resize(x) for name, x in self.example.items()}

    def with_batch_size(self, batch_size: int, **changes: Any) -> "Described":
        """The same training with another batch; `changes` are of its `TrainSettings`."""
        train = dataclasses.replace(self.trainer.train, batch_size=batch_size, **changes)
        return dataclasses.replace(self, trainer=dataclasses.replace(self.trainer, train=train))

    def unrolled(self) -> "Described":
        """The same training without a loop over layers or slices, in which every product is written out."""
        whole = self.with_batch_size(self.trainer.train.batch_size, accumulation_slices=1)
        if not hasattr(self.trainer.model, "scan_layers"):
            return whole
        # A CPU of its own would loop over heads as well.
        model = self.trainer.model.clone(scan_layers=False, attention="xla")
        trainer = dataclasses.replace(whole.trainer, model=model)
        return dataclasses.replace(whole, trainer=trainer, state=_state_shapes(trainer, self.frozen))


def describe(config: ConfigDict, stage: str) -> Described:
    """The training of a stage.

    Args:
        config: of the run. Nothing that it names is opened but `config.tokenizer`.
        stage: a name in `STAGES`.

    Raises:
        UserError: the config is wrong.
    """
    return STAGES[stage](config)


def _describe_tokenizer(config: ConfigDict) -> Described:
    train = from_config(TrainSettings, config.train, "train")
    loss = from_config(LossSettings, config.loss, "loss")
    optim = from_config(OptimSettings, config.optim, "optim")
    quantizer = build.quantizer_settings(config)
    check_terms(quantizer, loss)
    build.check_whole_batch(quantizer, train, "")
    side = config.data.image_size
    features, lpips, frozen = _feature_networks(config, loss)
    adversarial_steps = max(train.total_steps - loss.adversarial_start_step, optim.warmup_steps + 1)
    trainer = TokenizerTrainer(
        model=build.make_image_tokenizer(config),
        discriminator=build.make_module(PatchDiscriminator, config.discriminator, "discriminator"),
        features=features,
        lpips=lpips,
        frozen=frozen,
        quantizer=quantizer,
        loss=loss,
        optimizers={
            "tokenizer": make_optimizer(optim, train.total_steps),
            "discriminator": make_optimizer(optim, adversarial_steps),
        },
        **_shared(config, train),
    )
    return _described(trainer, frozen, {"image": ((side, side, 3), np.uint8)})


def _describe_map_tokenizer(config: ConfigDict) -> Described:
    group = config.map_tokenizer
    train = from_config(TrainSettings, group.train, "map_tokenizer.train")
    quantizer = from_config(QuantizerSettings, group.quantizer, "map_tokenizer.quantizer")
    loss = from_config(MapLossSettings, group.loss, "map_tokenizer.loss")
    optim = from_config(OptimSettings, group.optim, "map_tokenizer.optim")
    check_terms(quantizer, loss)
    build.check_whole_batch(quantizer, train, "map_tokenizer.")
    trainer = MapTokenizerTrainer(
        model=build.make_map_tokenizer(config, _label_classes(config)),
        quantizer=quantizer,
        loss=loss,
        optimizer=make_optimizer(optim, train.total_steps),
        **_shared(config, train),
    )
    return _described(trainer, {}, {"labels": ((config.data.image_size,) * 2, np.uint8)})


def _describe_prior(config: ConfigDict) -> Described:
    build_prior.check_prior_config(_without_weights(config))
    prior = build_sampling.make_prior(config)
    train = from_config(TrainSettings, config.prior.train, "prior.train")
    optim = from_config(OptimSettings, config.prior.optim, "prior.optim")
    tokenizer, tokenizer_params = _tokenizer(config)
    condition, frozen = _condition(config, tokenizer)
    frozen["tokenizer"] = tokenizer_params
    model = build_prior.make_prior_net(config, prior, tokenizer, condition)
    trainer = PriorTrainer(
        prior=prior,
        model=model,
        condition=condition,
        condition_drop=config.prior.condition_drop,
        optimizer=make_optimizer(optim, train.total_steps),
        frozen=frozen,
        encode_images_fn=partial(best_codes, tokenizer),
        **_shared(config, train),
    )
    side, from_images = config.data.image_size, config.prior.from_images
    batch = {"tokens": ((model.num_tokens,), np.int32)}
    if from_images:
        batch = {"image": ((side, side, 3), np.uint8)}
    if (example := condition.example()) is not None:
        batch["condition"] = (example.shape[1:], example.dtype)
        if from_images and condition.kind == "map_tokens":
            batch["condition"] = ((side, side), np.uint8)  # Encoded in the step, as the image is.
    return _described(trainer, frozen, batch)


STAGES: dict[str, Callable[[ConfigDict], Described]] = {
    "tokenizer": _describe_tokenizer,
    "map_tokenizer": _describe_map_tokenizer,
    "prior": _describe_prior,
}


def _described(trainer, frozen: PyTree, batch: dict[str, tuple[tuple[int, ...], Any]]) -> Described:
    example = {name: jax.ShapeDtypeStruct((1, *shape), dtype) for name, (shape, dtype) in batch.items()}
    return Described(trainer, _state_shapes(trainer, frozen), frozen, example)


def _state_shapes(trainer, frozen: PyTree) -> PyTree:
    """The shapes of a fresh state; frozen networks may take part in making it."""

    def init(key, frozen):
        given = {"frozen": frozen} if hasattr(trainer, "frozen") else {}
        return dataclasses.replace(trainer, **given).init(key)

    return jax.eval_shape(init, jax.random.key(0), frozen)


def _shared(config: ConfigDict, train: TrainSettings) -> dict[str, Any]:
    """What every trainer has."""
    data = from_config(DataSettings, config.data, "data")
    return dict(seed=config.seed, train=train, data=data, make_batches=lambda: None)


def _feature_networks(config: ConfigDict, loss: LossSettings):
    """As `build.make_feature_networks`, with shapes in place of weights."""
    settings = from_config(FeatureSettings, config.features, "features")
    choose(dict.fromkeys(("random", *LAYERS)), settings.name, "features.name")
    dtype = choose(DTYPES, settings.dtype, "features.dtype")
    image = jax.ShapeDtypeStruct((1, config.data.image_size, config.data.image_size, 3), jnp.float32)
    if settings.name == "random":
        features = RandomFeatures(channels=settings.channels, dtype=dtype)
    else:
        features = ImageNetFeatures(settings.name, dtype)
    frozen, lpips = {"features": _params(features, image)}, None
    if loss.lpips_weight:
        network = choose({name: name for name in LAYERS}, loss.lpips_network, "loss.lpips_network")
        lpips = ImageNetFeatures(network, dtype)
        params = _params(lpips, image)
        taps = jax.eval_shape(lpips.apply, {"params": params}, image)
        heads = [jax.ShapeDtypeStruct(tap.shape[-1:], jnp.float32) for tap in taps]
        frozen["lpips"] = {"features": params, "heads": heads}
    return features, lpips, frozen


def _params(module, *inputs) -> PyTree:
    """The shapes of a network's parameters."""
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


def _tokenizer(config: ConfigDict) -> tuple[ImageTokenizer, PyTree]:
    """(network, shapes of its parameters) of the frozen tokenizer."""
    if config.tokenizer:
        model, params = load_tokenizer(config, Path())
        return model, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    model = build.make_image_tokenizer(config)
    side = config.data.image_size
    return model, _params(model, jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32))


def _label_classes(config: ConfigDict) -> int:
    if config.data.num_label_classes:
        return config.data.num_label_classes
    log.warning("the data are not opened: label maps are taken to have %d classes", ASSUMED_LABEL_CLASSES)
    return ASSUMED_LABEL_CLASSES


def _condition(config: ConfigDict, tokenizer: ImageTokenizer) -> tuple[Condition, PyTree]:
    """(the condition, the shapes of the frozen parameters that it needs)."""
    kind = config.prior.condition
    if kind == "auto":
        log.warning('prior.condition="auto": the data are not opened, and taken to have captions')
        kind = "text"
    facts = PriorFacts(condition=kind, tokenizer_hash="")
    if kind == "class":
        log.warning("the data are not opened: they are taken to have %d classes", ASSUMED_CLASSES)
        facts = dataclasses.replace(facts, num_classes=ASSUMED_CLASSES)
    if kind in ("map", "map_tokens"):
        facts = dataclasses.replace(facts, num_label_classes=_label_classes(config))
    frozen, map_tokenizer = {}, None
    if kind == "map_tokens":
        map_tokenizer = build.make_map_tokenizer(config, facts.num_label_classes)
        maps = (1, config.data.image_size, config.data.image_size, facts.num_label_classes)
        frozen["map_tokenizer"] = _params(map_tokenizer, jax.ShapeDtypeStruct(maps, jnp.float32))
        facts = dataclasses.replace(
            facts,
            map_codebook_size=map_tokenizer.quantizer.codebook_size,
            map_grid=build.token_grid(config, map_tokenizer),
        )
    text = from_config(TextSettings, config.prior.text, "prior.text")
    if kind != "text" or text.encoder == "learned":
        return build_condition.make_condition(config, facts, tokenizer, map_tokenizer)[0], frozen
    dtype = choose(DTYPES, config.prior.model.dtype, "prior.model.dtype")
    module = {"clip": CLIPTextEncoder, "minilm": BertEncoder}[text.encoder](dtype=dtype)
    if text.length > module.context:
        raise UserError(
            f"config.prior.text.length={text.length} does not fit {text.encoder}: at most {module.context}."
        )
    conditioner = FeatureConditioner(dim=config.prior.model.dim, dtype=dtype)
    condition = Condition(kind, conditioner, length=text.length, frozen_module=module)
    frozen["text"] = _params(module, condition.example())
    return condition, frozen


def _without_weights(config: ConfigDict) -> ConfigDict:
    """A copy whose text encoder learns: checking it opens no file."""
    copy = config.copy_and_resolve_references()
    with copy.unlocked():
        copy.prior.text.encoder = "learned"
    return copy
