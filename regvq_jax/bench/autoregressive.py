"""Drawing whole token grids from an untrained autoregressive prior: tokens a second, and memory.

    python -m regvq_jax.bench autoregressive
    python -m regvq_jax.bench autoregressive --dim=512 --batch=16 --output=autoregressive.json

Compares, at temperature 1 and without a condition, in float32:
  cached      our sampler: one compiled loop, keys and values of earlier tokens kept.
  uncached    one compiled loop as well, which runs the network over the whole grid for every token.
  torch       a GPT in eager PyTorch with a cache, the same weights and as many parameters.

Before anything is timed, cached and uncached must draw the same tokens from the same key, and torch must
give our logits. Every program has a process of its own; they take turns, back and forth. The rows
"compiled only" say what the cached sampler needs for smaller and larger grids: beside the cache, about the
same. torch runs where JAX does, on the CPU or a GPU that it is built for, with as many threads as there are
cores; they wait for each other, so that it suffers most from other programs: measure on a quiet machine.
"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regvq_jax.bench.measure import (
    Limits,
    Measurement,
    Program,
    describe_machine,
    measure_in_turns,
    num_cores,
    warn_if_busy,
)
from regvq_jax.bench.table import output_path, show, write
from regvq_jax.bench.torch_gpt import TorchGPT
from regvq_jax.command_line import Parser, positive
from regvq_jax.errors import UserError
from regvq_jax.models.conditioners import Encoded
from regvq_jax.models.prior import PriorNet
from regvq_jax.priors import autoregressive
from regvq_jax.trainers.autoregressive import AutoregressivePrior, AutoregressiveSampling

PyTree = Any
CACHED, UNCACHED, TORCH = "cached", "uncached", "torch"
COMPILED_ONLY = "cached, compiled only"
CASE = ("tokens", "sampler")
CHECKED_TOKENS = 16
LOGITS_TOLERANCE = 1e-4
TINY = dict(dim=32, depth=2, heads=2, grid=4, codes=64, batch=2, repeats=2)


@dataclasses.dataclass(frozen=True)
class Problem:
    """What all programs are given.

    Attributes:
        dim, depth, heads: of the network.
        grid: h = w.
        codes: K.
        batch: B.
        seed: of parameters and noise.
    """

    dim: int
    depth: int
    heads: int
    grid: int
    codes: int
    batch: int
    seed: int

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.grid**2

    @property
    def cache_bytes(self) -> int:
        """Of the keys and values of all tokens, float32."""
        return 4 * 2 * self.depth * self.batch * self.num_tokens * self.dim

    @property
    def net(self) -> PriorNet:
        """The network."""
        return PriorNet(
            self.codes,
            (self.grid, self.grid),
            causal=True,
            dim=self.dim,
            depth=self.depth,
            num_heads=self.heads,
        )

    def params(self) -> PyTree:
        """Fresh parameters."""
        return jax.jit(self.net.init)(jax.random.key(self.seed), self.unknown(1))["params"]

    def keys(self) -> jax.Array:
        """One a row, [B]."""
        return jax.random.split(jax.random.key(self.seed + 1), self.batch)

    def unknown(self, rows: int, num_tokens: int | None = None) -> jax.Array:
        """Tokens that are all to be drawn: int32 [rows, N], or the first so many of them."""
        return jnp.full((rows, num_tokens or self.num_tokens), self.codes, jnp.int32)


def sample_cached(net: PriorNet, params: PyTree, keys: jax.Array, tokens: jax.Array) -> jax.Array:
    """Fills int32 [B, n] as a trained prior does."""
    settings, nothing = AutoregressiveSampling(), Encoded()
    return AutoregressivePrior().sample(net, params, keys, tokens, nothing, nothing, settings)


def sample_uncached(net: PriorNet, params: PyTree, keys: jax.Array, tokens: jax.Array) -> jax.Array:
    """Fills int32 [B, n] with the same noise, and the whole sequence through the network for every token."""

    def step_fn(inputs, token, position):
        inputs = jax.lax.dynamic_update_index_in_dim(inputs, token, position, 1)
        logits = net.apply({"params": params}, inputs, method="predict")
        return inputs, jax.lax.dynamic_index_in_dim(logits, position, 1, keepdims=False)

    inputs = jnp.zeros((tokens.shape[0], net.num_tokens), jnp.int32)
    special = net.special_id
    return autoregressive.sample(keys, step_fn, inputs, tokens, start_id=special, unknown_id=special)


def compile_sampler(
    sample_fn: Callable, problem: Problem, num_tokens: int | None = None
) -> jax.stages.Compiled:
    """A compiled (params, keys, tokens int32 [B, n]) -> the same, filled; n = N by default."""
    arguments = lambda: (problem.params(), problem.keys(), problem.unknown(problem.batch, num_tokens))
    # Not the TF32 that GPUs have for a default: the same arithmetic as torch.
    with jax.default_matmul_precision("float32"):
        return jax.jit(partial(sample_fn, problem.net)).lower(*jax.eval_shape(arguments)).compile()


def jax_program(sample_fn: Callable, problem: Problem) -> Callable[[], Program]:
    """Draws B grids with one of our samplers."""
    # The processes share an accelerator: none may take all of it beforehand.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    arguments = problem.params(), problem.keys(), problem.unknown(problem.batch)

    def build() -> Program:
        compiled = compile_sampler(sample_fn, problem)
        run = lambda: {"tokens": jax.block_until_ready(compiled(*arguments))}
        return Program(run, compiled.memory_analysis().temp_size_in_bytes)

    return build


def torch_program(device: str, problem: Problem) -> Callable[[], Program]:
    """Draws B grids in torch."""
    import torch

    torch.set_num_threads(num_cores())
    # Numbers, so that no thread of JAX has anything to do.
    params = jax.tree.map(np.asarray, problem.params())

    def build() -> Program:
        gpt = TorchGPT(problem.net, params, problem.batch, device)
        return Program(lambda: {"tokens": gpt.sample(problem.seed)})

    return build


def check_equal(problem: Problem, device: str | None) -> int:
    """Makes sure that the programs do the same, on the first tokens.

    Args:
        problem: sizes.
        device: of torch; None leaves torch out.

    Returns:
        The number of parameters.

    Raises:
        RuntimeError: they do not.
    """
    net, params = problem.net, problem.params()
    first = min(CHECKED_TOKENS, problem.num_tokens)
    cached, uncached = (
        compile_sampler(sample_fn, problem, first)(
            params, problem.keys(), problem.unknown(problem.batch, first)
        )
        for sample_fn in (sample_cached, sample_uncached)
    )
    if not np.array_equal(cached, uncached):
        raise RuntimeError("cached and uncached sampling draw different tokens from the same key")
    count = sum(x.size for x in jax.tree.leaves(params))
    if device is None:
        return count
    gpt = TorchGPT(net, params, problem.batch, device)
    if gpt.num_parameters != count:
        raise RuntimeError(f"torch has {gpt.num_parameters:,} parameters, ours {count:,}")
    inputs = autoregressive.shift_right(cached, net.special_id)
    padded = jnp.pad(inputs, ((0, 0), (0, problem.num_tokens - first)))
    with jax.default_matmul_precision("float32"):
        expected = jax.jit(partial(net.apply, method="predict"))({"params": params}, padded)
    error = np.abs(gpt.logits(inputs) - np.asarray(expected)[:, :first]).max()
    if not error < LOGITS_TOLERANCE:
        raise RuntimeError(f"torch's logits are off by up to {error:.1e}")
    return count


# Field of a row, and how the table shows it.
_MIB = lambda x: f"{x / 2**20:,.1f}"
COLUMNS = {
    "tokens/s": ("tokens_per_second", lambda x: f"{x:,.0f}"),
    f"x {UNCACHED}": ("speed_over_uncached", lambda x: f"{x:.2f}"),
    f"x {TORCH}": ("speed_over_torch", lambda x: f"{x:.2f}"),
    "cache MiB": ("cache_bytes", _MIB),
    "temp MiB": ("temp_bytes", _MIB),
    "beside cache MiB": ("temp_beside_cache", _MIB),
    "RSS MiB": ("rss_bytes", _MIB),
    "tokens off": ("tokens_off", lambda x: f"{x:,}"),
    "n": ("repeats", lambda x: f"{x}"),
}


def make_row(problem: Problem, name: str, measured: Mapping[str, Measurement]) -> dict:
    """The figures of a program by field; fields without a figure are left out."""
    own = measured[name]
    row = dict(tokens=problem.num_tokens, sampler=name, failure=own.failure)
    if name != UNCACHED:
        row["cache_bytes"] = problem.cache_bytes
    if own.temp_bytes is not None:
        row["temp_bytes"] = own.temp_bytes
    if name == CACHED:
        row["temp_beside_cache"] = own.temp_bytes - problem.cache_bytes
    if own.failure:
        return row
    row |= dict(seconds=own.median, all_seconds=own.seconds, repeats=len(own.seconds))
    row["tokens_per_second"] = problem.batch * problem.num_tokens / own.median
    row["rss_bytes"] = own.peak_bytes
    for baseline in (UNCACHED, TORCH):
        other = measured.get(baseline)
        if other is not None and not other.failure:
            row[f"speed_over_{baseline}"] = other.median / own.median
    if name == UNCACHED and not measured[CACHED].failure:
        row["tokens_off"] = int(np.sum(own.result["tokens"] != measured[CACHED].result["tokens"]))
    return row


def memory_row(problem: Problem) -> dict:
    """What the compiler plans for the cached sampler; nothing is run."""
    temp_bytes = compile_sampler(sample_cached, problem).memory_analysis().temp_size_in_bytes
    return dict(
        tokens=problem.num_tokens,
        sampler=COMPILED_ONLY,
        failure="",
        cache_bytes=problem.cache_bytes,
        temp_bytes=temp_bytes,
        temp_beside_cache=temp_bytes - problem.cache_bytes,
    )


def torch_device() -> str | None:
    """The kind of device that JAX uses, if torch is there and can use it too, else None."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    backend = jax.default_backend()
    return {"cpu": "cpu", "gpu": "cuda" if torch.cuda.is_available() else None}.get(backend)


