"""The flags that all benchmarks share."""

import argparse
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from regvq_jax.bench.measure import Limits
from regvq_jax.bench.table import output_path
from regvq_jax.command_line import Parser, positive

TORCH, NONE = "torch", "none"
PARITY = "pip install -e '.[parity]'"
# Not by the extra: torchvision, which this one asks for and nothing here needs, would come along.
INSTALLED_BY = {"torch_fidelity": "pip install --no-deps torch-fidelity==0.4.0"}
DEVICES = {"cpu": "cpu", "gpu": "cuda"}  # torch's names of JAX's backends.


class Rival(NamedTuple):
    """Whether torch is measured, too.

    Attributes:
        device: "cpu" or "cuda", as JAX computes on; None where torch is left out.
        about: the same for captions, with the reason.
    """

    device: str | None
    about: str


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
    add("--tiny", action="store_true", help="a trial: little work, no torch; other flags win")
    add("--json", type=Path, metavar="FILE", help="all figures")
    add("--output", type=output_path, metavar="FILE", help=".md for the table, .json for all figures")


def make_limits(args: argparse.Namespace) -> Limits:
    """Those of each program; `args` as `add_shared_flags` made them."""
    return Limits(args.repeats, args.time_limit, args.memory_limit * 2**30)


def parse(parser: Parser, argv: Sequence[str], tiny: Mapping[str, Any]) -> argparse.Namespace:
    """The arguments; with --tiny those that are not given are `tiny`, and there is no rival."""
    args = parser.parse_args(argv)
    if args.tiny:
        parser.set_defaults(against=NONE, **tiny)
        args = parser.parse_args(argv)
    return args


def find_rival(args: argparse.Namespace, *packages: str, backend: str | None = None) -> Rival:
    """Where torch runs: where JAX does, or nowhere, and says so at once if it was asked for.

    Args:
        args: as `add_shared_flags` made them.
        *packages: modules that the rival needs besides torch.
        backend: what ours run on; None for JAX's default here.
    """
    if args.against == NONE:
        return Rival(None, "the rival is left out: not asked for")
    backend = backend or jax.default_backend()
    missing = [name for name in (TORCH, *packages) if importlib.util.find_spec(name) is None]
    if missing:
        commands = dict.fromkeys(INSTALLED_BY.get(name, PARITY) for name in missing)
        reason = f"no {', '.join(missing)} here; {' && '.join(commands)} brings it"
    elif backend not in DEVICES:
        reason = f"JAX runs on a {backend.upper()} here, and torch does not"
    elif DEVICES[backend] == "cuda" and not _has_cuda():
        reason = "JAX runs on a GPU here, and torch finds no CUDA; a torch with CUDA (pytorch.org) brings it"
    else:
        return Rival(DEVICES[backend], f"torch on {DEVICES[backend]}")
    print(f"The rival is left out: {reason}.")
    return Rival(None, f"the rival is left out: {reason}")


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
