"""From a config to the trainer of stage two, and to the network of a trained prior."""

import dataclasses
import logging
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from regvq_jax.conditioning.condition import INPUTS, KINDS, Condition, host_transforms
from regvq_jax.conditioning.frozen_text import load_frozen_text
from regvq_jax.data.captions import count_cut_captions
from regvq_jax.data.every_caption import EveryCaption
from regvq_jax.data.sources import Picked, Source, shuffled
from regvq_jax.data.tokens import TokenSource, check_meta
from regvq_jax.data.transforms import Transform, encode_text
from regvq_jax.errors import UserError
from regvq_jax.evaluate.features import ImageSet
from regvq_jax.evaluate.samples import SampleSettings, draw_tokens
from regvq_jax.models.attention import IMPLEMENTATIONS
from regvq_jax.models.blocks import REMAT
from regvq_jax.models.prior import PriorNet
from regvq_jax.models.tokenizer import ImageTokenizer
from regvq_jax.models.transformer import POSITIONS
from regvq_jax.optim import OptimSettings, make_optimizer
from regvq_jax.settings import DataSettings, TrainSettings, choose, from_config
from regvq_jax.token_stage import TokenSettings, best_codes
from regvq_jax.trainers import build, build_data
from regvq_jax.trainers.build_condition import PriorFacts, TextSettings, gather_facts, make_condition
from regvq_jax.trainers.build_sampling import check_sampling, make_prior, make_prompts, sample_settings
from regvq_jax.trainers.prior import PriorTrainer, TokenPrior, batch_inputs, init_params

PyTree = Any
log = logging.getLogger("regvq_jax")


def check_prior_config(config: ConfigDict) -> None:
    """Finds what is wrong in a config's groups of stage two before stage one is trained.

    Raises:
        UserError: names the field.
    """
    prior = make_prior(config)
    settings = sample_settings(config)
    check_sampling(settings, prior, config.quantizer.codebook_size if not config.tokenizer else 2**31)
    choose(dict.fromkeys(("auto", *KINDS)), config.prior.condition, "prior.condition")
    if not 0 <= config.prior.condition_drop < 1:
        raise UserError(
            f"config.prior.condition_drop={config.prior.condition_drop} must be from 0 to below 1."
        )
    text = from_config(TextSettings, config.prior.text, "prior.text")
    if text.encoder != "learned" and config.prior.condition in ("auto", "text"):
        load_frozen_text(text.encoder, text.weights, text.length)
    train = from_config(TrainSettings, config.prior.train, "prior.train")
    make_optimizer(from_config(OptimSettings, config.prior.optim, "prior.optim"), train.total_steps)
    from_config(TokenSettings, config.tokens, "tokens")
    if config.prior.condition == "map_tokens":
        build.make_map_tokenizer(config, 2)


def make_prior_net(
    config: ConfigDict, prior: TokenPrior, tokenizer: ImageTokenizer, condition: Condition
) -> PriorNet:
    """The prior network of `config.prior.model`, on the grid of the tokenizer.

    Raises:
        UserError: an unknown field or choice, or widths that do not go together.
    """
    fields = dict(config.prior.model)
    choose(dict.fromkeys(POSITIONS), fields.get("positions", "learned"), "prior.model.positions")
    choose(REMAT, fields.get("remat", "none"), "prior.model.remat")
    choose(dict.fromkeys(IMPLEMENTATIONS), fields.get("attention", "auto"), "prior.model.attention")
    by = fields.get("condition_by", "prefix")
    choose(dict.fromkeys(("prefix", "cross")), by, "prior.model.condition_by")
    if condition.kind == "map":
        fields["condition_by"] = "prefix"  # It is added: there is nothing to attend to.
    multiple = 4 if fields.get("positions") == "rotary" else 1
    if fields["dim"] % (fields["num_heads"] * multiple):
        raise UserError(
            f"config.prior.model.dim={fields['dim']} is not a multiple of num_heads={fields['num_heads']}"
            + (" x 4, which rotary positions need." if multiple == 4 else ".")
        )
    derived = {
        "codebook_size": tokenizer.quantizer.codebook_size,
        "grid": build.token_grid(config, tokenizer),
        "conditioner": condition.conditioner,
        "causal": prior.causal,
        "timed": prior.timed,
    }
    return build.make_module(PriorNet, fields | derived, "prior.model")


