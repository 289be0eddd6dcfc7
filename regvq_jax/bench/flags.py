"""The flags that all benchmarks share."""

import argparse
import importlib.util
from pathlib import Path

from regvq_jax.bench.measure import Limits
from regvq_jax.bench.table import output_path
from regvq_jax.command_line import Parser, positive

TORCH, NONE = "torch", "none"
PARITY = "pip install -e '.[parity]'"
# Not by the extra: torchvision, which this one asks for and nothing here needs, would come along.
INSTALLED_BY = {"torch_fidelity": "pip install --no-deps torch-fidelity==0.4.0"}


def add_shared_flags(
    parser: Parser, *, repeats: int, time_limit: int = 300, memory_limit: int = 16, has_rival: bool = True
) -> None:
    """Adds --against, --repeats, --seed, --time-limit, --memory-limit, --tiny, --json and --output.

    Args:
        parser: of a benchmark.
        repeats: default.
        time_limit: default, seconds.
        memory_limit: default, GiB.
        has_rival: whether torch can be compared with; if not, --against takes "none" alone.
    """
    add = parser.add_argument
    if has_rival:
        add("--against", choices=(TORCH, NONE), default=TORCH, help="the rival (default torch, if installed)")
    else:
        add("--against", choices=(NONE,), default=NONE, help="there is no rival")
    add("--repeats", type=positive, default=repeats, help=f"timed runs of each (default {repeats})")
    add("--seed", type=int, default=0)
    limits = {"--time-limit": (time_limit, "SECONDS"), "--memory-limit": (memory_limit, "GIB")}
    for name, (default, unit) in limits.items():
        add(name, type=positive, default=default, metavar=unit, help=f"for one program (default {default})")
    add("--tiny", action="store_true", help="a trial of the benchmark itself: little work, and no torch")
    add("--json", type=Path, metavar="FILE", help="all figures")
    add("--output", type=output_path, metavar="FILE", help=".md for the table, .json for all figures")


def make_limits(args: argparse.Namespace) -> Limits:
    """Those of each program; `args` as `add_shared_flags` made them."""
    return Limits(args.repeats, args.time_limit, args.memory_limit * 2**30)


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
        commands = dict.fromkeys(INSTALLED_BY.get(name, PARITY) for name in missing)
        print(f"The rival is left out: no {', '.join(missing)} here; {' && '.join(commands)} brings it.")
    return not missing