def describe(args: argparse.Namespace, count: int, device: str | None, load: float) -> str:
    """Sizes, machine and versions, and what the columns are."""
    packages = ("jax", "jaxlib", *(("torch",) if device else ()))
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    torch_place = f"on {device}" if device else "left out"
    return (
        f"{args.batch} sequences of {args.codes:,} codes; dim {args.dim}, depth {args.depth}, {args.heads} "
        f"heads, {count:,} parameters in each, float32; median of up to {args.repeats} runs in turns, seed "
        f"{args.seed}; JAX on {jax.devices()[0].device_kind}, torch {torch_place}; {describe_machine()}, "
        f"load {load:.1f} before; {versions}. x uncached, x torch: tokens a second over theirs; temp: of the "
        "compiled program, which holds the cache; RSS: growth of the process, compiling included; tokens "
        f"off: how many differ from {CACHED!r}; n: runs."
    )


def main(argv: Sequence[str]) -> None:
    """Checks, measures, prints the table, and writes it where --output says."""
    args = make_parser().parse_args(argv)
    if args.tiny:
        vars(args).update(TINY)
    if args.dim % args.heads:
        raise UserError(f"--heads={args.heads} does not divide --dim={args.dim}.")
    device = None if args.tiny else torch_device()
    if device is None and not args.tiny:
        print("Without a comparison with torch, which is not here or cannot use what JAX uses.")
    load = warn_if_busy()
    problem = Problem(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Problem)})
    count = check_equal(problem, device)
    programs = {
        CACHED: partial(jax_program, sample_cached, problem),
        UNCACHED: partial(jax_program, sample_uncached, problem),
    }
    if device is not None:
        programs[TORCH] = partial(torch_program, device, problem)
    limits = Limits(args.repeats, args.time_limit, args.memory_limit * 2**30)
    measured = measure_in_turns(programs, limits)
    rows = [make_row(problem, name, measured) for name in programs]
    for grid in (max(1, args.grid // 2), 2 * args.grid):
        rows.append(memory_row(dataclasses.replace(problem, grid=grid)))

    caption = describe(args, count, device, load)
    show(rows, COLUMNS, caption, CASE)
    if args.output is not None:
        write(args.output.expanduser(), rows, COLUMNS, caption, CASE)


def make_parser() -> Parser:
    """The flags."""
    parser = Parser("regvq_jax.bench autoregressive", __doc__)
    add = parser.add_argument
    add("--dim", type=positive, default=256, help="width of the network (default 256)")
    add("--depth", type=positive, default=6, help="its blocks (default 6)")
    add("--heads", type=positive, default=8, help="its attention heads (default 8)")
    add("--grid", type=positive, default=16, help="tokens along each side of an image (default 16)")
    add("--codes", type=positive, default=1024, metavar="K", help="codebook size (default 1024)")
    add("--batch", type=positive, default=4, help="images drawn at once (default 4)")
    add("--repeats", type=positive, default=5, help="timed runs of each program (default 5)")
    add("--seed", type=int, default=0)
    add("--time-limit", type=positive, default=300, metavar="SECONDS", help="for one program (default 300)")
    add("--memory-limit", type=positive, default=16, metavar="GIB", help="for one program (default 16)")
    add("--tiny", action="store_true", help="a trial of the benchmark itself in seconds, without torch")
    add("--output", type=output_path, metavar="FILE", help=".md for the table, .json for all figures")
    return parser
