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
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax

from regvq_jax.bench.flags import Rival, add_shared_flags, find_rival, make_limits, parse
from regvq_jax.bench.machine import matmul_peak
from regvq_jax.bench.measure import Measurement, describe_machine, measure_in_turns, warn_if_busy
from regvq_jax.bench.prior_programs import Problem, check_equal, jax_program, torch_program
from regvq_jax.bench.table import mebibytes, milliseconds, publish, spread
from regvq_jax.command_line import Parser, positive
from regvq_jax.errors import UserError
from regvq_jax.models.layers import DTYPES
from regvq_jax.trainers.priors import PRIORS

OURS, TORCH = "jax", "torch"
CASE = ("tokens", "program")
TINY = dict(dim=32, depth=2, heads=2, grid=4, codes=64, batch=2, repeats=2)


# Field of a row, and how the table shows it.
COLUMNS = {
    "ms": ("seconds", milliseconds),
    "least..most": ("all_seconds", spread),
    "ratio": ("time_ratio", lambda x: f"{x:.2f}"),
    "GFLOP": ("flops", lambda x: f"{x / 1e9:,.1f}"),
    "of peak": ("share_of_peak", lambda x: f"{x:.0%}"),
    "temp MiB": ("temp_bytes", mebibytes),
    "RSS MiB": ("rss_bytes", mebibytes),
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
    args: argparse.Namespace, counts: Mapping[str, int], rival: Rival, peak: float, load: float
) -> str:
    """Sizes, machine and versions, and what the columns are."""
    packages = ("jax", "jaxlib", *((TORCH,) if rival.device else ()))
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    parameters = ", ".join(f"{count:,} ({kind})" for kind, count in counts.items())
    return (
        f"{args.batch} sequences of {args.grid**2} tokens of {args.codes:,} codes; dim {args.dim}, depth "
        f"{args.depth}, {args.heads} heads, dropout {args.dropout:g}, {args.dtype}; parameters: "
        f"{parameters}; median of up to {args.repeats} runs in turns, seed {args.seed}; JAX on "
        f"{jax.devices()[0].device_kind}, {rival.about}; "
        f"{describe_machine()}, load {load:.1f} before; {versions}. ratio: time over torch's; GFLOP: of our "
        f"step, a multiply-add is 2; of peak: of the {peak / 1e9:,.0f} GFLOP/s that products of large "
        f"{args.dtype} matrices reached here in JAX; temp: of the compiled program, beside the state; RSS: "
        "growth of the process, compiling included; n: runs."
    )


def main(argv: Sequence[str]) -> None:
    """Checks, measures, prints the table, and writes it where the flags say."""
    args = parse(make_parser(), argv, TINY)
    if args.dim % args.heads:
        raise UserError(f"--heads={args.heads} does not divide --dim={args.dim}.")
    if not 0 <= args.dropout < 1:
        raise UserError(f"--dropout={args.dropout:g} must be from 0 to below 1.")
    args.dtype = args.dtype or ("bfloat16" if jax.default_backend() == "gpu" else "float32")
    rival = find_rival(args)
    load = warn_if_busy()
    peak = matmul_peak(DTYPES[args.dtype])
    limits = make_limits(args)
    rows, counts = [], {}
    names = [field.name for field in dataclasses.fields(Problem) if field.name != "kind"]
    for kind in dict.fromkeys(args.kinds):
        problem = Problem(kind, **{name: getattr(args, name) for name in names})
        counts[kind] = check_equal(problem, rival.device)
        programs = {OURS: partial(jax_program, problem)}
        if rival.device is not None:
            programs[TORCH] = partial(torch_program, problem, rival.device)
        measured = measure_in_turns(programs, limits)
        flops = problem.flops()
        rows += [make_row(problem, name, measured, flops, peak) for name in programs]
    publish(args, rows, COLUMNS, describe(args, counts, rival, peak, load), CASE)


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
