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
NAME_WIDTH = 24  # a longer name goes on in the next line

Columns = Mapping[str, tuple[str, Callable[[Any], str]]]


def make_cells(rows: Sequence[Mapping], columns: Columns) -> list[list[str]]:
    """The table as text, its heading first; "-" where a row has no figure.

    Args:
        rows: "codes", "quantizer" and "failure" of each case, and its figures by field.
        columns: field and form of the figures by heading.
    """
    cells = [["codes", "quantizer", *columns]]
    for row in rows:
        texts = {
            heading: show(row[field]) if field in row else "-" for heading, (field, show) in columns.items()
        }
        name = row["quantizer"] + (f": {row['failure']}" if row["failure"] else "")
        cells.append([f"{row['codes']:,}", name, *texts.values()])
    return cells


def show(rows: Sequence[Mapping], columns: Columns, caption: str) -> None:
    """Prints the table; args as of `make_cells`."""
    # In a Text brackets are brackets.
    table = Table(caption=Text(caption), caption_justify="left", box=box.SIMPLE_HEAD)
    heading, *body = make_cells(rows, columns)
    for index, text in enumerate(heading):
        is_name = index == 1
        width = NAME_WIDTH if is_name else None
        table.add_column(text, justify="left" if is_name else "right", width=width)
    for line in body:
        table.add_row(*line)
    console = Console(width=max(MIN_WIDTH, Console().width))
    console.print(table)


def write(path: Path, rows: Sequence[Mapping], columns: Columns, caption: str) -> None:
    """Writes the table as Markdown, or all figures as JSON, and prints the path.

    Raises:
        UserError: `path` cannot be written.
    """
    if path.suffix == ".json":
        write_json_atomic(path, {"about": caption, "rows": rows})
    else:
        heading, *body = (f"| {' | '.join(line)} |" for line in make_cells(rows, columns))
        rule = "| ---: | --- |" + " ---: |" * len(columns)
        write_text_atomic(path, "\n".join([heading, rule, *body, "", caption, ""]))
    print(path)


def output_path(text: str) -> Path:
    """A file name that ends in .md or .json, as the type of an argument."""
    if Path(text).suffix not in (".md", ".json"):
        raise argparse.ArgumentTypeError(f"{text} ends neither in .md nor in .json")
    return Path(text)
