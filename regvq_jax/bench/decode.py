"""Drawing whole token grids from untrained priors: tokens and images a second, memory, share of bandwidth.

    python -m regvq_jax.bench decode
    python -m regvq_jax.bench decode --dim=512 --batch 1 32 --output=decode.md --json=decode.json
    python -m regvq_jax.bench decode --against=none --dtype=bfloat16

Compares, at temperature 1 and without a condition:
  cached      our autoregressive sampler: compiled loops, keys and values of earlier tokens kept.
  uncached    one compiled loop, which runs the network over the whole grid for every token; with the
              smallest batch alone, since it takes long.
  torch       a GPT in eager PyTorch with a cache, the same weights and as many parameters; always in
              float32, whatever --dtype.
  masked, diffusion    our samplers, with 12 and 50 parallel steps.

Before anything is timed, cached and uncached must draw the same tokens from the same key, and torch must
give our logits. Every program has a process of its own; they take turns, back and forth. The rows
"compiled only" say what the cached sampler needs for smaller and larger grids: beside the cache, about the
same. A step reads all parameters and what is filled of the cache, half of it on average: how often memory
can deliver that is the bound that cached steps are a share of. Where a processor's cache holds them, they may
pass it. torch runs where JAX does, with as many threads as there are cores; they wait for each other, so that
it suffers most from other programs: measure on a quiet machine.
"""

import argparse
import dataclasses
import importlib.metadata
from collections.abc import Mapping, Sequence
from functools import partial

import jax
import numpy as np

from regvq_jax.bench.decode_programs import (
    Problem,
    check_equal,
    compile_sampler,
    jax_program,
    sample_as_trained,
    sample_cached,
    sample_uncached,
    torch_program,
)
from regvq_jax.bench.flags import Rival, add_shared_flags, find_rival, make_limits, parse
from regvq_jax.bench.machine import memory_bandwidth
from regvq_jax.bench.measure import Measurement, describe_machine, measure_in_turns, warn_if_busy
from regvq_jax.bench.table import milliseconds, publish, spread
from regvq_jax.command_line import Parser, positive
from regvq_jax.errors import UserError
from regvq_jax.models.layers import DTYPES

CACHED, UNCACHED, TORCH = "cached", "uncached", "torch"
PARALLEL = ("masked", "diffusion")
COMPILED_ONLY = "cached, compiled only"
CASE = ("batch", "sampler")
TINY = dict(dim=32, depth=2, heads=2, grid=4, codes=64, batch=[2], repeats=2)


# Field of a row, and how the table shows it.
_MIB = lambda x: f"{x / 2**20:,.1f}"
COLUMNS = {
    "tokens": ("tokens", lambda x: f"{x:,}"),
    "ms": ("seconds", milliseconds),
    "least..most": ("all_seconds", spread),
    "images/s": ("images_per_second", lambda x: f"{x:,.2f}"),
    "tokens/s": ("tokens_per_second", lambda x: f"{x:,.0f}"),
    f"x {UNCACHED}": ("speed_over_uncached", lambda x: f"{x:.2f}"),
    f"x {TORCH}": ("speed_over_torch", lambda x: f"{x:.2f}"),
    "of bandwidth": ("share_of_bandwidth", lambda x: f"{x:.0%}"),
    "cache MiB": ("cache_bytes", _MIB),
    "temp MiB": ("temp_bytes", _MIB),
    "beside cache MiB": ("temp_beside_cache", _MIB),
    "RSS MiB": ("rss_bytes", _MIB),
    "tokens off": ("tokens_off", lambda x: f"{x:,}"),
    "n": ("repeats", lambda x: f"{x}"),
}


