"""Makes a data set of the paper's ready for training, from the files that you fetched.

    python -m regvq_jax.data prepare ade20k --raw ADEChallengeData2016.zip
    python -m regvq_jax.data prepare coco_captions/2014 --raw DIR_OF_ZIPS --data_dir=/data/tfds

Archives are read in place. A call that was broken off goes on where it stopped. Then train with
--config.data.source=tfds:NAME (and --config.data.data_dir=DIR). tensorflow is not needed.
"""

import argparse
import importlib
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from regvq_jax.command_line import Parser, positive
from regvq_jax.data.tfds_source import default_data_dir
from regvq_jax.data.tree import is_remote
from regvq_jax.errors import UserError
from regvq_jax.files import read_json, report_write_errors
from regvq_jax.settings import did_you_mean

# Imported when they are asked for: tensorflow-datasets takes seconds.
DATASETS = {
    "ade20k": "ade20k:Ade20k",
    "celeba_hq_mask": "celeba_hq_mask:CelebaHqMask",
    "coco_captions": "coco_captions:CocoCaptions",
    "coco_stuff": "coco_stuff:CocoStuff",
    "cub_captions": "cub_captions:CubCaptions",
}


def load_class(name: str) -> type:
    """The builder of a data set.

    Raises:
        UserError: there is none of that name.
    """
    if name not in DATASETS:
        raise UserError(f'There is no data set "{name}".{did_you_mean(name, list(DATASETS))}')
    module, cls = DATASETS[name].split(":")
    return getattr(importlib.import_module(f"regvq_jax.data.datasets.{module}"), cls)


def main(argv: Sequence[str]) -> None:
    """Prepares what the arguments name, and prints what has come of it."""
    args = make_parser().parse_args(argv)
    name, _, config = args.name.partition("/")
    cls = load_class(name)
    known = [c.name for c in cls.BUILDER_CONFIGS]
    if config and config not in known:
        has = f"has {', '.join(known)}" if known else "has no configs"
        raise UserError(f'{name} has no config "{config}": it {has}.')
    options: dict[str, Any] = {"config": config} if config else {}
    data_dir = args.data_dir
    with report_write_errors(data_dir):
        data_dir.mkdir(parents=True, exist_ok=True)
    builder = cls(
        raw=[path if is_remote(path) else os.path.abspath(os.path.expanduser(path)) for path in args.raw],
        num_workers=args.num_workers,
        allow_count_mismatch=args.allow_count_mismatch,
        data_dir=data_dir,
        **options,
    )
    directory = Path(builder.data_dir)
    if directory.exists():
        print(f"{builder.info.full_name} is prepared already; delete {directory} to prepare it anew.")
    else:
        with report_write_errors(directory):
            builder.download_and_prepare()
    show_report(directory)
    print(f"Train with --config.data.source=tfds:{args.name} --config.data.data_dir={data_dir}")


def show_report(directory: Path) -> None:
    """Prints what the directory of a prepared set says of itself, and the paths in it."""
    report = read_json(directory / "report.json")
    table = Table("split", "examples", "MB", "skipped", title=f"{report['name']}, prepared")
    for split, facts in report["splits"].items():
        size = f"{facts['bytes'] / 1e6:,.1f}"
        table.add_row(split, f"{facts['examples']:,}", size, f"{len(facts['skipped']):,}")
    Console().print(table)
    if report.get("raw"):
        print(f"made from {', '.join(report['raw'])}")
    for note in report["notes"]:
        print(f"note: {note}")
    for name, what in (
        ("contact_sheet.png", "some of the examples"),
        ("skipped.txt", "what was left out, and why"),
        ("report.json", "all figures"),
    ):
        if (directory / name).exists():
            print(f"{directory / name}  ({what})")


def describe_datasets() -> str:
    """A paragraph for each data set: what it is, its configs, and what to fetch."""
    lines = []
    for name in DATASETS:
        cls = load_class(name)
        names = ", ".join(c.name for c in cls.BUILDER_CONFIGS)
        text = f"{cls.__doc__.splitlines()[0]}{f' Configs: {names}.' if names else ''} Needs {cls.RAW_HELP}"
        lines.append(textwrap.fill(text, 100, initial_indent=f"{name}: ", subsequent_indent="    "))
    return "\n".join(lines)


def _on_disk(text: str) -> Path:
    """A directory of this machine, as the type of an argument."""
    if is_remote(text):
        raise argparse.ArgumentTypeError(
            f"{text} is a URL, and shards are written to a disk: prepare there, then copy it to the bucket"
        )
    return Path(text).expanduser().absolute()


def make_parser() -> Parser:
    """The flags."""
    parser = Parser("regvq_jax.data prepare", __doc__, epilog=describe_datasets())
    add = parser.add_argument
    add("name", metavar="NAME[/CONFIG]", help="the data set, see below")
    add("--raw", nargs="+", default=(), metavar="PATH", help="folders and archives (zip, tar), or their URLs")
    add("--data_dir", type=_on_disk, default=default_data_dir(), metavar="DIR", help="default: %(default)s")
    add("--num_workers", type=positive, metavar="N", help="threads (default: one for each core)")
    add(
        "--allow_count_mismatch",
        action="store_true",
        help="go on where counts are not the official ones, or more than 1 %% cannot be read",
    )
    return parser
