"""A training step of the quantizers, forward and backward, at several codebook sizes.

    python -m regvq_jax.bench quantizer
    python -m regvq_jax.bench quantizer --codes 65536 --batch=2 --output=quantizer.md
    python -m regvq_jax.bench quantizer --all --codes 1024 16384 262144 --against=none --json=all.json

Compares, each with its baseline:
  nearest       our nearest codes in tiles with vector-quantize-pytorch's. Equal work: the same features and
                codebook, straight-through, gradients of codebook and commitment loss of weight 1.
  regularized   mask 0.4, dot logits, gradients of the code vectors and of the prior KL, in tiles and as the
                plain form that holds whole [positions, K] arrays. Equal work.
                vector-quantize-pytorch's stochastic codes are the nearest like: noise at all positions,
                softmax straight-through; they do less, without KL, entropy, and gradients of the codebook.

--all adds the other quantizers as a tokenizer runs them, each on features of its own dimension; FSQ and LFQ
where K is a power of two. Theirs is other work, so that only "x nearest" compares them.

Every program has a process of its own; they take turns. temp is what the compiler planned beside arguments
and results; RSS is the growth of the process over its inputs, compiling included.
torch runs where JAX does; where it cannot, or without vector-quantize-pytorch, the JAX half runs alone.

--codes takes any K. At 262,144 and the default 8,192 positions one [positions, K] array is 8 GiB: in tiles a
step took 3.5 s (nearest) and 29 s (regularized) on two CPU cores in a slow hour, and less than 1 GiB; the
plain form plans for 24 GiB, and torch's nearest codes might take 50. What passes --memory-limit, by default
16 GiB, has a row that says so; with --batch=1 all should fit.
"""

import argparse
import dataclasses
import functools
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from regvq_jax.bench.differences import relative_error
from regvq_jax.bench.flags import Rival, add_shared_flags, find_rival, make_limits, parse
from regvq_jax.bench.measure import Measurement, Program, describe_machine, measure_in_turns
from regvq_jax.bench.quantizer_programs import (
    Problem,
    jax_program,
    module_program,
    nearest_loss,
    plain_loss,
    tiled_loss,
    torch_program,
)
from regvq_jax.bench.table import QUANTIZER, mebibytes, milliseconds, publish, spread
from regvq_jax.command_line import Parser, positive

RIVALS = ("torch", "vector-quantize-pytorch")
RESIDUAL_DEPTH = 4
TINY = dict(codes=[64], batch=2, grid=4, code_dim=8, repeats=2, tile_elements=512)


@dataclasses.dataclass(frozen=True)
class Case:
    """One row for each codebook size.

    Attributes:
        make_inputs: (torch's device where `needs_torch`, Problem) -> () -> Program; see `measure_in_turns`.
        baseline: the case that its figures are ratios of.
        tiled: whether it holds a tile at a time.
        equal: whether its results are the baseline's.
        needs_torch: whether it needs what `RIVALS` names.
        needs_bits: whether K must be a power of two.
    """

    make_inputs: Callable[..., Callable[[], Program]]
    baseline: str = ""
    tiled: bool = False
    equal: bool = True
    needs_torch: bool = False
    needs_bits: bool = False

    def runs(self, problem: Problem, device: str | None) -> bool:
        """Whether it can be measured; `device` is torch's, None leaves it out."""
        has_bits = problem.num_codes & (problem.num_codes - 1) == 0
        return (device is not None or not self.needs_torch) and (has_bits or not self.needs_bits)

    def program(self, problem: Problem, device: str | None) -> Callable[[], Callable[[], Program]]:
        """As `measure_in_turns` takes it; `device` is torch's."""
        place = (device,) if self.needs_torch else ()
        return functools.partial(self.make_inputs, *place, problem)


NEAREST, PLAIN, TILED = "nearest, in tiles", "regularized, plain", "regularized, in tiles"
TORCH_NEAREST, TORCH_STOCHASTIC = "nearest, torch", "stochastic codes, torch"
CASES = {
    NEAREST: Case(functools.partial(jax_program, nearest_loss), TORCH_NEAREST, tiled=True),
    TORCH_NEAREST: Case(functools.partial(torch_program, False), TORCH_NEAREST, needs_torch=True),
    PLAIN: Case(functools.partial(jax_program, plain_loss), PLAIN),
    TILED: Case(functools.partial(jax_program, tiled_loss), PLAIN, tiled=True),
    TORCH_STOCHASTIC: Case(functools.partial(torch_program, True), PLAIN, equal=False, needs_torch=True),
}
# What --all adds.
OTHERS = {
    kind: Case(functools.partial(module_program, kind), equal=False)
    for kind in ("deterministic", "gumbel", "simvq", "ibq")
}
OTHERS |= {
    kind: Case(functools.partial(module_program, kind), equal=False, needs_bits=True)
    for kind in ("fsq", "lfq")
}
OTHERS[f"residual, {RESIDUAL_DEPTH} x nearest"] = Case(
    functools.partial(module_program, "nearest", depth=RESIDUAL_DEPTH), equal=False
)
# Field of a row, and how the table shows it.
COLUMNS = {
    "tile": ("tile_size", lambda x: f"{x:,}"),
    "ms": ("seconds", milliseconds),
    "least..most": ("all_seconds", spread),
    "ratio": ("time_ratio", lambda x: f"{x:.2f}"),
    "x nearest": ("times_nearest", lambda x: f"{x:.2f}"),
    "temp MiB": ("temp_bytes", mebibytes),
    "arrays": ("temp_arrays", lambda x: f"{x:.2f}"),
    "x least K": ("temp_growth", lambda x: f"{x:.2f}"),
    "RSS MiB": ("rss_bytes", mebibytes),
    "RSS ratio": ("rss_ratio", lambda x: f"{x:.2f}"),
    "codes off": ("codes_off", lambda x: f"{x:,}"),
    "grad. off": ("gradients_off", lambda x: f"{x:.0e}"),
    "n": ("repeats", lambda x: f"{x}"),
}