def make_row(problem: Problem, name: str, measured: Mapping[str, Measurement], bandwidth: float) -> dict:
    """The figures of a program by field; fields without a figure are left out."""
    own = measured[name]
    if name == TORCH:
        # Its weights and its cache are float32, whatever ours are.
        problem = dataclasses.replace(problem, dtype="float32")
    row = dict(batch=problem.batch, tokens=problem.num_tokens, sampler=name, failure=own.failure)
    row["dtype"] = problem.dtype
    if name in (CACHED, TORCH):
        row["cache_bytes"] = problem.cache_bytes
    if own.temp_bytes is not None:
        row["temp_bytes"] = own.temp_bytes
    if name == CACHED and own.temp_bytes is not None:
        row["temp_beside_cache"] = own.temp_bytes - problem.cache_bytes
    if own.failure:
        return row
    row |= dict(seconds=own.median, all_seconds=own.seconds, repeats=len(own.seconds))
    row["tokens_per_second"] = problem.batch * problem.num_tokens / own.median
    row["images_per_second"] = problem.batch / own.median
    row["rss_bytes"] = own.peak_bytes
    if name in (CACHED, TORCH):
        row["share_of_bandwidth"] = row["tokens_per_second"] / problem.bound(bandwidth)
    if name in PARALLEL:
        return row
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
        batch=problem.batch,
        tokens=problem.num_tokens,
        sampler=COMPILED_ONLY,
        failure="",
        dtype=problem.dtype,
        cache_bytes=problem.cache_bytes,
        temp_bytes=temp_bytes,
        temp_beside_cache=temp_bytes - problem.cache_bytes,
    )


def describe(args: argparse.Namespace, count: int, rival: Rival, bandwidth: float, load: float) -> str:
    """Sizes, machine and versions, and what the columns are."""
    packages = ("jax", "jaxlib", *((TORCH,) if rival.device else ()))
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    about = rival.about + (", in float32" if rival.device else "")
    return (
        f"batch: sequences of {args.codes:,} codes; dim {args.dim}, depth {args.depth}, {args.heads} heads, "
        f"{count:,} parameters in the autoregressive, {args.dtype}; median of up to {args.repeats} runs in "
        f"turns, seed {args.seed}; JAX on {jax.devices()[0].device_kind}, {about}; "
        f"{describe_machine()}, load {load:.1f} before; {versions}. x uncached, x torch: tokens a second "
        f"over theirs; of bandwidth: of the steps whose reading {bandwidth / 1e9:,.1f} GB/s, measured here, "
        "allow; temp: of the compiled program, which holds the cache; RSS: growth of the process, compiling "
        f"included; tokens off: how many differ from {CACHED!r}; n: runs."
    )


def main(argv: Sequence[str]) -> None:
    """Checks, measures, prints the table, and writes it where --output says."""
    args = parse(make_parser(), argv, TINY)
    if args.dim % args.heads:
        raise UserError(f"--heads={args.heads} does not divide --dim={args.dim}.")
    rival = find_rival(args)
    load, bandwidth = warn_if_busy(), memory_bandwidth()
    limits = make_limits(args)
    names = ("dim", "depth", "heads", "grid", "codes", "seed", "dtype")
    sizes = {name: getattr(args, name) for name in names}
    batches = sorted(set(args.batch))
    smallest = Problem(**sizes, batch=batches[0])
    count = check_equal(smallest, rival.device)
    rows = []
    for batch in batches:
        problem = dataclasses.replace(smallest, batch=batch)
        programs = {CACHED: partial(jax_program, sample_cached, problem)}
        if problem == smallest:
            programs[UNCACHED] = partial(jax_program, sample_uncached, problem)
        if rival.device is not None:
            programs[TORCH] = partial(torch_program, rival.device, problem)
        for kind in PARALLEL:
            sample_fn = partial(sample_as_trained, kind)
            programs[kind] = partial(jax_program, sample_fn, dataclasses.replace(problem, kind=kind))
        measured = measure_in_turns(programs, limits)
        rows += [make_row(problem, name, measured, bandwidth) for name in programs]
    for grid in (max(1, args.grid // 2), 2 * args.grid):
        rows.append(memory_row(dataclasses.replace(smallest, grid=grid)))
    publish(args, rows, COLUMNS, describe(args, count, rival, bandwidth, load), CASE)


def make_parser() -> Parser:
    """The flags."""
    parser = Parser("regvq_jax.bench decode", __doc__)
    add = parser.add_argument
    add("--dim", type=positive, default=256, help="width of the network (default 256)")
    add("--depth", type=positive, default=6, help="its blocks (default 6)")
    add("--heads", type=positive, default=8, help="its attention heads (default 8)")
    add("--grid", type=positive, default=16, help="tokens along each side of an image (default 16)")
    add("--codes", type=positive, default=1024, metavar="K", help="codebook size (default 1024)")
    add("--batch", type=positive, nargs="+", default=[1, 16], metavar="B", help="images at once: 1 and 16")
    add("--dtype", choices=DTYPES, default="float32", help="of ours and its cache (default float32)")
    add_shared_flags(parser, repeats=3)
    return parser
