"""The f16 tokenizer, forward, with gradients, and in a whole GAN step: time, FLOPs and memory.

    python -m regvq_jax.bench tokenizer
    python -m regvq_jax.bench tokenizer --size=256 --batch=2 --against=none --output=tokenizer.json

Compares:
  forward       images to codes to images, of our network and of diffusers' VQModel in eager PyTorch with the
                same weights, hence as many parameters and equal results.
  gradients     of all parameters, for the squared error of the images and the losses of the codebook.
  GAN step      our trainer's whole step with discriminator, VGG19 features, losses and optimisers; no rival.

Every program has a process of its own; they take turns. FLOPs are those of plain convolutions, 2 for a
multiplication and addition, whatever form computes them. torch runs where JAX does, with as many threads as
there are cores. On a GPU the first two are also compared in bfloat16 with torch.compile.
"""

import argparse
import dataclasses
import importlib.metadata
from collections.abc import Sequence
from functools import partial

import jax
import numpy as np

from regvq_jax.bench.differences import relative_error
from regvq_jax.bench.flags import Rival, add_shared_flags, find_rival, make_limits, parse
from regvq_jax.bench.machine import matmul_peak
from regvq_jax.bench.measure import (
    Limits,
    Measurement,
    describe_machine,
    measure_in_turns,
    warn_if_busy,
)
from regvq_jax.bench.table import mebibytes, milliseconds, publish, spread
from regvq_jax.bench.tokenizer_programs import (
    FUNCTIONS,
    STEP,
    Problem,
    count_flops,
    count_parameters,
    jax_program,
    step_program,
    torch_program,
)
from regvq_jax.command_line import Parser, positive
from regvq_jax.interop.tokenizer_file import param_shapes
from regvq_jax.models.layers import DTYPES

RIVALS = ("torch", "diffusers")
CASE = ("size", "program")
TINY = dict(size=16, batch=2, channels=8, multipliers=[1, 2], res_blocks=1, codes=16, code_dim=4, repeats=2)
TINY |= dict(features="random")


# Field of a row, and how the table shows it.
COLUMNS = {
    "ms": ("seconds", milliseconds),
    "least..most": ("all_seconds", spread),
    "x torch": ("time_ratio", lambda x: f"{x:.2f}"),
    "GFLOP": ("flops", lambda x: f"{x / 1e9:,.1f}"),
    "GFLOP/s": ("flops_per_second", lambda x: f"{x / 1e9:,.0f}"),
    "of peak": ("share_of_peak", lambda x: f"{x:.0%}"),
    "temp MiB": ("temp_bytes", mebibytes),
    "RSS MiB": ("rss_bytes", mebibytes),
    "codes off": ("codes_off", lambda x: f"{x:,}"),
    "off": ("off", lambda x: f"{x:.0e}"),
    "n": ("repeats", lambda x: f"{x}"),
}


def make_row(
    problem: Problem,
    name: str,
    own: Measurement,
    rival: Measurement | None = None,
    flops: float | None = None,
    peak: float | None = None,
) -> dict:
    """The figures of a program by field; fields without a figure are left out.

    Args:
        problem: sizes.
        name: of the program, for the table.
        own: its measurement.
        rival: torch's of the same work, `own` itself in its own row.
        flops: of the work.
        peak: FLOP/s of the machine's products of matrices.
    """
    row = dict(size=problem.size, program=name, failure=own.failure)
    if own.temp_bytes is not None:
        row["temp_bytes"] = own.temp_bytes
    if flops is not None:
        row["flops"] = flops
    if own.failure:
        return row
    row |= dict(seconds=own.median, all_seconds=own.seconds, repeats=len(own.seconds))
    row["rss_bytes"] = own.peak_bytes
    if flops is not None:
        row["flops_per_second"] = flops / own.median
        if peak is not None:
            row["share_of_peak"] = row["flops_per_second"] / peak
    if rival is None or rival.failure:
        return row
    row["time_ratio"] = own.median / rival.median
    if own is not rival:
        floats = own.result.keys() - {"codes"}
        row["off"] = max(relative_error(own.result[key], rival.result[key]) for key in floats)
        if "codes" in own.result:
            row["codes_off"] = int(np.sum(own.result["codes"] != rival.result["codes"]))
    return row


