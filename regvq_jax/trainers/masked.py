"""Stage two: a masked transformer over the tokens of a frozen tokenizer, with or without captions."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import optax

from regvq_jax import optim, rng
from regvq_jax.models.prior import PriorNet
from regvq_jax.priors import masked
from regvq_jax.priors.schedules import SCHEDULES
from regvq_jax.settings import DataSettings, TrainSettings
from regvq_jax.state import TrainState, init_state, update_ema

PyTree = Any


@dataclasses.dataclass(frozen=True)
class MaskedSettings:
    """What shapes the loss of the masked prior.

    Attributes:
        schedule: of the masked fraction, a name in `priors.schedules.SCHEDULES`.
        min_mask_ratio: smallest masked fraction.
        label_smoothing: share of the target spread over all codes.
        condition_drop: share of captions replaced by the learned null, for classifier-free guidance.
    """

    schedule: str = "cosine"
    min_mask_ratio: float = 0.0
    label_smoothing: float = 0.1
    condition_drop: float = 0.1


@dataclasses.dataclass(frozen=True)
class MaskedTrainer:
    """Trains a `PriorNet` to fill masked tokens.

    Attributes:
        model: the network; conditional where its `text_length` is above 0.
        masked: see `MaskedSettings`.
        optimizer: of the network.
        frozen: parameters of the tokenizer, {"tokenizer": ...}, for the evaluators that decode.
        The others: see `loop.Trainer`.
    """

    model: PriorNet
    masked: MaskedSettings
    optimizer: optax.GradientTransformation
    frozen: PyTree
    seed: int
    train: TrainSettings
    data: DataSettings
    make_batches: Callable[[], grain.MapDataset]
    evaluators: tuple = ()
    name: str = "prior"
    best_metric: tuple[str, str] = ("eval/prior/loss", "min")

    def init(self, key: jax.Array) -> TrainState:
        """A fresh state; pure, for `jit` and `eval_shape`."""
        height, width = self.model.grid
        tokens = jnp.zeros((1, height * width), jnp.int32)
        text = jnp.zeros((1, self.model.text_length), jnp.int32) if self.model.text_length else None
        params = self.model.init(rng.fold_in_name(key, "prior"), tokens, text)["params"]
        return init_state({"prior": params}, {"prior": self.optimizer}, averaged=("prior",))

    def init_frozen(self) -> PyTree:
        """The tokenizer's parameters."""
        return self.frozen

    def make_watches(self, metrics_path: Path) -> tuple:
        """None."""
        del metrics_path
        return ()

    def train_step(
        self, state: TrainState, batch: dict[str, jax.Array], frozen: PyTree
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One update.

        Args:
            state: at step n.
            batch: {"tokens": int32 [B, N]} and, for a conditional model, {"text_tokens": int32 [B, L]}.
            frozen: not used by the step.

        Returns:
            The state at step n + 1 and float32 [] metrics.
        """
        del frozen
        key = rng.step_key(self.seed, "prior_step", state.step)
        params = state.params["prior"]

        def slice_gradients(batch, index):
            slice_key = jax.random.fold_in(key, index)
            loss, grads = jax.value_and_grad(self._loss)(params, batch, slice_key)
            return grads, {"train/loss": loss}

        grads, metrics = optim.accumulate(slice_gradients, batch, self.train.accumulation_slices)
        updates, opt_state = self.optimizer.update(grads, state.opt_state["prior"], params)
        params = optax.apply_updates(params, updates)
        ema = update_ema(state.ema["prior"], params, state.step, self.train.ema_decay)
        metrics["optim/grad_norm"] = optax.tree.norm(grads)
        new_state = state.replace(
            step=state.step + 1,
            params={"prior": params},
            opt_state={"prior": opt_state},
            ema={"prior": ema},
        )
        return new_state, metrics

    def _loss(self, params, batch, key):
        tokens = batch["tokens"]
        corrupted, is_masked = masked.corrupt(
            rng.fold_in_name(key, "mask"),
            tokens,
            mask_id=self.model.mask_id,
            schedule_fn=SCHEDULES[self.masked.schedule],
            min_ratio=self.masked.min_mask_ratio,
        )
        condition = ()
        if self.model.text_length:
            drop = jax.random.bernoulli(
                rng.fold_in_name(key, "drop"), self.masked.condition_drop, tokens.shape[:1]
            )
            condition = (batch["text_tokens"], drop)
        logits = self.model.apply(
            {"params": params},
            corrupted,
            *condition,
            deterministic=False,
            rngs={"dropout": rng.fold_in_name(key, "dropout")},
        )
        return masked.loss(logits, tokens, is_masked, label_smoothing=self.masked.label_smoothing)
