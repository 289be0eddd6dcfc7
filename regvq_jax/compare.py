"""One table, and pictures side by side, of the tokenizers of several runs on the same data.

    python -m regvq_jax.compare runs/nearest runs/gumbel runs/regularized --output=comparison

Shows the table and writes DIR/comparison.md with the same table, DIR/codebook_comparison.png and
DIR/reconstruction_comparison.png. Figures are those of each run's last evaluation; the best are marked.
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from regvq_jax.command_line import Parser, positive, run_command
from regvq_jax.data.ranges import to_uint8, to_unit_range
from regvq_jax.errors import UserError
from regvq_jax.evaluate import sheets
from regvq_jax.evaluate.codebook_chart import codebook_comparison
from regvq_jax.files import check_writable, read_json, report_write_errors, write_text_atomic
from regvq_jax.models.quantizer import IMPLICIT_KINDS
from regvq_jax.models.tokenizer import ImageTokenizer
from regvq_jax.progress import track
from regvq_jax.trained import load_tokenizer
from regvq_jax.trainers import build_data
from regvq_jax.workdir import FREE_FIELDS, MISSING, flatten, load_config

PyTree = Any
MIN_WIDTH = 120
TABLE = "comparison.md"
RECONSTRUCTIONS, CODEBOOKS = "reconstruction_comparison.png", "codebook_comparison.png"


@dataclasses.dataclass(frozen=True)
class Column:
    """A figure of the table.

    Attributes:
        label: its heading.
        tag: in a run's figures.
        style: of its numbers.
        best: "max" or "min"; "" where there is no better or worse.
        factor: numbers are shown times this.
    """

    label: str
    tag: str
    style: str = "{:,.0f}"
    best: str = ""
    factor: float = 1.0


COLUMNS = (
    Column("codes", "codebook_size"),
    Column("PSNR, dB", "eval/reconstruction/psnr", "{:.2f}", "max"),
    Column("SSIM", "eval/reconstruction/ssim", "{:.3f}", "max"),
    Column("L1", "eval/reconstruction/l1", "{:.4f}", "min"),
    Column("LPIPS (VGG)", "eval/reconstruction/lpips_vgg16", "{:.4f}", "min"),
    Column("LPIPS (Alex)", "eval/reconstruction/lpips_alexnet", "{:.4f}", "min"),
    Column("usage, %", "codebook/usage", "{:.1f}", "max", factor=100.0),
    Column("perplexity", "codebook/perplexity", "{:,.1f}", "max"),
    Column("tokens", "codebook/tokens"),
    Column("steps", "step"),
    Column("images/s", "perf/images_per_sec", "{:,.1f}"),
)


# Distances of sets carry the protocol in their names: there is a column for each that a run has.
DISTANCES = {"fid": "{:.2f}", "fd": "{:.1f}", "kid": "{:.4f}"}


def columns_of(figures: Sequence[Mapping[str, float]]) -> list[Column]:
    """`COLUMNS`, with the distances between sets that any run was judged by before the codebook's."""
    tags = dict.fromkeys(tag for run in figures for tag in run if not tag.endswith("_std"))
    found = []
    for tag in tags:
        kind, _, protocol = tag.removeprefix("eval/reconstruction/").partition("_")
        if kind in DISTANCES and tag.startswith("eval/reconstruction/"):
            found.append(Column(f"r{kind.upper()} ({protocol})", tag, DISTANCES[kind], "min"))
    place = [column.tag for column in COLUMNS].index("codebook/usage")
    return [*COLUMNS[:place], *found, *COLUMNS[place:]]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run with a finished tokenizer.

    Attributes:
        name: of its row.
        workdir: its directory.
        config: its config.
        figures: by tag, of its last evaluation.
        counts: int64 [K], how often each code occurred in it.
    """

    name: str
    workdir: Path
    config: ConfigDict
    figures: dict[str, float]
    counts: np.ndarray


def read_run(workdir: Path, name: str) -> Run:
    """What the run in `workdir` has recorded of its tokenizer.

    Raises:
        UserError: the directory is not a workdir, or its tokenizer is not trained to the end.
    """
    config = load_config(workdir)
    stage = workdir / "tokenizer"
    if not (stage / "result.json").exists():
        raise UserError(
            f"{workdir} has no finished tokenizer to compare: run its command to the end, or leave it out."
        )
    codebook = read_json(stage / "codebook.json")
    figures = read_json(stage / "result.json") | {"codebook_size": codebook["codebook_size"]}
    return Run(name, workdir, config, figures, np.asarray(codebook["counts"], np.int64))


def check_comparable(runs: Sequence[Run]) -> None:
    """Makes sure that all runs were trained and judged on the same images.

    Raises:
        UserError: names the first field in which two runs differ, with both values.
    """
    first, *others = (
        flatten({"config": {"data": run.config.data.to_dict()}})
        | {"the number of held-out images": run.figures["eval/reconstruction/images"]}
        for run in runs
    )
    free = tuple(f"config.{field}" for field in FREE_FIELDS)
    for run, other in zip(runs[1:], others, strict=True):
        for name in sorted(first.keys() | other.keys()):
            values = first.get(name, MISSING), other.get(name, MISSING)
            if values[0] != values[1] and not name.startswith(free):
                raise UserError(
                    f"{runs[0].workdir} and {run.workdir} cannot be compared: {name} is {values[0]} in the "
                    f"first and {values[1]} in the second; leave one of them out."
                )


def table_cells(runs: Sequence[Run]) -> dict[str, list[tuple[str, bool]]]:
    """The table, column by column.

    Args:
        runs: in the order of the rows.

    Returns:
        (text, whether it is the best of its column) of every run, by label. Figures that no run has are left
        out; equal texts are equally good, and alone none is best.
    """
    cells = {}
    for column in columns_of([run.figures for run in runs]):
        numbers = [column.factor * float(run.figures.get(column.tag, math.nan)) for run in runs]
        if not np.all(np.isnan(numbers)):
            texts = ["-" if math.isnan(number) else column.style.format(number) for number in numbers]
            best = {"max": np.nanargmax, "min": np.nanargmin}.get(column.best)
            winner = texts[best(numbers)] if best and len(runs) > 1 else None
            cells[column.label] = [(text, text == winner) for text in texts]
    return cells


def rich_table(runs: Sequence[Run]) -> Table:
    """The table for a terminal; an asterisk marks the best, since colours do not reach every place."""
    table = Table(title=describe(runs), caption="* best of the column", box=box.SIMPLE_HEAD)
    table.add_column("tokenizer", no_wrap=True)
    cells = table_cells(runs)
    for label in cells:
        table.add_column(label, justify="right")
    for row, run in enumerate(runs):
        columns = (column[row] for column in cells.values())
        table.add_row(
            run.name, *(Text(f"{text}*", "bold green") if best else f"{text} " for text, best in columns)
        )
    return table


def markdown(runs: Sequence[Run]) -> str:
    """The table and the pictures as a Markdown page; the best figures are bold."""
    cells = table_cells(runs)
    lines = [["tokenizer", *cells], ["---", *("---:" for _ in cells)]]
    for row, run in enumerate(runs):
        columns = (column[row] for column in cells.values())
        lines.append([run.name, *(f"**{text}**" if best else text for text, best in columns)])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return (
        f"# Tokenizers compared\n\n{describe(runs)}. Figures of the last evaluation; the best are bold."
        f"\n\n{table}\n\n"
        f"![Originals, and what each tokenizer makes of them]({RECONSTRUCTIONS})\n\n"
        f"![How often each code is used, and where it lies]({CODEBOOKS})\n"
    )


def describe(runs: Sequence[Run]) -> str:
    """What the runs were judged on, in half a line."""
    data, images = runs[0].config.data, runs[0].figures["eval/reconstruction/images"]
    return f"{images:,.0f} held-out images of {data.source} at {data.image_size} px"


def example_images(config: ConfigDict, count: int) -> np.ndarray:
    """Evenly chosen held-out images, as an evaluation sees them: uint8 [B, S, S, 3]."""
    source = build_data.open_source(config, "heldout")
    elements = []
    for index in np.linspace(0, len(source) - 1, min(count, len(source))).astype(int):
        element = source[index]
        for transform in build_data.image_transforms(config, training=False):
            element = transform(element)
        elements.append(element["image"])
    return np.stack(elements)


def rebuild(model: ImageTokenizer, params: PyTree, images: np.ndarray) -> np.ndarray:
    """Images through a tokenizer and back: uint8 [B, H, W, 3] -> the same."""
    return np.asarray(to_uint8(jax.jit(model.apply)({"params": params}, to_unit_range(images))))


def code_vectors(model: ImageTokenizer, params: PyTree) -> np.ndarray | None:
    """The codebook, float32 [K, D], or None where there is none to learn."""
    if model.quantizer.kind in IMPLICIT_KINDS:
        return None
    return np.asarray(model.apply({"params": params}, method="code_vectors"))


def main(argv: Sequence[str]) -> None:
    """Compares the runs that the arguments name, and prints the table and the paths of what it wrote."""
    args = make_parser().parse_args(argv)
    # A glob also finds an earlier comparison beside the runs.
    workdirs = dict.fromkeys(path.expanduser().absolute() for path in args.runs if not path.is_file())
    if not workdirs:
        raise UserError("No run to compare: name the workdirs of one or more.")
    common = os.path.commonpath([workdir.parent for workdir in workdirs])
    runs = [read_run(workdir, str(workdir.relative_to(common))) for workdir in workdirs]
    check_comparable(runs)
    output = args.output.expanduser().absolute()
    check_writable(output)

    images = example_images(runs[0].config, args.num_images)
    rebuilt, rivals = {"original": images}, []
    for run in track(runs, "compare", unit="runs"):
        model, params = load_tokenizer(run.config, run.workdir)
        rebuilt[run.name] = rebuild(model, params, images)
        rivals.append((run.name, run.counts, code_vectors(model, params)))
    with report_write_errors(output):
        sheets.labelled_sheet(rebuilt).save(output / RECONSTRUCTIONS)
        codebook_comparison(rivals).save(output / CODEBOOKS)
    write_text_atomic(output / TABLE, markdown(runs))

    # Rich cuts numbers to fit; a line that is too long is the lesser evil.
    console = Console(width=max(MIN_WIDTH, Console().width))
    console.print(rich_table(runs))
    for name in (TABLE, RECONSTRUCTIONS, CODEBOOKS):
        print(output / name)


def make_parser() -> Parser:
    """The flags."""
    parser = Parser("regvq_jax.compare", __doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="workdirs with a finished tokenizer"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="made if need be")
    parser.add_argument("--num-images", type=positive, default=8, help="images to rebuild (default 8)")
    return parser


if __name__ == "__main__":
    run_command(main)