def make_prior_trainer(
    config: ConfigDict,
    workdir: Path,
    tokenizer: ImageTokenizer,
    tokenizer_params: PyTree,
    map_tokenizer: tuple[ImageTokenizer, PyTree] | None = None,
) -> tuple[PriorTrainer, PriorFacts]:
    """Stage two as `config.prior` describes it, and what `load_prior` has to know of it.

    Args:
        config: of the run.
        workdir: of the run; holds the token caches, unless `config.prior.from_images`.
        tokenizer, tokenizer_params: the frozen tokenizer.
        map_tokenizer: (network, parameters) of the frozen map tokenizer, for `condition="map_tokens"`.

    Raises:
        UserError: the config is wrong, or a token cache is missing or made from something else.
    """
    prior = make_prior(config)
    train = from_config(TrainSettings, config.prior.train, "prior.train")
    optim = from_config(OptimSettings, config.prior.optim, "prior.optim")
    source, heldout = (open_source(config, workdir, split) for split in ("train", "heldout"))
    facts = gather_facts(config, (source, heldout), tokenizer_params, map_tokenizer)
    map_model, map_params = map_tokenizer or (None, None)
    condition, text = make_condition(config, facts, tokenizer, map_model)
    frozen = {"tokenizer": tokenizer_params}
    if facts.condition == "map_tokens":
        frozen["map_tokenizer"] = map_params
    if text is not None:
        frozen["text"] = text.params
        facts = dataclasses.replace(facts, text_digest=text.digest)
    model = make_prior_net(config, prior, tokenizer, condition)
    if not config.prior.from_images:
        for cache in (source, heldout):
            check_cache(cache, facts, model)
    settings = sample_settings(config)
    check_sampling(settings, prior, model.codebook_size)
    if condition.kind == "text":
        warn_of_cut_captions(source, condition)

    transforms = prior_transforms(config, condition)
    encode_images_fn = partial(best_codes, tokenizer)
    inputs_fn = partial(batch_inputs, condition, encode_images_fn)
    return PriorTrainer(
        prior=prior,
        model=model,
        condition=condition,
        condition_drop=config.prior.condition_drop,
        optimizer=make_optimizer(optim, train.total_steps),
        frozen=frozen,
        seed=config.seed,
        train=train,
        data=from_config(DataSettings, config.data, "data"),
        make_batches=build_data.training_batches(source, transforms(True), config, train.batch_size),
        num_examples=len(source),
        encode_images_fn=encode_images_fn,
        evaluators=build.make_evaluators(
            config.prior.evals,
            "prior.evals",
            bound_fn=partial(bound, prior, model),
            inputs_fn=inputs_fn,
            batches=build_data.heldout_batches(shuffled(heldout), transforms(False), train.batch_size),
            pair_batches=partial(pair_batches, heldout, transforms(False), train.batch_size)
            if condition.kind == "text"
            else None,
            prompts=make_prompts(config, settings, condition, heldout),
            seed=config.seed,
            directory=workdir / "prior" / "drawn",
            **drawing(config, prior, model, condition, facts, tokenizer, settings, heldout, train.batch_size),
        ),
    ), facts


def pair_batches(heldout: Source | TokenSource, transforms: list[Transform], batch_size: int):
    """One pass of this process over all pairs of a held-out image and one of its captions."""
    return build_data.heldout_batches(shuffled(EveryCaption(heldout)), transforms, batch_size)()


def drawing(
    config: ConfigDict,
    prior: TokenPrior,
    model: PriorNet,
    condition: Condition,
    facts: PriorFacts,
    tokenizer: ImageTokenizer,
    settings: SampleSettings,
    heldout: Source | TokenSource,
    batch_size: int,
) -> dict[str, Any]:
    """What evaluators that draw need to know, by the names of their fields."""
    return {
        "draw_fn": partial(draw_tokens, prior, model, condition, settings),
        "tokenizer": tokenizer,
        "condition_batches": partial(condition_batches, config, condition, heldout, batch_size),
        "num_conditions": len(heldout),
        "reference_images": partial(reference_images, config, batch_size),
        "sampler": describe_sampler(prior, settings, facts),
        "label_classes": condition.size if condition.kind in ("map", "map_tokens") else 0,
    }


