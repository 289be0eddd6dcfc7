"""From a config to what a prior is told: facts of its data and its condition."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from regvq_jax.conditioning.condition import KINDS, Condition
from regvq_jax.conditioning.frozen_text import load_frozen_text
from regvq_jax.conditioning.text import make_tokenizer
from regvq_jax.data.sources import Source
from regvq_jax.errors import UserError
from regvq_jax.models import conditioners
from regvq_jax.models.layers import DTYPES
from regvq_jax.models.tokenizer import ImageTokenizer, encode_maps
from regvq_jax.settings import choose, from_config
from regvq_jax.trainers import build

PyTree = Any


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
