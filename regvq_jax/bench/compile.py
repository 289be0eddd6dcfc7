"""Seconds from the start of a training's process to its first step, without and with a compilation cache.

    python -m regvq_jax.bench compile
    python -m regvq_jax.bench compile --config=configs/quickstart.py --repeats=1 --output=compile.md
    python -m regvq_jax.bench compile --tiny --json=compile.json

Runs the tokenizer stage as users do, `python -m regvq_jax.main`, each time in a fresh process and a fresh
workdir. "cold" starts with an empty compilation cache, "cached" with that of the cold run. A process is
ended once the first step is in its metrics.jsonl; what it logs on the way says where the seconds go. Call it
where the config lies. There is no rival: a run is one start of both kinds, --seed that of the training, and
--tiny one start of each of the quickstart's tiny config.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from regvq_jax.bench.flags import add_shared_flags, make_limits, parse
from regvq_jax.bench.measure import Limits, describe_machine, memory_limits, peak_bytes, warn_if_busy
from regvq_jax.bench.table import mebibytes, publish
from regvq_jax.command_line import Parser
from regvq_jax.errors import UserError
from regvq_jax.huge_pages import HUGE_PAGES, TUNABLES

COLD, CACHED = "cold", "cached"
TARGETS = {COLD: 40.0, CACHED: 10.0}  # Seconds, for the quickstart on two CPU cores.
CASE = ("n", "start")
POLL_SECONDS = 0.02
OURS = (TUNABLES, HUGE_PAGES)
TINY = dict(config="configs/quickstart.py:tiny", repeats=1)
# What a log line holds when a part ends.
MARKS = {"starting": ": starting", "initialised": ": compiling the step", "compiled": ": step compiled in"}


class Start(NamedTuple):
    """One start of a training.

    Attributes:
        seconds: to the first step.
        marks: seconds to each of `MARKS`; what was not logged is left out.
        peak_bytes: highest resident memory of the process until then; None where the system does not tell.
    """

    seconds: float
    marks: Mapping[str, float]
    peak_bytes: int | None = None


def measure_start(config: str, cache: Path, limits: Limits, seed: int) -> Start:
    """Starts a training in a process of its own and ends it after its first step.

    Args:
        config: as of main's --config.
        cache: directory of compiled programs.
        limits: the seconds it may take, and its memory where the system can limit that of another process.
        seed: of the training.

    Raises:
        UserError: it ended before, as for want of memory, or took longer than it may.
    """
    lines: list[tuple[float, str]] = []
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "regvq_jax.main", f"--config={config}", "--stage=tokenizer"]
        command += [f"--workdir={scratch}/run", f"--compilation_cache={cache}", f"--config.seed={seed}"]
        # As where a user calls it, whose command starts itself again in huge pages.
        environment = {name: value for name, value in os.environ.items() if (name, value) != OURS}
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment | {"PYTHONUNBUFFERED": "1"},
        )

        def listen():
            lines.extend((time.perf_counter() - began, line) for line in process.stdout)

        listener = threading.Thread(target=listen)
        listener.start()
        metrics = Path(scratch, "run", "tokenizer", "metrics.jsonl")
        try:
            if hasattr(resource, "prlimit"):
                resource.prlimit(process.pid, resource.RLIMIT_DATA, memory_limits(limits.memory_bytes))
            while not (metrics.exists() and "\n" in metrics.read_text()):
                if process.poll() is not None:
                    listener.join()
                    gib = limits.memory_bytes / 2**30
                    raise UserError(
                        f"{' '.join(command)} ended before its first step (it may have {gib:.0f} GiB, by "
                        f"--memory-limit): {_tail(lines)}"
                    )
                if time.perf_counter() - began > limits.seconds:
                    raise UserError(f"{config} took no step in {limits.seconds:.0f} s; raise --time-limit.")
                time.sleep(POLL_SECONDS)
            seconds = time.perf_counter() - began
            most_bytes = peak_bytes(process.pid)
        finally:
            process.kill()
            process.wait()
            listener.join()
    return Start(seconds, find_marks(lines), most_bytes)


def find_marks(lines: Sequence[tuple[float, str]]) -> dict[str, float]:
    """When each of `MARKS` was logged first, of (seconds, line)."""
    marks: dict[str, float] = {}
    for seconds, line in lines:
        for name, text in MARKS.items():
            if text in line:
                marks.setdefault(name, seconds)
    return marks


COLUMNS = {
    "seconds": ("seconds", lambda x: f"{x:.1f}"),
    "least..most": ("all_seconds", lambda x: f"{min(x):.1f}..{max(x):.1f}"),
    "target": ("target", lambda x: f"{x:.0f}"),
    "until init": ("starting", lambda x: f"{x:.1f}"),
    "init": ("init", lambda x: f"{x:.1f}"),
    "compile": ("compile", lambda x: f"{x:.1f}"),
    "first step": ("first_step", lambda x: f"{x:.1f}"),
    "RSS MiB": ("rss_bytes", mebibytes),
}


def make_row(name: str, starts: Sequence[Start]) -> dict[str, Any]:
    """The figures of equal starts; parts and memory are those of the median one."""
    ordered = sorted(starts, key=lambda start: start.seconds)
    median = ordered[len(ordered) // 2]
    row = dict(n=len(starts), start=name, failure="", seconds=median.seconds, target=TARGETS[name])
    row["all_seconds"] = [start.seconds for start in starts]
    if median.peak_bytes is not None:
        row["rss_bytes"] = median.peak_bytes
    marks = median.marks
    if set(marks) == set(MARKS):
        row |= dict(
            starting=marks["starting"],
            init=marks["initialised"] - marks["starting"],
            compile=marks["compiled"] - marks["initialised"],
            first_step=median.seconds - marks["compiled"],
        )
    return row


def main(argv: Sequence[str]) -> None:
    """Measures, prints the table, and writes it where the flags say."""
    args = parse(make_parser(), argv, TINY)
    load, limits = warn_if_busy(), make_limits(args)
    starts: dict[str, list[Start]] = {COLD: [], CACHED: []}
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as cache:
            for own in starts.values():
                own.append(measure_start(args.config, Path(cache), limits, args.seed))
    rows = [make_row(name, own) for name, own in starts.items()]
    publish(args, rows, COLUMNS, describe(args, load), CASE)


def describe(args: argparse.Namespace, load: float) -> str:
    """What was run, on what, and what the columns are."""
    return (
        f"--config={args.config} --stage=tokenizer; median of {args.repeats}, seed {args.seed}; "
        f"{describe_machine()}, load {load:.1f} before; jax {jax.__version__}. seconds: from the start of "
        "the process until the first step is logged; target: of the quickstart, cold and cached; until init: "
        "imports, config and data; init: making the first state; compile: of the step; first step: running "
        "and logging it; RSS: the most that the process had until then; n: starts."
    )


def _tail(lines: Sequence[tuple[float, str]]) -> str:
    return " ".join(line.strip() for _, line in lines[-3:])


def make_parser() -> Parser:
    """The flags."""
    parser = Parser("regvq_jax.bench compile", __doc__)
    parser.add_argument("--config", default="configs/quickstart.py", help="default configs/quickstart.py")
    add_shared_flags(parser, repeats=3, has_rival=False)
    return parser