def condition_batches(
    config: ConfigDict, condition: Condition, heldout: Source | TokenSource, batch_size: int, count: int
):
    """One pass of this process over `count` held-out conditions, gone through again where there are fewer."""
    # Of more captions than images each is another one; images would have to be decoded to count them.
    several = condition.kind == "text" and count > len(heldout) and isinstance(heldout, TokenSource)
    source = shuffled(EveryCaption(heldout) if several else heldout)
    picked = Picked(source, np.arange(count) % len(source))
    names = ("labels",) if condition.kind in ("map", "map_tokens") else ()
    return build_data.heldout_batches(picked, prior_transforms(config, condition, names)(False), batch_size)()


def reference_images(config: ConfigDict, batch_size: int, split: str, limit: int) -> ImageSet:
    """`build_data.image_set` with its arguments in the order that `evaluate.generation` asks in."""
    return build_data.image_set(config, split, batch_size, limit)


def describe_sampler(prior: TokenPrior, settings: SampleSettings, facts: PriorFacts) -> dict[str, Any]:
    """All that decides how tokens are drawn, besides the parameters, as JSON."""
    sampling = dataclasses.asdict(settings)
    del sampling["captions"]  # Of the sample sheet.
    return {
        "prior": type(prior).__name__,
        "prior_settings": dataclasses.asdict(prior),
        "sampling": sampling,
        "condition": facts.condition,
        "tokenizer": facts.tokenizer_hash,
    }


def open_source(config: ConfigDict, workdir: Path, split: str) -> Source | TokenSource:
    """A split's token cache, or its images where `config.prior.from_images`."""
    if config.prior.from_images:
        return build_data.open_source(config, split)
    return TokenSource(workdir / "tokens" / split)


def check_cache(cache: TokenSource, facts: PriorFacts, model: PriorNet) -> None:
    """Raises UserError unless a token cache comes from the networks that the prior goes with."""
    expected = {
        "tokenizer_hash": facts.tokenizer_hash,
        "codebook_size": model.codebook_size,
        "grid": model.grid,
    }
    if facts.condition == "map_tokens":
        expected |= {"map_tokenizer_hash": facts.map_tokenizer_hash, "map_grid": tuple(facts.map_grid)}
    check_meta(cache.meta, directory=cache.name.removeprefix("tokens:"), **expected)


def prior_transforms(config: ConfigDict, condition: Condition, names: tuple[str, ...] | None = None):
    """A function of `training` that gives the transforms of a batch's elements.

    Args:
        config: of the run.
        condition: what the network is told.
        names: entries of a batch besides "condition"; by default what the prior learns.
    """
    from_images = config.prior.from_images
    if names is None:
        names = ("image",) if from_images else ("tokens",)

    def transforms(training: bool) -> list[Transform]:
        crops = build_data.crop_transforms(config, training) if from_images else []
        name = INPUTS[condition.kind]
        if from_images and condition.kind == "map_tokens":
            name = "labels"  # Encoded in the step, as the image is.
        return [*crops, *host_transforms(condition, names, name, encode_text)]

    return transforms


def bound(
    prior: TokenPrior,
    model: PriorNet,
    params: PyTree,
    tokens: jax.Array,
    condition: Any,
    key: jax.Array,
    draws: int,
) -> jax.Array:
    """`TokenPrior.bound` of a network, float32 [B] in nats; `condition` as the conditioner takes it."""
    apply = partial(model.apply, {"params": params})
    encoded = apply(condition, method="encode_condition")

    def network_fn(tokens, time=None):
        return apply(tokens, encoded, time if model.timed else None, method="predict")

    return prior.bound(network_fn, tokens, key, model.special_id, draws)


def init_shapes(model: PriorNet, condition: Condition, frozen: PyTree) -> PyTree:
    """The parameters' shapes of a prior network."""
    return jax.eval_shape(partial(init_params, model, condition), jax.random.key(0), frozen)


def warn_of_cut_captions(source: Source | TokenSource, condition: Condition) -> None:
    """Logs how many captions are longer than the context, if any are."""
    # Images are decoded for their captions: fewer of them.
    limit = 2000 if isinstance(source, TokenSource) else 200
    cut, looked_at = count_cut_captions(source, condition.lengths_fn, condition.length, limit)
    if cut:
        log.warning(
            "%d of %d captions have more than prior.text.length=%d ids and are cut.",
            cut,
            looked_at,
            condition.length,
        )
