"""The flags that all benchmarks share."""

import argparse
import importlib.util
from pathlib import Path

from regvq_jax.bench.table import output_path
from regvq_jax.command_line import Parser, positive

TORCH, NONE = "torch", "none"


def add_shared_flags(parser: Parser, *, repeats: int, time_limit: int = 300, memory_limit: int = 16) -> None:
    """Adds --against, --repeats, --seed, --time-limit, --memory-limit, --tiny, --json and --output.

    Args:
        parser: of a benchmark.
        repeats, time_limit, memory_limit: defaults.
    """
    add = parser.add_argument
    add("--against", choices=(TORCH, NONE), default=TORCH, help="the rival (default torch, if installed)")
    add("--repeats", type=positive, default=repeats, help=f"timed runs of each (default {repeats})")
    add("--seed", type=int, default=0)
    limits = {"--time-limit": (time_limit, "SECONDS"), "--memory-limit": (memory_limit, "GIB")}
    for name, (default, unit) in limits.items():
        add(name, type=positive, default=default, metavar=unit, help=f"for one program (default {default})")
    add("--tiny", action="store_true", help="a trial of the benchmark itself in seconds, without torch")
    add("--json", type=Path, metavar="FILE", help="all figures")
    add("--output", type=output_path, metavar="FILE", help=".md for the table, .json for all figures")


def wants_torch(args: argparse.Namespace, *packages: str) -> bool:
    """Whether the rival runs; says so where it was asked for and cannot be.

    Args:
        args: as `add_shared_flags` made them.
        *packages: modules that the rival needs besides torch.
    """
    if args.tiny or args.against == NONE:
        return False
    missing = [name for name in (TORCH, *packages) if importlib.util.find_spec(name) is None]
    if missing:
        print(f"Without a comparison: no {', '.join(missing)} here; pip install -e '.[parity]' brings it.")
    return not missing
