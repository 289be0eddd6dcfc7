"""From a config to the trainer of stage two, and to the network of a trained prior."""

import dataclasses
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from regvq_jax.conditioning.condition import INPUTS, KINDS, Condition, host_transforms
from regvq_jax.conditioning.frozen_text import load_frozen_text
from regvq_jax.conditioning.text import make_tokenizer
from regvq_jax.data.captions import count_cut_captions
from regvq_jax.data.labels import label_colours
from regvq_jax.data.sources import Shuffled, Source
from regvq_jax.data.tokens import TokenSource, check_meta
from regvq_jax.data.transforms import Transform, encode_text, resize_and_crop
from regvq_jax.errors import UserError
from regvq_jax.evaluate.samples import Prompts, SampleSettings, draw_tokens
from regvq_jax.models import conditioners
from regvq_jax.models.attention import IMPLEMENTATIONS
from regvq_jax.models.layers import DTYPES
from regvq_jax.models.prior import PriorNet
from regvq_jax.models.tokenizer import ImageTokenizer, encode_maps
from regvq_jax.models.transformer import POSITIONS, REMAT
from regvq_jax.optim import OptimSettings, make_optimizer
from regvq_jax.settings import DataSettings, TrainSettings, choose, from_config
from regvq_jax.token_stage import TokenSettings, best_codes
from regvq_jax.trainers import build
from regvq_jax.trainers.prior import PriorTrainer, TokenPrior, batch_inputs, init_params
from regvq_jax.trainers.priors import PRIORS
from regvq_jax.workdir import PRIOR_GROUPS, check_groups

PyTree = Any
log = logging.getLogger("regvq_jax")
NUM_SHOWN = 16


@dataclasses.dataclass(frozen=True)
class PriorFacts:
    """What a prior's network owes to its data and to other networks; `prior/facts.json`.

    Attributes:
        condition: its kind, one of `conditioning.condition.KINDS`.
        tokenizer_hash: of the tokenizer whose tokens it learns.
        num_classes: of "class", else 0.
        num_label_classes: of "map" and "map_tokens", else 0.
        map_tokenizer_hash, map_codebook_size, map_grid: of "map_tokens", else "", 0 and ().
        text_digest: of a frozen text encoder, else "".
    """

    condition: str
    tokenizer_hash: str
    num_classes: int = 0
    num_label_classes: int = 0
    map_tokenizer_hash: str = ""
    map_codebook_size: int = 0
    map_grid: tuple[int, ...] = ()
    text_digest: str = ""


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """A config's `prior.text` group: how captions are read.

    Attributes:
        encoder: "learned", a small transformer that learns with the prior; "clip" or "minilm", frozen.
        weights: of a frozen encoder; see `conditioning.frozen_text.load_frozen_text`.
        length: L, the most text ids of a caption; longer ones are cut.
        depth, embed_dim: of the learned encoder.
    """

    encoder: str = "learned"
    weights: str = ""
    length: int = 77
    depth: int = 2
    embed_dim: int = 64

    def __post_init__(self):
        choose(dict.fromkeys(("learned", "clip", "minilm")), self.encoder, "prior.text.encoder")
        if self.length < 2:
            raise UserError(f"config.prior.text.length={self.length} must be at least 2: start and end.")


def make_prior(config: ConfigDict) -> TokenPrior:
    """The prior that `config.prior.name` chooses, with the settings of the group of that name.

    Raises:
        UserError: the config is of another version, or the prior or a setting is unknown.
    """
    check_groups(config, "The config", PRIOR_GROUPS)
    name = config.prior.name
    cls = choose(PRIORS, name, "prior.name")
    return from_config(cls, config.prior.get(name, {}), f"prior.{name}")


def sample_settings(config: ConfigDict, **changes: Any) -> SampleSettings:
    """How to draw: the config's `sample` group, some of it changed, checked against the prior.

    Raises:
        UserError: an unknown field, a value out of range, or guidance for a prior without a null condition.
    """
    cls = choose(PRIORS, config.prior.name, "prior.name").sampling
    known = {field.name: field.default for field in dataclasses.fields(cls)}
    foreign = sorted(config.sample.keys() - known.keys())
    if foreign:
        raise UserError(
            f'config.sample.{foreign[0]} is no setting of prior.name="{config.prior.name}", which has '
            f"{', '.join(known)}: prior and sample group go together, choose both in a config file "
            "(configs/emoji.py:text-ar, text-masked, text-diffusion)."
        )
    values = dict(config.sample) | changes
    for name in values.keys() & known.keys():
        values[name] = _like(known[name], values[name], name)
    settings = from_config(cls, values, "sample")
    if settings.guidance != 1 and config.prior.condition != "none" and not config.prior.condition_drop:
        raise UserError(
            f"config.sample.guidance={settings.guidance} needs a prior that was trained without its "
            "condition at times: set config.prior.condition_drop, such as 0.1, and train it, or guidance=1."
        )
    return settings


