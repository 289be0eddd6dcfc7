"""The autoregressive prior: its loss, likelihood and sampler around a causal `PriorNet`."""

import dataclasses
from functools import partial
from typing import Any, ClassVar

import jax

from regvq_jax.errors import UserError
from regvq_jax.evaluate.samples import SampleSettings
from regvq_jax.models.conditioners import Encoded
from regvq_jax.models.prior import PriorNet, make_room
from regvq_jax.priors import autoregressive, guidance

PyTree = Any


@dataclasses.dataclass(frozen=True)
class AutoregressiveSampling(SampleSettings):
    """How to draw from an autoregressive prior. See `priors.autoregressive.sample`.

    Attributes:
        top_k: keep the k likeliest codes; 0 = all.
        top_p: keep the likeliest codes that together have this probability; 1 = all.
        The others: see `SampleSettings`.
    """

    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_filters(self.top_k, self.top_p)


def check_filters(top_k: int, top_p: float) -> None:
    """Raises UserError unless both can be."""
    if top_k < 0:
        raise UserError(f"config.sample.top_k={top_k} must be at least 0; 0 keeps all codes.")
    if not 0 < top_p <= 1:
        raise UserError(f"config.sample.top_p={top_p} must be above 0 and at most 1; 1 keeps all codes.")


def check_smoothing(label_smoothing: float, group: str) -> None:
    """Raises UserError unless a share of the target can be smoothed."""
    if not 0 <= label_smoothing < 1:
        raise UserError(f"config.{group}.label_smoothing={label_smoothing} must be from 0 to below 1.")


@dataclasses.dataclass(frozen=True)
class AutoregressivePrior:
    """A `TokenPrior`.

    Attributes:
        label_smoothing: share of the target spread over all codes.
    """

    label_smoothing: float = 0.0

    causal: ClassVar[bool] = True
    timed: ClassVar[bool] = False
    exact: ClassVar[bool] = True
    sampling: ClassVar[type] = AutoregressiveSampling

    def __post_init__(self):
        check_smoothing(self.label_smoothing, "prior.autoregressive")

    def init_statistics(self) -> PyTree:
        """None."""
        return {}

    def loss(self, network_fn, tokens, key, statistics, special_id):
        """Next-token cross-entropy; see `TokenPrior`."""
        del key, statistics
        logits = network_fn(autoregressive.shift_right(tokens, special_id))
        return autoregressive.loss(logits, tokens, label_smoothing=self.label_smoothing), {}, {}

    def update_statistics(self, statistics, observed):
        """Nothing is observed."""
        del observed
        return statistics

    def check_sampling(self, settings):
        """All settings go with it."""

    def bound(self, network_fn, tokens, key, special_id, draws):
        """-log p(tokens) itself, float32 [B] in nats."""
        del key, draws
        logits = network_fn(autoregressive.shift_right(tokens, special_id))
        return -autoregressive.log_likelihood(logits, tokens)

    def sample(
        self,
        model: PriorNet,
        params: PyTree,
        keys: jax.Array,
        tokens: jax.Array,
        encoded: Encoded,
        null: Encoded,
        settings: AutoregressiveSampling,
    ) -> jax.Array:
        """Draws one token after the other with cached keys and values; see `TokenPrior`."""
        apply = partial(model.apply, {"params": params})
        step_fn = partial(apply, method="step")
        rows = tokens.shape[0]
        if settings.guidance != 1:
            encoded, rows = guidance.interleave(encoded, null), 2 * rows
            ramp_fn = guidance.RAMPS[settings.guidance_ramp]
            step_fn = guidance.guided_step(step_fn, settings.guidance, model.num_tokens, ramp_fn)
        return autoregressive.sample(
            keys,
            step_fn,
            apply(rows, encoded, method="start"),
            tokens,
            start_id=model.special_id,
            unknown_id=model.special_id,
            grow_fn=make_room,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
        )
