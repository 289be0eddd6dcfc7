"""Training steps of the priors: time, memory, and FLOPs as a share of what the machine can do.

    python -m regvq_jax.bench prior
    python -m regvq_jax.bench prior --kinds masked --dim=512 --depth=12 --output=prior.md
    python -m regvq_jax.bench prior --against=none --dtype=bfloat16 --json=prior.json

The step is that of a training, with dropout, clipping, AdamW and the average of the parameters, as
`loop.jit_step` makes it. Against it stands a plain torch training step of the same network, corruption, loss
and optimiser, with as many parameters: eager on a CPU, on a GPU with a compiled loss; where ours computes in
bfloat16, so do its products, by autocast.

Before anything is timed, torch must give our loss and the norm of our gradient, without dropout. Every
program has a process of its own; they take turns, back and forth. FLOPs are counted on an unscanned twin.
"""

import argparse
import dataclasses
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from regvq_jax import loop, sharding, step_costs
from regvq_jax.bench.flags import add_shared_flags, wants_torch
from regvq_jax.bench.machine import matmul_peak
from regvq_jax.bench.measure import (
    Limits,
    Measurement,
    Program,
    describe_machine,
    measure_in_turns,
    num_cores,
    torch_device,
    warn_if_busy,
)
from regvq_jax.bench.table import publish, spread
from regvq_jax.bench.torch_prior import TorchPrior
from regvq_jax.command_line import Parser, positive
from regvq_jax.conditioning.condition import Condition
from regvq_jax.described import Described
from regvq_jax.errors import UserError
from regvq_jax.models.layers import DTYPES
from regvq_jax.models.prior import PriorNet
from regvq_jax.optim import OptimSettings, make_optimizer
from regvq_jax.priors.diffusion_schedules import make_schedule
from regvq_jax.settings import DataSettings, TrainSettings
from regvq_jax.trainers.prior import PriorTrainer
from regvq_jax.trainers.priors import PRIORS

PyTree = Any
OURS, TORCH = "jax", "torch"
CASE = ("tokens", "program")
# taming's AdamW, with the usual clipping.
OPTIM = OptimSettings(lr=1e-4, schedule="constant", b1=0.9, b2=0.95, weight_decay=0.01, clip_norm=1.0)
TOLERANCE = 1e-4  # Of losses and of gradients' norms, relative.
TINY = dict(dim=32, depth=2, heads=2, grid=4, codes=64, batch=2, repeats=2)


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


# Field of a row, and how the table shows it.
_MIB = lambda x: f"{x / 2**20:,.0f}"
COLUMNS = {
    "ms": ("seconds", lambda x: f"{x * 1e3:,.0f}"),
    "least..most": ("all_seconds", spread),
    "ratio": ("time_ratio", lambda x: f"{x:.2f}"),
    "GFLOP": ("flops", lambda x: f"{x / 1e9:,.1f}"),
    "of peak": ("share_of_peak", lambda x: f"{x:.0%}"),
    "temp MiB": ("temp_bytes", _MIB),
    "RSS MiB": ("rss_bytes", _MIB),
    "n": ("repeats", str),
}


def make_row(
    problem: Problem, name: str, measured: Mapping[str, Measurement], flops: float, peak: float
) -> dict[str, Any]:
    """The figures of a program by field; fields without a figure are left out."""
    own, rival = measured[name], measured.get(TORCH)
    row = dict(tokens=problem.batch * problem.grid**2, program=f"{problem.kind}, {name}", failure=own.failure)
    row |= dict(prior=problem.kind, flops=flops)
    if own.temp_bytes is not None:
        row["temp_bytes"] = own.temp_bytes
    if own.failure:
        return row
    row |= dict(seconds=own.median, all_seconds=own.seconds, repeats=len(own.seconds))
    row |= dict(rss_bytes=own.peak_bytes, share_of_peak=flops / own.median / peak)
    if rival is not None and not rival.failure:
        row["time_ratio"] = own.median / rival.median
    return row


def describe(
    args: argparse.Namespace, counts: Mapping[str, int], device: str | None, peak: float, load: float
) -> str:
    """Sizes, machine and versions, and what the columns are."""
    packages = ("jax", "jaxlib", *(("torch",) if device else ()))
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    parameters = ", ".join(f"{count:,} ({kind})" for kind, count in counts.items())
    return (
        f"{args.batch} sequences of {args.grid**2} tokens of {args.codes:,} codes; dim {args.dim}, depth "
        f"{args.depth}, {args.heads} heads, dropout {args.dropout:g}, {args.dtype}; parameters: "
        f"{parameters}; median of up to {args.repeats} runs in turns, seed {args.seed}; JAX on "
        f"{jax.devices()[0].device_kind}, torch {f'on {device}' if device else 'left out'}; "
        f"{describe_machine()}, load {load:.1f} before; {versions}. ratio: time over torch's; GFLOP: of our "
        f"step, a multiply-add is 2; of peak: of the {peak / 1e9:,.0f} GFLOP/s that products of large "
        f"{args.dtype} matrices reached here in JAX; temp: of the compiled program, beside the state; RSS: "
        "growth of the process, compiling included; n: runs."
    )


def main(argv: Sequence[str]) -> None:
    """Checks, measures, prints the table, and writes it where the flags say."""
    args = make_parser().parse_args(argv)
    if args.tiny:
        vars(args).update(TINY)
    if args.dim % args.heads:
        raise UserError(f"--heads={args.heads} does not divide --dim={args.dim}.")
    if not 0 <= args.dropout < 1:
        raise UserError(f"--dropout={args.dropout:g} must be from 0 to below 1.")
    args.dtype = args.dtype or ("bfloat16" if jax.default_backend() == "gpu" else "float32")
    device = torch_device() if wants_torch(args) else None
    load = warn_if_busy()
    peak = matmul_peak(DTYPES[args.dtype])
    limits = Limits(args.repeats, args.time_limit, args.memory_limit * 2**30)
    rows, counts = [], {}
    names = [field.name for field in dataclasses.fields(Problem) if field.name != "kind"]
    for kind in dict.fromkeys(args.kinds):
        problem = Problem(kind, **{name: getattr(args, name) for name in names})
        counts[kind] = check_equal(problem, device)
        programs = {OURS: partial(jax_program, problem)}
        if device is not None:
            programs[TORCH] = partial(torch_program, problem, device)
        measured = measure_in_turns(programs, limits)
        flops = problem.flops()
        rows += [make_row(problem, name, measured, flops, peak) for name in programs]
    publish(args, rows, COLUMNS, describe(args, counts, device, peak, load), CASE)


def make_parser() -> Parser:
    """The flags."""
    parser = Parser("regvq_jax.bench prior", __doc__)
    add = parser.add_argument
    add("--kinds", nargs="+", choices=PRIORS, default=list(PRIORS), help="of priors (default all)")
    add("--dim", type=positive, default=256, help="width of the network (default 256)")
    add("--depth", type=positive, default=8, help="its blocks (default 8)")
    add("--heads", type=positive, default=8, help="its attention heads (default 8)")
    add("--dropout", type=float, default=0.1, help="its rate (default 0.1)")
    add("--grid", type=positive, default=16, help="tokens along each side of an image (default 16)")
    add("--codes", type=positive, default=1024, metavar="K", help="codebook size (default 1024)")
    add("--batch", type=positive, default=8, help="sequences in a batch (default 8)")
    add("--dtype", choices=DTYPES, help="of the network (default float32, on a GPU bfloat16)")
    add_shared_flags(parser, repeats=5)
    return parser
