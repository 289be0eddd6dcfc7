"""Pictures drawn by a prior."""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from regvq_jax import rng
from regvq_jax.conditioning.condition import Condition
from regvq_jax.data.ranges import to_uint8
from regvq_jax.errors import UserError
from regvq_jax.evaluate import sheets
from regvq_jax.evaluate.result import Evaluation
from regvq_jax.models.conditioners import Encoded
from regvq_jax.models.prior import PriorNet
from regvq_jax.models.tokenizer import ImageTokenizer
from regvq_jax.priors import guidance
from regvq_jax.settings import choose

PyTree = Any


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """How to draw: what the samplers of all priors share; a config's `sample` group.

    Attributes:
        captions: what to draw for the sample sheet; () takes the first held-out conditions.
        temperature: of the codes: 1 follows the network, 0 takes the likeliest.
        guidance: classifier-free guidance scale; 1 = none.
        guidance_ramp: "constant", or "linear" or "cosine": from 1 at the first token up to `guidance`.
    """

    captions: tuple[str, ...] = ()
    temperature: float = 1.0
    guidance: float = 1.0
    guidance_ramp: str = "constant"

    def __post_init__(self):
        if self.temperature < 0:
            raise UserError(f"config.sample.temperature={self.temperature} must be at least 0.")
        if self.guidance < 0:
            raise UserError(f"config.sample.guidance={self.guidance} must be at least 0; 1 = no guidance.")
        choose(guidance.RAMPS, self.guidance_ramp, "sample.guidance_ramp")


class Prompts(NamedTuple):
    """What the pictures of a sample sheet are drawn from.

    Attributes:
        inputs: as `Condition.embed` takes them, [B, ...]; None without a condition.
        captions: B texts to stand under the pictures.
        maps: uint8 [B, H, W, 3], label maps in colours, to stand above them; None = no maps.
    """

    inputs: np.ndarray | None
    captions: tuple[str, ...]
    maps: np.ndarray | None = None


def draw_tokens(
    prior,
    model: PriorNet,
    condition: Condition,
    settings: SampleSettings,
    params: PyTree,
    frozen: PyTree,
    keys: jax.Array,
    inputs: jax.Array | None,
    tokens: jax.Array | None = None,
) -> jax.Array:
    """Draws token grids in compiled loops, with each condition encoded once.

    Args:
        prior: a `trainers.prior.TokenPrior`.
        model: its network.
        condition: what the network is told.
        settings: how to draw, of the prior's own kind.
        params: the network's parameters.
        frozen: those that `condition` needs.
        keys: typed keys [B]; a key and a condition give the same sample in any batch.
        inputs: [B, ...] as `Condition.embed` takes them, None without a condition.
        tokens: int32 [B, N], K where a code is wanted and given codes elsewhere; None = all are wanted.

    Returns:
        int32 [B, h, w] tokens.
    """
    rows = keys.shape[0]
    if tokens is None:
        tokens = jnp.full((rows, model.num_tokens), model.special_id, jnp.int32)
    encoded = null = Encoded()
    if inputs is None:
        settings = dataclasses.replace(settings, guidance=1.0)  # There is nothing to be guided to.
    else:
        embedded = condition.embed(frozen, inputs)
        encode = lambda drop: model.apply(
            {"params": params}, embedded, jnp.full((rows,), drop), method="encode_condition"
        )
        encoded = encode(False)
        null = encode(True) if settings.guidance != 1 else encoded
    drawn = prior.sample(model, params, keys, tokens, encoded, null, settings)
    return drawn.reshape(rows, *model.grid)


def guided_network(
    model: PriorNet, params: PyTree, encoded: Encoded, null: Encoded, settings: SampleSettings
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The network as the samplers of masked and diffusion priors call it, with the settings' guidance.

    Returns:
        (tokens int32 [B, N], time float32 [B]) -> float32 [B, N, K].
    """

    def network(tokens, encoded, time):
        level = time if model.timed else None
        return model.apply({"params": params}, tokens, encoded, level, method="predict")

    ramp_fn = guidance.RAMPS[settings.guidance_ramp]
    return guidance.guided(network, encoded, null, settings.guidance, ramp_fn)


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
    """Evaluator: a sheet of samples with their captions or maps; no numbers.

    Attributes:
        draw_fn: (parameters, frozen, keys [B], inputs) -> int32 [B, h, w] tokens, pure.
        tokenizer: the tokenizer network, whose parameters are `frozen["tokenizer"]`.
        prompts: what to draw.
        every_steps: how often.
        seed: of the noise, the same at every call, so that sheets can be compared over a training.
    """

    draw_fn: Callable[[PyTree, PyTree, jax.Array, Any], jax.Array]
    tokenizer: ImageTokenizer
    prompts: Prompts
    every_steps: int = 1000
    seed: int = 0
    name: str = dataclasses.field(default="samples", init=False)

    @cached_property
    def _draw(self):
        def draw(params, frozen, keys, inputs):
            codes = split_levels(self.tokenizer, self.draw_fn(params, frozen, keys, inputs))
            return to_uint8(decode_codes(self.tokenizer, frozen["tokenizer"], codes))

        return jax.jit(draw)

    def __call__(self, ema: dict[str, PyTree], frozen: PyTree, mesh: jax.sharding.Mesh) -> Evaluation:
        """One picture, `samples`: what was drawn, with captions under it or maps above it."""
        keys = jax.random.split(rng.step_key(self.seed, "samples", 0), len(self.prompts.captions))
        images = np.asarray(self._draw(ema["prior"], frozen, keys, self.prompts.inputs))
        if self.prompts.maps is not None:
            sheet = sheets.labelled_sheet({"map": self.prompts.maps, "drawn": images})
        else:
            sheet = sheets.captioned_sheet(images, self.prompts.captions)
        return Evaluation({}, {"samples": np.asarray(sheet)})
