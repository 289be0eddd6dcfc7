"""What the benchmark of the priors' training step runs: our step, and torch's with its weights."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from regvq_jax import loop, sharding, step_costs
from regvq_jax.bench.measure import Program, num_cores
from regvq_jax.bench.torch_prior import TorchPrior
from regvq_jax.conditioning.condition import Condition
from regvq_jax.described import Described
from regvq_jax.models.layers import DTYPES
from regvq_jax.models.prior import PriorNet
from regvq_jax.optim import OptimSettings, make_optimizer
from regvq_jax.priors.diffusion_schedules import make_schedule
from regvq_jax.settings import DataSettings, TrainSettings
from regvq_jax.trainers.prior import PriorTrainer
from regvq_jax.trainers.priors import PRIORS

PyTree = Any
# taming's AdamW, with the usual clipping.
OPTIM = OptimSettings(lr=1e-4, schedule="constant", b1=0.9, b2=0.95, weight_decay=0.01, clip_norm=1.0)
TOLERANCE = 1e-4  # Of losses and of gradients' norms, relative.


@dataclasses.dataclass(frozen=True)
class Problem:
    """What all programs are given.

    Attributes:
        kind: of the prior, a name in `PRIORS`.
        dim, depth, heads, dropout: of the network.
        grid: h = w.
        codes: K.
        batch: B.
        dtype: of the network, a name in `DTYPES`.
        seed: of parameters, tokens and noise.
    """

    kind: str
    dim: int
    depth: int
    heads: int
    dropout: float
    grid: int
    codes: int
    batch: int
    dtype: str
    seed: int

    @property
    def trainer(self) -> PriorTrainer:
        """A trainer without data."""
        prior = PRIORS[self.kind]()
        net = PriorNet(
            self.codes,
            (self.grid, self.grid),
            causal=prior.causal,
            timed=prior.timed,
            dim=self.dim,
            depth=self.depth,
            num_heads=self.heads,
            dropout=self.dropout,
            dtype=DTYPES[self.dtype],
        )
        return PriorTrainer(
            prior=prior,
            model=net,
            condition=Condition(),
            condition_drop=0.0,
            optimizer=make_optimizer(OPTIM, 1000),
            frozen={},
            seed=self.seed,
            train=TrainSettings(batch_size=self.batch, total_steps=1000),
            data=DataSettings(source="", image_size=1),
            make_batches=lambda: None,
        )

    def state(self) -> PyTree:
        """A fresh train state."""
        return jax.jit(self.trainer.init)(jax.random.key(self.seed))

    def tokens(self) -> np.ndarray:
        """int32 [B, N], drawn evenly."""
        rng = np.random.default_rng(self.seed)
        return rng.integers(self.codes, size=(self.batch, self.grid**2)).astype(np.int32)

    def flops(self) -> float:
        """Of one step, in which nothing is a loop."""
        trainer = self.trainer
        trainer = dataclasses.replace(trainer, model=trainer.model.clone(attention="xla"))
        state = jax.eval_shape(trainer.init, jax.random.key(0))
        example = {"tokens": jax.ShapeDtypeStruct((1, self.grid**2), jnp.int32)}
        return step_costs.count_flops(Described(trainer, state, {}, example), self.batch)


def jax_program(problem: Problem) -> Callable[[], Program]:
    """Trains on one batch again and again, as the training loop does."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    state = problem.state()
    batch = sharding.put_batch({"tokens": problem.tokens()}, mesh)

    def build() -> Program:
        step_fn = loop.jit_step(problem.trainer, state, mesh).lower(state, batch, {}).compile()
        current = [state]

        def run():
            current[0], metrics = step_fn(current[0], batch, {})
            # The optimiser's and the average's work is not done when the loss is.
            jax.block_until_ready(current[0])
            return {"loss": metrics["train/loss"]}

        return Program(run, step_fn.memory_analysis().temp_size_in_bytes)

    return build


def make_torch_prior(problem: Problem, params: PyTree, device: str) -> TorchPrior:
    """The rival with our parameters."""
    trainer = problem.trainer
    prior = trainer.prior
    return TorchPrior(
        problem.kind,
        trainer.model,
        params,
        OPTIM,
        ema_decay=trainer.train.ema_decay,
        label_smoothing=getattr(prior, "label_smoothing", 0.0),
        schedule=make_schedule(prior.schedule, problem.codes, prior.num_steps) if prior.timed else None,
        auxiliary_weight=getattr(prior, "auxiliary_weight", 0.0),
        device=device,
    )


def torch_program(problem: Problem, device: str) -> Callable[[], Program]:
    """Trains in torch."""
    import torch

    torch.set_num_threads(num_cores())
    torch.manual_seed(problem.seed)
    # Numbers, so that no thread of JAX has anything to do.
    params = jax.tree.map(np.asarray, problem.state().params["prior"])
    tokens = torch.as_tensor(problem.tokens(), device=device).long()

    def build() -> Program:
        rival = make_torch_prior(problem, params, device)
        return Program(lambda: {"loss": rival.train_step(tokens)})

    return build


def check_equal(problem: Problem, device: str | None) -> int:
    """Makes sure that torch computes the same, without dropout and in float32.

    Args:
        problem: sizes.
        device: of torch; None leaves torch out.

    Returns:
        The number of parameters.

    Raises:
        RuntimeError: it does not.
    """
    problem = dataclasses.replace(problem, dtype="float32", dropout=0.0)
    trainer, state = problem.trainer, problem.state()
    count = sum(x.size for x in jax.tree.leaves(state.params))
    if device is None:
        return count
    # Fresh gates and biases are 0, which would hide what is behind them.
    shift = lambda x: x + 0.02 * jax.random.normal(jax.random.key(1), x.shape)
    params, tokens = jax.tree.map(shift, state.params["prior"]), problem.tokens()

    def loss_fn(params):
        given = []

        def network_fn(noisy, time=None):
            given.append((noisy, jnp.zeros(problem.batch) if time is None else time))
            return trainer.model.apply({"params": params}, noisy, time=time)

        key = jax.random.key(problem.seed)
        loss, *_ = trainer.prior.loss(network_fn, tokens, key, state.statistics, problem.codes)
        return loss, given[0]

    with jax.default_matmul_precision("float32"):
        (loss, (noisy, time)), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params)
    rival = make_torch_prior(problem, params, device)
    if rival.num_parameters != count:
        raise RuntimeError(f"torch has {rival.num_parameters:,} parameters, ours {count:,}")
    steps = getattr(trainer.prior, "num_steps", 0)
    theirs = rival.gradient_norm(tokens, np.asarray(noisy), np.round(np.asarray(time) * steps))
    for name, own, other in zip(("loss", "gradient"), (loss, optax.tree.norm(grads)), theirs, strict=True):
        if not abs(float(own) - other) < TOLERANCE * abs(other):
            raise RuntimeError(f"{problem.kind}: our {name} is {float(own):.6f}, torch's {other:.6f}")
    return count
