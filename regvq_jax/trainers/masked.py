"""The masked prior (MaskGIT): its loss, likelihood bound and sampler around a `PriorNet`."""

import dataclasses
from functools import partial
from typing import Any, ClassVar

import jax

from regvq_jax.errors import UserError
from regvq_jax.evaluate.samples import SampleSettings, guided_network
from regvq_jax.models.conditioners import Encoded
from regvq_jax.models.prior import PriorNet
from regvq_jax.priors import masked
from regvq_jax.priors.schedules import SCHEDULES, halton_order
from regvq_jax.settings import choose
from regvq_jax.trainers.autoregressive import check_filters, check_smoothing

PyTree = Any
ORDERS = ("confidence", "halton")


@dataclasses.dataclass(frozen=True)
class MaskedSampling(SampleSettings):
    """How to draw from a masked prior. See `priors.masked.sample`.

    Attributes:
        steps: calls of the network.
        schedule: of the masked fraction, a name in `priors.schedules.SCHEDULES`.
        order: "confidence", the surest first, or "halton", spread evenly over the grid.
        choice_temperature: of the confidence; 0 is strictly by probability.
        top_k, top_p: filters of the codes; 0 and 1 keep all.
        The others: see `SampleSettings`.
    """

    steps: int = 12
    schedule: str = "cosine"
    order: str = "confidence"
    choice_temperature: float = 4.5
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        choose(SCHEDULES, self.schedule, "sample.schedule")
        choose(dict.fromkeys(ORDERS), self.order, "sample.order")
        check_filters(self.top_k, self.top_p)
        if self.steps < 1:
            raise UserError(f"config.sample.steps={self.steps} must be at least 1.")


@dataclasses.dataclass(frozen=True)
class MaskedPrior:
    """A `TokenPrior`.

    Attributes:
        schedule: of the masked fraction, a name in `priors.schedules.SCHEDULES`.
        min_mask_ratio: smallest masked fraction.
        label_smoothing: share of the target spread over all codes.
    """

    schedule: str = "cosine"
    min_mask_ratio: float = 0.0
    label_smoothing: float = 0.1

    causal: ClassVar[bool] = False
    timed: ClassVar[bool] = False
    exact: ClassVar[bool] = False
    sampling: ClassVar[type] = MaskedSampling

    def __post_init__(self):
        choose(SCHEDULES, self.schedule, "prior.masked.schedule")
        if not 0 <= self.min_mask_ratio <= 1:
            raise UserError(f"config.prior.masked.min_mask_ratio={self.min_mask_ratio} must be from 0 to 1.")
        check_smoothing(self.label_smoothing, "prior.masked")

    def init_statistics(self) -> PyTree:
        """None."""
        return {}

    def loss(self, network_fn, tokens, key, statistics, special_id):
        """Cross-entropy of the masked positions; see `TokenPrior`."""
        del statistics
        corrupted, is_masked = masked.corrupt(
            key,
            tokens,
            mask_id=special_id,
            schedule_fn=SCHEDULES[self.schedule],
            min_ratio=self.min_mask_ratio,
        )
        logits = network_fn(corrupted)
        return masked.loss(logits, tokens, is_masked, label_smoothing=self.label_smoothing), {}, {}

    def update_statistics(self, statistics, observed):
        """Nothing is observed."""
        del observed
        return statistics

    def check_sampling(self, settings):
        """All settings go with it."""

    def bound(self, network_fn, tokens, key, special_id, draws):
        """An estimate of an upper bound on -log p(tokens), float32 [B] in nats."""
        return masked.bound(key, network_fn, tokens, mask_id=special_id, draws=draws)

    def sample(
        self,
        model: PriorNet,
        params: PyTree,
        keys: jax.Array,
        tokens: jax.Array,
        encoded: Encoded,
        null: Encoded,
        settings: MaskedSampling,
    ) -> jax.Array:
        """Fills all places in a few parallel steps; see `TokenPrior`."""
        sample = partial(
            masked.sample,
            keys,
            guided_network(model, params, encoded, null, settings),
            tokens,
            mask_id=model.special_id,
            steps=settings.steps,
            schedule_fn=SCHEDULES[settings.schedule],
            temperature=settings.temperature,
            choice_temperature=settings.choice_temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
        )
        return sample(order=halton_order(model.grid) if settings.order == "halton" else None)