def _like(default: Any, value: Any, name: str) -> Any:
    """A value in the type of its default: numpy's and jax's numbers, too, become Python's."""
    if isinstance(default, str | tuple):
        return tuple(value) if isinstance(value, list) else value
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}={value!r} must be a number.") from error
    if isinstance(default, int) and number != int(number):
        raise UserError(f"{name}={value!r} must be a whole number.")
    return type(default)(number)


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


def check_sampling(settings: SampleSettings, prior: TokenPrior, num_codes: int) -> None:
    """Raises UserError where the settings do not go with the prior, or ask for more codes than there are."""
    top_k = getattr(settings, "top_k", 0)
    if top_k > num_codes:
        raise UserError(
            f"config.sample.top_k={top_k} is more than the {num_codes} codes there are; 0 keeps all."
        )
    prior.check_sampling(settings)


def gather_facts(
    config: ConfigDict,
    sources: Sequence[Source],
    tokenizer_params: PyTree,
    map_tokenizer: tuple[ImageTokenizer, PyTree] | None,
) -> PriorFacts:
    """What the sources and the frozen networks say of the prior to be trained.

    Args:
        config: of the run.
        sources: training and held-out images or tokens.
        tokenizer_params: of the frozen tokenizer.
        map_tokenizer: (network, parameters) of the map tokenizer, None where there is none.

    Raises:
        UserError: a source does not have what `config.prior.condition` wants.
    """
    kind = config.prior.condition
    if kind == "auto":
        kind = "text" if sources[0].has_text else "none"
    choose(dict.fromkeys(("auto", *KINDS)), kind, "prior.condition")
    for split, source in zip(("training", "held-out"), sources, strict=True):
        has = {
            "text": source.has_text,
            "class": source.num_classes > 0,
            "map": source.num_label_classes > 0,
            "map_tokens": source.num_label_classes > 0 and map_tokenizer is not None,
        }
        if not has.get(kind, True):
            there = [name for name, present in has.items() if present]
            raise UserError(
                f'config.prior.condition="{kind}" needs what the {split} data {source.name} do not have; '
                f"they have {', '.join(there) or 'images only'}: choose one of "
                f'"auto", "none"{"".join(f", {name!r}" for name in there)}, or other data.'
            )
    source = sources[0]
    facts = PriorFacts(condition=kind, tokenizer_hash=build.hash_params(tokenizer_params))
    if kind == "class":
        return dataclasses.replace(facts, num_classes=source.num_classes)
    if kind in ("map", "map_tokens"):
        facts = dataclasses.replace(facts, num_label_classes=source.num_label_classes)
    if kind == "map_tokens":
        model, params = map_tokenizer
        facts = dataclasses.replace(
            facts,
            map_tokenizer_hash=build.hash_params(params),
            map_codebook_size=model.quantizer.codebook_size,
            map_grid=build.token_grid(config, model),
        )
    return facts