def make_row(problem: Problem, name: str, case: Case, measured: Mapping[str, Measurement]) -> dict:
    """The figures of a case by field; fields without a figure are left out."""
    own, baseline = measured[name], measured.get(case.baseline)
    row = dict(codes=problem.num_codes, quantizer=name, baseline=case.baseline, failure=own.failure)
    if case.tiled:
        row["tile_size"] = problem.tile_size
    if own.temp_bytes is not None:
        row |= dict(temp_bytes=own.temp_bytes, temp_arrays=own.temp_bytes / problem.array_bytes)
    if own.failure:
        return row
    row |= dict(seconds=own.median, all_seconds=own.seconds, repeats=len(own.seconds))
    row["rss_bytes"] = own.peak_bytes
    if NEAREST in measured and not measured[NEAREST].failure:
        row["times_nearest"] = own.median / measured[NEAREST].median
    if baseline is None or baseline.failure:
        return row
    row |= dict(time_ratio=own.median / baseline.median, rss_ratio=own.peak_bytes / baseline.peak_bytes)
    if case.equal and own is not baseline:
        row["codes_off"] = int(np.sum(own.result["codes"] != baseline.result["codes"]))
        row["gradients_off"] = max(
            relative_error(own.result[x], baseline.result[x]) for x in ("features", "codebook")
        )
    return row


def add_growth(rows: Sequence[dict]) -> None:
    """Adds to each row its planned memory over that of the same quantizer at the fewest codes."""
    for row in rows:
        same = [x for x in rows if x["quantizer"] == row["quantizer"] and x.get("temp_bytes")]
        if row.get("temp_bytes"):
            row["temp_growth"] = row["temp_bytes"] / min(same, key=lambda x: x["codes"])["temp_bytes"]


def describe(args: argparse.Namespace, rival: Rival) -> str:
    """Sizes, machine and versions, and what the columns are."""
    packages = ("jax", "jaxlib", *(RIVALS if rival.device else ()))
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    device = jax.devices()[0]
    return (
        f"{args.batch * args.grid**2:,} positions [{args.batch}, {args.grid}, {args.grid}] of "
        f"{args.code_dim} dimensions, float32; median of up to {args.repeats} repeats in turns, seed "
        f"{args.seed}; JAX on {device.device_kind}, {rival.about}; {describe_machine()}; {versions}. "
        f"Ratios and differences are to {TORCH_NEAREST!r} and {PLAIN!r}. tile: positions of each image at "
        "once; x nearest: time over that of our nearest; temp: of the compiled program, also in float32 "
        "[positions, K] arrays and over its own at the fewest codes; RSS: growth of the "
        "process; codes off: how many are others; grad. off: largest difference of a gradient, as a share of "
        "its largest element; n: repeats."
    )


def main(argv: Sequence[str]) -> None:
    """Measures, prints the table, and writes it where --output and --json say."""
    args = parse(make_parser(), argv, TINY)
    rival = find_rival(args, "vector_quantize_pytorch")
    all_cases = CASES | OTHERS if args.all else CASES
    limits = make_limits(args)
    rows = []
    for num_codes in args.codes:
        problem = Problem(num_codes, args.batch, args.grid, args.code_dim, args.tile_elements, seed=args.seed)
        cases = {name: case for name, case in all_cases.items() if case.runs(problem, rival.device)}
        programs = {name: case.program(problem, rival.device) for name, case in cases.items()}
        measured = measure_in_turns(programs, limits)
        rows += [make_row(problem, name, case, measured) for name, case in cases.items()]
    add_growth(rows)
    publish(args, rows, COLUMNS, describe(args, rival), QUANTIZER)


def make_parser() -> Parser:
    """The flags."""
    parser = Parser("regvq_jax.bench quantizer", __doc__)
    add = parser.add_argument
    add("--codes", type=positive, nargs="+", default=[1024, 16384, 65536], metavar="K", help="codebook sizes")
    add("--all", action="store_true", help="the other quantizers, too")
    add("--batch", type=positive, default=8, help="images (default 8)")
    add("--grid", type=positive, default=32, help="positions along each side of an image (default 32)")
    add("--code-dim", type=positive, default=64, help="length of a code vector (default 64)")
    add("--tile-elements", type=positive, help="of a tile (default: a tokenizer's)")
    add_shared_flags(parser, repeats=3)
    return parser
