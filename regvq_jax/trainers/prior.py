"""Stage two: one trainer for every kind of prior over the tokens of a frozen tokenizer."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol

import grain
import jax
import jax.numpy as jnp
import optax

from regvq_jax import optim, rng
from regvq_jax.conditioning.condition import Condition
from regvq_jax.models.conditioners import Encoded
from regvq_jax.models.prior import PriorNet
from regvq_jax.settings import DataSettings, TrainSettings
from regvq_jax.state import TrainState, init_state, update_ema

PyTree = Any
# (tokens int32 [B, N], time float [B] or None) -> logits float32 [B, N, K].
NetworkFn = Callable[..., jax.Array]


class TokenPrior(Protocol):
    """What differs by prior: the pure functions of `regvq_jax.priors` with their settings.

    Attributes:
        causal, timed: what the network has to be, see `PriorNet`.
        exact: `bound` is -log p itself, and draws nothing.
        sampling: the dataclass of a config's `sample` group.
    """

    causal: ClassVar[bool]
    timed: ClassVar[bool]
    exact: ClassVar[bool]
    sampling: ClassVar[type]

    def init_statistics(self) -> PyTree:
        """What the training observes over time without a gradient."""

    def loss(
        self, network_fn: NetworkFn, tokens: jax.Array, key: jax.Array, statistics: PyTree, special_id: int
    ) -> tuple[jax.Array, dict[str, jax.Array], PyTree]:
        """(loss float32 [], more metrics by name, what `update_statistics` needs: float sums over rows)."""

    def update_statistics(self, statistics: PyTree, observed: PyTree) -> PyTree:
        """The statistics after a step."""

    def check_sampling(self, settings: Any) -> None:
        """Raises UserError where settings of `sampling` do not go with this prior."""

    def bound(
        self, network_fn: NetworkFn, tokens: jax.Array, key: jax.Array, special_id: int, draws: int
    ) -> jax.Array:
        """An unbiased estimate of (an upper bound on) -log p(tokens), float32 [B] in nats."""

    def sample(
        self,
        model: PriorNet,
        params: PyTree,
        keys: jax.Array,
        tokens: jax.Array,
        encoded: Encoded,
        null: Encoded,
        settings: Any,
    ) -> jax.Array:
        """Fills the places of int32 [B, N] that hold K, in compiled loops."""


@dataclasses.dataclass(frozen=True)
class PriorTrainer:
    """Trains a `PriorNet` as a `TokenPrior` wants it.

    Attributes:
        prior: autoregressive, masked or diffusion.
        model: the network.
        condition: what it is told.
        condition_drop: share of conditions replaced by the learned null, for classifier-free guidance.
        optimizer: of the network.
        frozen: parameters that are not trained: "tokenizer", and those of `condition`.
        encode_images_fn: (tokenizer parameters, uint8 [B, H, W, 3]) -> int32 [B, N], for batches of
            images; None for batches of tokens.
        The others: see `loop.Trainer`.
    """

    prior: TokenPrior
    model: PriorNet
    condition: Condition
    condition_drop: float
    optimizer: optax.GradientTransformation
    frozen: PyTree
    seed: int
    train: TrainSettings
    data: DataSettings
    make_batches: Callable[[], grain.MapDataset]
    num_examples: int = 0
    encode_images_fn: Callable[[PyTree, jax.Array], jax.Array] | None = None
    evaluators: tuple = ()
    name: str = "prior"
    best_metric: tuple[str, str] = ("eval/prior/loss", "min")

    def init(self, key: jax.Array) -> TrainState:
        """A fresh state; pure, for `jit` and `eval_shape`."""
        params = init_params(self.model, self.condition, rng.fold_in_name(key, "prior"), self.frozen)
        return init_state(
            {"prior": params},
            {"prior": self.optimizer},
            averaged=("prior",),
            statistics=self.prior.init_statistics(),
        )

    def init_frozen(self) -> PyTree:
        """The parameters of the frozen networks."""
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
            batch: {"tokens": int32 [B, N]} or {"image": uint8 [B, H, W, 3]}, and "condition" for a
                conditional prior; see `Condition.embed`.
            frozen: from `init_frozen`.

        Returns:
            The state at step n + 1 and float32 [] metrics.
        """
        key = rng.step_key(self.seed, "prior_step", state.step)
        params = state.params["prior"]

        def slice_gradients(batch, index):
            slice_key = jax.random.fold_in(key, index)
            tokens, condition = self.inputs(frozen, batch)
            loss_fn = lambda params: self._loss(params, tokens, condition, slice_key, state.statistics)
            (_, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
            return grads, aux

        grads, (metrics, observed) = optim.accumulate(
            slice_gradients, batch, self.train.accumulation_slices
        )
        # Means over slices of what was summed over their rows, back to sums over the batch.
        observed = jax.tree.map(lambda x: x * self.train.accumulation_slices, observed)
        updates, opt_state = self.optimizer.update(grads, state.opt_state["prior"], params)
        params = optax.apply_updates(params, updates)
        ema = update_ema(state.ema["prior"], params, state.step, self.train.ema_decay)
        metrics["optim/grad_norm"] = optax.tree.norm(grads)
        metrics |= optim.gradient_metrics({"prior": grads})
        new_state = state.replace(
            step=state.step + 1,
            params={"prior": params},
            opt_state={"prior": opt_state},
            ema={"prior": ema},
            statistics=self.prior.update_statistics(state.statistics, observed),
        )
        return new_state, metrics

    def inputs(self, frozen: PyTree, batch: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
        """(tokens int32 [B, N], what the conditioner takes or None) of a batch; pure."""
        return batch_inputs(self.condition, self.encode_images_fn, frozen, batch)

    def _loss(self, params, tokens, condition, key, statistics):
        drop = None
        if condition is not None:
            drop = jax.random.bernoulli(
                rng.fold_in_name(key, "drop"), self.condition_drop, tokens.shape[:1]
            )
        dropout = {"dropout": rng.fold_in_name(key, "dropout")}

        def network_fn(tokens, time=None):
            return self.model.apply(
                {"params": params}, tokens, condition, drop, time, deterministic=False, rngs=dropout
            )

        loss, metrics, observed = self.prior.loss(
            network_fn, tokens, rng.fold_in_name(key, "corrupt"), statistics, self.model.special_id
        )
        metrics = {"train/loss": loss} | {f"train/{name}": value for name, value in metrics.items()}
        return loss, (metrics, observed)


def batch_inputs(
    condition: Condition,
    encode_images_fn: Callable[[PyTree, jax.Array], jax.Array] | None,
    frozen: PyTree,
    batch: dict[str, jax.Array],
) -> tuple[jax.Array, Any]:
    """(tokens int32 [B, N], what the conditioner takes or None); Args as in `PriorTrainer`."""
    if "image" in batch:
        tokens = encode_images_fn(frozen["tokenizer"], batch["image"])
        tokens = tokens.reshape(tokens.shape[0], -1)
    else:
        tokens = batch["tokens"]
    inputs = batch.get("condition")
    # What is frozen gets no gradient; saying so spares the backward pass.
    return tokens, jax.lax.stop_gradient(condition.embed(frozen, inputs) if inputs is not None else None)


def init_params(model: PriorNet, condition: Condition, key: jax.Array, frozen: PyTree) -> PyTree:
    """Fresh parameters; pure, for `jit` and `eval_shape`."""
    tokens = jnp.zeros((1, model.num_tokens), jnp.int32)
    inputs = condition.example()
    embedded = None if inputs is None else condition.embed(frozen, inputs)
    time = jnp.zeros((1,)) if model.timed else None
    return model.init(key, tokens, embedded, None, time)["params"]
