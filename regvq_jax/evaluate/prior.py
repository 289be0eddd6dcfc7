"""What a prior knows about held-out tokens, and how much of it the caption tells."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regvq_jax import rng, sharding
from regvq_jax.evaluate.result import Evaluation
from regvq_jax.models.prior import PriorNet
from regvq_jax.priors import masked

PyTree = Any


@dataclasses.dataclass(frozen=True)
class MaskedLoss:
    """Evaluator: mean cross-entropy of masked held-out tokens, with right and with shuffled captions.

    The masks are the same at every call, so that its figures can be compared over a training.

    Attributes:
        model: the prior network.
        batches: starts one pass: {"tokens": int32 [B, N], "text_tokens": int32 [B, L], "valid": bool [B]}.
        schedule_fn: of the masked fraction.
        every_steps: how often.
        num_masks: draws of the mask for each image.
    """

    model: PriorNet
    batches: Callable[[], Iterator[dict[str, np.ndarray]]]
    schedule_fn: Callable[[jax.Array], jax.Array]
    every_steps: int = 1000
    num_masks: int = 4
    name: str = dataclasses.field(default="prior_loss", init=False)

    @cached_property
    def _batch_sums(self):
        return jax.jit(partial(batch_sums, self.model, self.schedule_fn))

    def __call__(self, ema: dict[str, PyTree], frozen: PyTree, mesh: jax.sharding.Mesh) -> Evaluation:
        """Metrics `eval/prior/loss` and, where conditional, `eval/prior/loss_shuffled_text`, in nats."""
        sums = {name: 0.0 for name in ("tokens", "loss", "loss_shuffled_text")}
        for index, batch in enumerate(self.batches()):
            device_batch = sharding.put_batch(batch, mesh)
            for draw in range(self.num_masks):
                key = jax.random.fold_in(rng.step_key(0, "evaluation_mask", index), draw)
                for name, value in self._batch_sums(ema["prior"], device_batch, key).items():
                    sums[name] += float(value)
        names = ["loss", "loss_shuffled_text"] if self.model.text_length else ["loss"]
        metrics = {f"eval/prior/{name}": sums[name] / sums["tokens"] for name in names}
        return Evaluation(metrics, {})


def batch_sums(
    model: PriorNet,
    schedule_fn: Callable[[jax.Array], jax.Array],
    params: PyTree,
    batch: dict[str, jax.Array],
    key: jax.Array,
) -> dict[str, jax.Array]:
    """Sums over the masked tokens of the valid rows of one batch.

    Args:
        model: the prior network.
        schedule_fn: of the masked fraction.
        params: the network's parameters.
        batch: as in `MaskedLoss.batches`.
        key: draws the mask.

    Returns:
        float32 [] each: "tokens", their number; "loss", in nats; "loss_shuffled_text", with each row given
        the caption of the row before (for a conditional model).
    """
    tokens = batch["tokens"]
    corrupted, is_masked = masked.corrupt(key, tokens, mask_id=model.mask_id, schedule_fn=schedule_fn)
    counts = is_masked & batch["valid"][:, None]

    def loss_with(*text):
        logits = model.apply({"params": params}, corrupted, *text)
        return jnp.sum(jnp.where(counts, masked.cross_entropy(logits, tokens), 0.0))

    sums = {"tokens": jnp.sum(counts.astype(jnp.float32))}
    if model.text_length:
        sums["loss"] = loss_with(batch["text_tokens"])
        sums["loss_shuffled_text"] = loss_with(jnp.roll(batch["text_tokens"], 1, axis=0))
    else:
        sums["loss"] = loss_with()
    return sums
