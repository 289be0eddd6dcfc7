"""Pictures drawn by a prior."""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regvq_jax import rng
from regvq_jax.conditioning.text import make_tokenizer
from regvq_jax.data.ranges import to_uint8
from regvq_jax.evaluate import sheets
from regvq_jax.evaluate.result import Evaluation
from regvq_jax.models.prior import PriorNet
from regvq_jax.models.tokenizer import ImageTokenizer
from regvq_jax.priors import guidance, masked
from regvq_jax.priors.schedules import SCHEDULES
from regvq_jax.settings import choose

PyTree = Any


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """How to draw from a masked prior; a config's `sample` group. See `priors.masked.sample`.

    Attributes:
        captions: what to draw for the sample sheet; () takes the first 16 held-out captions.
        steps: calls of the network.
        temperature, choice_temperature: of codes and of their order.
        guidance: classifier-free guidance scale; 1 = none.
        schedule: of the masked fraction.
    """

    captions: tuple[str, ...] = ()
    steps: int = 12
    temperature: float = 1.0
    choice_temperature: float = 4.5
    guidance: float = 1.0
    schedule: str = "cosine"


def sample_tokens(
    model: PriorNet,
    settings: SampleSettings,
    params: PyTree,
    keys: jax.Array,
    text_tokens: jax.Array | None,
) -> jax.Array:
    """Draws token grids; one compiled loop, with each caption encoded once.

    Args:
        model: the prior network.
        settings: how to draw.
        params: the network's parameters.
        keys: typed keys [B]; a key and a caption give the same sample in any batch.
        text_tokens: int32 [B, L], or None for an unconditional model.

    Returns:
        int32 [B, h, w] tokens.
    """
    height, width = model.grid
    rows = keys.shape[0]

    def encode_text(drop):
        drop = jnp.full((rows,), drop) if model.text_length else None
        return model.apply({"params": params}, text_tokens, drop, method="condition")

    def network(tokens, condition):
        return model.apply({"params": params}, tokens, condition, method="predict")

    scale = settings.guidance if model.text_length else 1
    tokens_to_logits = guidance.guided(network, encode_text(False), encode_text(True), scale)
    tokens = masked.sample(
        keys,
        tokens_to_logits,
        jnp.full((rows, height * width), model.mask_id, jnp.int32),
        mask_id=model.mask_id,
        steps=settings.steps,
        schedule_fn=choose(SCHEDULES, settings.schedule, "sample.schedule"),
        temperature=settings.temperature,
        choice_temperature=settings.choice_temperature,
    )
    return tokens.reshape(rows, height, width)


def split_levels(model: ImageTokenizer, tokens: jax.Array) -> jax.Array:
    """A grid of tokens to codes: int32 [B, h, w * R] -> [B, h, w, R], unchanged where depth R is 1."""
    depth = model.quantizer.depth
    return tokens if depth == 1 else tokens.reshape(*tokens.shape[:2], -1, depth)


def decode_codes(model: ImageTokenizer, params: PyTree, codes: jax.Array) -> jax.Array:
    """Codes int32 [B, h, w] (, R) to images float32 [B, H, W, 3], clipped to [-1, 1]."""

    def lookup_and_decode(module, codes):
        return module.decode(module.lookup(codes))

    images = model.apply({"params": params}, codes, method=lookup_and_decode)
    return jnp.clip(images, -1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Samples:
    """Evaluator: a sheet of samples with their captions; no numbers.

    Attributes:
        model: the prior network.
        tokenizer: the tokenizer network, whose parameters are `frozen["tokenizer"]`.
        settings: how to draw, and the captions.
        every_steps: how often.
        seed: of the noise, the same at every call, so that sheets can be compared over a training.
    """

    model: PriorNet
    tokenizer: ImageTokenizer
    settings: SampleSettings
    every_steps: int = 1000
    seed: int = 0
    name: str = dataclasses.field(default="samples", init=False)

    @cached_property
    def _draw(self):
        def draw(params, tokenizer_params, keys, text_tokens):
            tokens = sample_tokens(self.model, self.settings, params, keys, text_tokens)
            codes = split_levels(self.tokenizer, tokens)
            return to_uint8(decode_codes(self.tokenizer, tokenizer_params, codes))

        return jax.jit(draw)

    def __call__(self, ema: dict[str, PyTree], frozen: PyTree, mesh: jax.sharding.Mesh) -> Evaluation:
        """One picture, `samples`: the captions under what was drawn for them."""
        captions = self.settings.captions
        if not self.model.text_length:
            captions = ("",) * len(captions)  # Nothing may stand under a picture that did not draw it.
        keys = jax.random.split(rng.step_key(self.seed, "samples", 0), len(captions))
        text_tokens = encode_captions(self.model, captions)
        images = np.asarray(self._draw(ema["prior"], frozen["tokenizer"], keys, text_tokens))
        sheet = sheets.captioned_sheet(images, captions)
        return Evaluation({}, {"samples": np.asarray(sheet)})


def encode_captions(model: PriorNet, captions: Sequence[str]) -> np.ndarray | None:
    """Captions to int32 [B, L] for `model`, or None where it is unconditional."""
    if not model.text_length:
        return None
    return make_tokenizer().encode(captions, model.text_length)
