"""The table of a benchmark, on the terminal and in a file."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from regvq_jax.files import write_json_atomic, write_text_atomic

MIN_WIDTH = 120
LONGEST = 400
NAME_WIDTH = 24  # a longer name goes on in the next line

Columns = Mapping[str, tuple[str, Callable[[Any], str]]]
# The fields that say what a row is: a number, and a name.
QUANTIZER = ("codes", "quantizer")


def make_cells(
    rows: Sequence[Mapping], columns: Columns, case: tuple[str, str] = QUANTIZER
) -> list[list[str]]:
    """The table as text, its heading first; "-" where a row has no figure.

    Args:
        rows: of each case the two fields of `case`, "failure", and its figures by field.
        columns: field and form of the figures by heading.
        case: fields of a number and of a name that say what a row is.
    """
    number, name = case
    cells = [[number, name, *columns]]
    for row in rows:
        texts = {
            heading: show(row[field]) if field in row else "-" for heading, (field, show) in columns.items()
        }
        label = row[name] + (f": {row['failure']}" if row["failure"] else "")
        cells.append([f"{row[number]:,}", label, *texts.values()])
    return cells


def show(rows: Sequence[Mapping], columns: Columns, caption: str, case: tuple[str, str] = QUANTIZER) -> None:
    """Prints the table; args as of `make_cells`."""
    # In a Text brackets are brackets.
    table = Table(caption=Text(caption), caption_justify="left", box=box.SIMPLE_HEAD)
    heading, *body = make_cells(rows, columns, case)
    for index, text in enumerate(heading):
        is_name = index == 1
        width = min(NAME_WIDTH, max(len(line[1]) for line in body)) if is_name else None
        table.add_column(text, justify="left" if is_name else "right", width=width)
    for line in body:
        table.add_row(*line)
    # Rich cuts numbers to fit; a line that is too long is the lesser evil.
    console = Console(width=LONGEST)
    width = max(MIN_WIDTH, Console().width, console.measure(table).maximum)
    console.print(table, width=width)


def write(
    path: Path, rows: Sequence[Mapping], columns: Columns, caption: str, case: tuple[str, str] = QUANTIZER
) -> None:
    """Writes the table as Markdown, or all figures as JSON, and prints the path.

    Raises:
        UserError: `path` cannot be written.
    """
    if path.suffix == ".json":
        write_figures(path, rows, caption)
        return
    heading, *body = (f"| {' | '.join(line)} |" for line in make_cells(rows, columns, case))
    rule = "| ---: | --- |" + " ---: |" * len(columns)
    write_text_atomic(path, "\n".join([heading, rule, *body, "", caption, ""]))
    print(path)


def publish(
    args: argparse.Namespace, rows: Sequence[Mapping], columns: Columns, caption: str, case: tuple[str, str]
) -> None:
    """Prints the table, and writes it where --output and --json say; args as of `make_cells`."""
    show(rows, columns, caption, case)
    if args.output is not None:
        write(args.output.expanduser(), rows, columns, caption, case)
    if args.json is not None:
        write_figures(args.json.expanduser(), rows, caption)


def write_figures(path: Path, rows: Sequence[Mapping], caption: str) -> None:
    """Writes all figures as JSON, and prints the path.

    Raises:
        UserError: `path` cannot be written.
    """
    write_json_atomic(path, {"about": caption, "rows": rows})
    print(path)


def mebibytes(size: float) -> str:
    """A number of bytes in whole MiB."""
    return f"{size / 2**20:,.0f}"


def milliseconds(seconds: float) -> str:
    """A time in milliseconds: two decimals below 10 ms, one below 100."""
    decimals = 2 if seconds < 0.01 else 1 if seconds < 0.1 else 0
    return f"{seconds * 1e3:,.{decimals}f}"


def spread(seconds: Sequence[float]) -> str:
    """The least and the most of some times, in milliseconds."""
    return f"{milliseconds(min(seconds))}..{milliseconds(max(seconds))}"


def output_path(text: str) -> Path:
    """A file name that ends in .md or .json, as the type of an argument."""
    if Path(text).suffix not in (".md", ".json"):
        raise argparse.ArgumentTypeError(f"{text} ends neither in .md nor in .json")
    return Path(text)
