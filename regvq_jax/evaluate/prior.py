"""What a prior knows about held-out tokens, and how much of it the condition tells."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regvq_jax import rng, sharding
from regvq_jax.errors import UserError
from regvq_jax.evaluate.result import Evaluation
from regvq_jax.preemption import stop_if_requested

PyTree = Any


@dataclasses.dataclass(frozen=True)
class PriorLoss:
    """Evaluator: nats and bits a token of held-out images, with right and with shuffled conditions.

    The figure is -log p(tokens) itself for an autoregressive prior and an unbiased estimate of an upper
    bound on it for the others, so that priors over the same tokens can be compared. What is drawn for the
    estimate (masks, times) is the same at every call.

    Attributes:
        bound_fn: (parameters, tokens int32 [B, N], embedded condition or None, key, draws) -> float32 [B],
            nats.
        inputs_fn: (frozen, batch) -> (tokens, embedded condition or None).
        batches: starts one pass: as the trainer's batches, with "valid": bool [B], in an order in which
            neighbours have nothing to do with each other, since they exchange their conditions.
        pair_batches: the same over all pairs of an image and one of its captions.
        all_captions: judge by all pairs; False takes one caption for each image.
        every_steps: how often.
        num_draws: draws for each image, where the bound draws.
    """

    bound_fn: Callable[[PyTree, jax.Array, Any, jax.Array, int], jax.Array]
    inputs_fn: Callable[[PyTree, dict[str, jax.Array]], tuple[jax.Array, Any]]
    batches: Callable[[], Iterator[dict[str, np.ndarray]]]
    pair_batches: Callable[[], Iterator[dict[str, np.ndarray]]] | None = None
    all_captions: bool = False
    every_steps: int = 1000
    num_draws: int = 4
    name: str = dataclasses.field(default="prior_loss", init=False)

    def __post_init__(self):
        if self.num_draws < 1:
            raise UserError(f"config.prior.evals.prior_loss.num_draws={self.num_draws} must be at least 1.")

    @cached_property
    def _batch_sums(self):
        return jax.jit(self.batch_sums)

    def __call__(self, ema: dict[str, PyTree], frozen: PyTree, mesh: jax.sharding.Mesh) -> Evaluation:
        """`eval/prior/loss`, where conditional `eval/prior/loss_shuffled`, in nats a token, and bits."""
        sums: dict[str, float] = {}
        # Where there are no captions there are no pairs.
        batches = (self.all_captions and self.pair_batches) or self.batches
        for index, batch in enumerate(batches()):
            stop_if_requested("the evaluation will begin again")
            device_batch = sharding.put_batch(batch, mesh)
            key = rng.step_key(0, "evaluation_draw", index)
            for name, value in self._batch_sums(ema["prior"], frozen, device_batch, key).items():
                sums[name] = sums.get(name, 0.0) + float(value)
        tokens = sums.pop("tokens")
        metrics = {f"eval/prior/{name}": value / tokens for name, value in sums.items()}
        metrics["eval/prior/bits_per_token"] = metrics["eval/prior/loss"] / math.log(2)
        return Evaluation(metrics, {})

    def batch_sums(
        self, params: PyTree, frozen: PyTree, batch: dict[str, jax.Array], key: jax.Array
    ) -> dict[str, jax.Array]:
        """Sums over the valid rows of one batch.

        Args:
            params: the network's parameters.
            frozen: those of the frozen networks.
            batch: as in `batches`.
            key: for what the bound draws.

        Returns:
            float32 [] each: "tokens", their number; "loss", in nats; "loss_shuffled", with each row given the
            condition of the row before (for a conditional prior).
        """
        tokens, condition = self.inputs_fn(frozen, batch)

        def loss_with(condition):
            nats = self.bound_fn(params, tokens, condition, key, self.num_draws)
            return jnp.sum(jnp.where(batch["valid"], nats, 0.0))

        sums = {"tokens": jnp.sum(batch["valid"]) * float(tokens.shape[1]), "loss": loss_with(condition)}
        if condition is not None:
            shuffled = jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), condition)
            sums["loss_shuffled"] = loss_with(shuffled)
        return sums