def make_condition(
    config: ConfigDict, facts: PriorFacts, tokenizer: ImageTokenizer, map_tokenizer: ImageTokenizer | None
) -> tuple[Condition, PyTree]:
    """The condition of a prior, and the parameters of its frozen text encoder, or None.

    Args:
        config: of the run.
        facts: of the prior.
        tokenizer: of the images.
        map_tokenizer: of the label maps, for "map_tokens".

    Raises:
        UserError: text settings that do not fit, or other weights than the prior was trained with.
    """
    kind, model = facts.condition, config.prior.model
    shared = {"dim": model.dim, "dtype": choose(DTYPES, model.dtype, "prior.model.dtype")}
    if kind == "none":
        return Condition(), None
    if kind == "class":
        conditioner = conditioners.ClassConditioner(facts.num_classes, **shared)
        return Condition(kind, conditioner, size=facts.num_classes), None
    if kind == "map":
        side = (config.data.image_size,) * 2
        grid = (side[0] // tokenizer.downsampling,) * 2
        depth = tokenizer.quantizer.depth
        conditioner = conditioners.MapConditioner(facts.num_label_classes, grid, depth=depth, **shared)
        return Condition(kind, conditioner, size=facts.num_label_classes, map_shape=side), None
    if kind == "map_tokens":
        conditioner = conditioners.MapTokenConditioner(
            facts.map_codebook_size, tuple(facts.map_grid), **shared
        )
        return Condition(
            kind,
            conditioner,
            size=facts.num_label_classes,
            map_shape=(int(np.prod(facts.map_grid)),),
            encode_maps_fn=partial(encode_maps, map_tokenizer),
        ), None
    text = from_config(TextSettings, config.prior.text, "prior.text")
    if text.encoder == "learned":
        conditioner = conditioners.TextConditioner(
            length=text.length,
            depth=text.depth,
            num_heads=model.num_heads,
            embed_dim=text.embed_dim,
            dropout=model.dropout,
            **shared,
        )
        tokenizer = make_tokenizer()
        return Condition(
            kind,
            conditioner,
            length=text.length,
            encode_fn=tokenizer.encode,
            lengths_fn=tokenizer.lengths,
        ), None
    frozen = load_frozen_text(text.encoder, text.weights, text.length, shared["dtype"])
    if facts.text_digest and frozen.digest != facts.text_digest:
        raise UserError(
            f"config.prior.text.weights={text.weights} are not those that this prior was trained with "
            f"(digest {frozen.digest} instead of {facts.text_digest}): give it the same file."
        )
    return Condition(
        kind,
        conditioners.FeatureConditioner(**shared),
        length=text.length,
        encode_fn=frozen.encode_fn,
        lengths_fn=frozen.tokenizer.lengths,
        frozen_module=frozen.module,
    ), frozen


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
        make_batches=build.training_batches(source, transforms(True), config, train.batch_size),
        encode_images_fn=encode_images_fn,
        evaluators=build.make_evaluators(
            config.prior.evals,
            "prior.evals",
            bound_fn=partial(bound, prior, model),
            inputs_fn=inputs_fn,
            batches=build.heldout_batches(Shuffled(heldout), transforms(False), train.batch_size),
            draw_fn=partial(draw_tokens, prior, model, condition, settings),
            tokenizer=tokenizer,
            prompts=make_prompts(config, settings, condition, heldout),
            seed=config.seed,
        ),
    ), facts


def open_source(config: ConfigDict, workdir: Path, split: str) -> Source | TokenSource:
    """A split's token cache, or its images where `config.prior.from_images`."""
    if config.prior.from_images:
        return build.open_source(config, split)
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


def prior_transforms(config: ConfigDict, condition: Condition):
    """A function of `training` that gives the transforms of a batch's elements."""
    from_images = config.prior.from_images

    def transforms(training: bool) -> list[Transform]:
        crops = build.crop_transforms(config, training) if from_images else []
        names = ("image",) if from_images else ("tokens",)
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


def make_prompts(
    config: ConfigDict, settings: SampleSettings, condition: Condition, heldout: Source | TokenSource
) -> Prompts:
    """What the sample sheet shows: the config's captions, or the first held-out conditions."""
    elements = [heldout[i] for i in range(min(NUM_SHOWN, len(heldout)))]
    if config.prior.from_images:
        elements = [resize_and_crop(element, size=config.data.image_size) for element in elements]
    nothing = ("",) * len(elements)
    if condition.kind == "none":
        return Prompts(None, nothing)
    if condition.kind == "text":
        captions = tuple(settings.captions) or tuple(element["text"] for element in elements)
        return Prompts(condition.inputs(text=captions), captions)
    if condition.kind == "class":
        classes = [int(element["class"]) for element in elements]
        names = heldout.class_names or tuple(f"class {c}" for c in range(condition.size))
        return Prompts(condition.inputs(classes=classes), tuple(names[c] for c in classes))
    labels = np.stack([element["labels"] for element in elements])
    maps = label_colours(condition.size)[labels]
    if "map_tokens" in elements[0]:
        return Prompts(np.stack([element["map_tokens"] for element in elements]), nothing, maps)
    return Prompts(condition.inputs(labels=labels), nothing, maps)


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