def measure(problem: Problem, device: str | None, limits: Limits, with_step: bool) -> list[dict]:
    """The rows of one arithmetic; `device` is torch's, None leaves it out."""
    programs = {}
    for name in FUNCTIONS:
        programs[name] = partial(jax_program, name, problem)
        if device is not None:
            programs[f"{name}, torch"] = partial(torch_program, name, device, problem)
    if with_step:
        programs[STEP] = partial(step_program, problem)
    measured = measure_in_turns(programs, limits)
    peak, rows = matmul_peak(DTYPES[problem.dtype]), []
    for name in programs:
        work = name.removesuffix(", torch")
        label = name if problem.dtype == "float32" else f"{name}, {problem.dtype}"
        rival = measured.get(f"{work}, torch")
        rows.append(make_row(problem, label, measured[name], rival, count_flops(work, problem), peak))
    return rows


def describe(problem: Problem, args: argparse.Namespace, rival: Rival, load: float) -> str:
    """Sizes, machine and versions, and what the columns are."""
    packages = ("jax", "jaxlib", *(RIVALS if rival.device else ()))
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    count = count_parameters(param_shapes(problem.model))
    return (
        f"{problem.batch} images of {problem.size}x{problem.size} px; {problem.channels} channels x "
        f"{problem.multipliers}, {problem.codes:,} codes of {problem.code_dim} dimensions, {count:,} "
        f"parameters; median of up to {args.repeats} repeats in turns, seed {args.seed}; JAX on "
        f"{jax.devices()[0].device_kind}, {rival.about}; "
        f"{describe_machine()}, load {load:.1f} before; {versions}. "
        "x torch: time over torch's; GFLOP: of plain convolutions; of peak: share of what products of "
        "matrices reach here; temp: of the compiled program beside arguments and results; RSS: growth of "
        f"the process, compiling included; codes off: how many are not torch's; off: largest difference of "
        f"the images, or of the gradients at both ends, as a share of torch's largest; {STEP}: with "
        f"{problem.features} features."
    )


def main(argv: Sequence[str]) -> None:
    """Measures, prints the table, and writes it where --output says."""
    args = parse(make_parser(), argv, TINY)
    fields = {field.name for field in dataclasses.fields(Problem)} - {"dtype", "multipliers"}
    given = {name: getattr(args, name) for name in fields}
    problem = Problem(**given, multipliers=tuple(args.multipliers), dtype="float32")
    rival = find_rival(args, "diffusers")
    load = warn_if_busy()
    limits = make_limits(args)
    rows = measure(problem, rival.device, limits, with_step=True)
    if jax.default_backend() == "gpu":
        rows += measure(dataclasses.replace(problem, dtype="bfloat16"), rival.device, limits, with_step=True)
    caption = describe(problem, args, rival, load)
    publish(args, rows, COLUMNS, caption, CASE)


def make_parser() -> Parser:
    """The flags."""
    parser = Parser("regvq_jax.bench tokenizer", __doc__)
    add = parser.add_argument
    add("--size", type=positive, default=128, help="pixels along each side of an image (default 128)")
    add("--batch", type=positive, default=1, help="images (default 1)")
    add("--channels", type=positive, default=128, help="width at full resolution (default 128)")
    add("--multipliers", type=positive, nargs="+", default=[1, 1, 2, 2, 4], help="widths of the levels")
    add("--res-blocks", type=positive, default=2, help="of each level (default 2)")
    add("--codes", type=positive, default=1024, metavar="K", help="codebook size (default 1024)")
    add("--code-dim", type=positive, default=256, help="length of a code vector (default 256)")
    add("--features", choices=("vgg19", "random"), default="vgg19", help="of the GAN step (default vgg19)")
    add_shared_flags(parser, repeats=5)
    return parser
