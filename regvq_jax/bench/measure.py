"""Time and peak memory of rival programs: each in a fresh process, taking turns."""

import dataclasses
import multiprocessing
import os
import platform
import re
import resource
import signal
import statistics
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from regvq_jax.huge_pages import TUNABLES
from regvq_jax.progress import log

# What JAX and torch say, each in its own error, where an array cannot be had.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory")


@dataclasses.dataclass(frozen=True)
class Program:
    """What one process repeats.

    Attributes:
        run: does the work to its end and returns named arrays.
        temp_bytes: memory for what is neither argument nor result, as the compiler planned it; None where
            nothing is compiled.
    """

    run: Callable[[], dict[str, Any]]
    temp_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The figures of one program.

    Attributes:
        seconds: of each repeat, without the first run.
        temp_bytes: as in `Program`.
        peak_bytes: highest resident memory of the process minus what it had with its inputs made; holds
            compiling, too.
        result: what the last repeat returned.
        failure: why there are no figures; "" where there are.
    """

    seconds: tuple[float, ...] = ()
    temp_bytes: int | None = None
    peak_bytes: int = 0
    result: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    failure: str = ""

    @property
    def median(self) -> float:
        """Of `seconds`."""
        return statistics.median(self.seconds)


@dataclasses.dataclass(frozen=True)
class Limits:
    """When a program has had enough.

    Attributes:
        repeats: timed runs.
        seconds: that building, the first run, or one repeat may take; a program that has used them up in all
            is repeated no more.
        memory_bytes: of its own that a process may have.
        short: seconds; where the last run took less, a turn begins with one that is not timed: in a training
            steps follow each other, and do not find another program's caches and cores that sleep.
    """

    repeats: int
    seconds: float
    memory_bytes: int
    short: float = 2.0


def measure_in_turns(
    programs: Mapping[str, Callable[[], Callable[[], Program]]], limits: Limits
) -> dict[str, Measurement]:
    """Measures programs in one process each; a round runs each of them once, so that noise hits all.

    Every second round goes the other way round: none is always the one behind the heaviest. A turn of a
    program whose last run took less than `limits.short` begins with a run that is not timed.

    Args:
        programs: by name, a picklable function that makes the inputs and returns the function that builds
            the program from them. Both are called in the program's own process.
        limits: of each program.

    Returns:
        By name. A program that fails for want of memory or time says so in `failure`.

    Raises:
        RuntimeError: a process ended for another reason; it has printed its traceback.
    """
    workers = {}
    try:
        for name, make_inputs in programs.items():
            workers[name] = _Worker(make_inputs, limits)
            workers[name].prepare()
        order = list(workers.values())
        for _ in range(limits.repeats):
            for worker in order:
                worker.repeat()
            order.reverse()
        measurements = {name: worker.finish() for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.close()
    for name, measured in measurements.items():
        log.info("%s: %s", name, measured.failure or f"{measured.median:.3f} s")
    return measurements


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def memory_limits(memory_bytes: int) -> tuple[int, int]:
    """(soft, hard) of a process' data, as much as this one may allow it."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    most = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
    return most, most


def warn_if_busy() -> float:
    """The number of programs that wanted a core in the last minute; says so if they are in the way."""
    load = os.getloadavg()[0]
    if load > num_cores() / 2:
        log.warning(
            "others use this machine (load %.1f on %d cores): times mean little, least where a program's "
            "threads wait for each other",
            load,
            num_cores(),
        )
    return load


def peak_bytes(pid: int | None = None) -> int | None:
    """The highest resident memory of a process so far, by default this one; None where nothing tells."""
    # ru_maxrss would begin with the memory of the parent, which a new process has for a moment.
    status = Path(f"/proc/{pid or 'self'}/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    if found:
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if pid is None else None


def describe_machine() -> str:
    """The processor, its cores that this process may use, the memory, and how it is allocated."""
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = [platform.machine(), f"{num_cores()} CPU cores", f"{gib:.0f} GiB"]
    if os.environ.get(TUNABLES):
        # All programs have it, the rivals, too.
        parts.append(f"{TUNABLES}={os.environ[TUNABLES]}")
    return ", ".join([*parts, f"Python {platform.python_version()}"])


class _Worker:
    """The parent's end of a program's process."""

    def __init__(self, make_inputs, limits: Limits):
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._limits, self._seconds, self._spent = limits, [], 0.0
        self._temp_bytes, self._failure = None, ""
        arguments = (theirs, make_inputs, limits)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def prepare(self) -> None:
        """Waits until the program is built and has run once, which is not timed."""
        self._temp_bytes = self._receive()
        if not self._failure:
            self._receive()

    def repeat(self) -> None:
        """Runs the program once, unless it has had its time."""
        if self._failure or (self._seconds and self._spent >= self._limits.seconds):
            return
        self._connection.send("run")
        seconds = self._receive()
        if not self._failure:
            self._seconds.append(seconds)

    def finish(self) -> Measurement:
        """All figures."""
        grown, result = 0, {}
        if not self._failure:
            self._connection.send("finish")
            grown, result = self._receive() or (grown, result)
        return Measurement(tuple(self._seconds), self._temp_bytes, grown, result, self._failure)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()

    def _receive(self):
        """The process' next answer; None, and a failure noted, where it has none to give."""
        began = time.monotonic()
        if not self._connection.poll(self._limits.seconds):
            self._failure = f"not done in {self._limits.seconds:.0f} s"
            self.close()
            return None
        self._spent += time.monotonic() - began
        try:
            kind, answer = self._connection.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            if code >= 0:
                raise RuntimeError(f"a measured process ended with code {code}") from None
            # Where the allocator does not raise, or the system was faster than our limit.
            kind, answer = "failure", f"ended by {signal.Signals(-code).name}, as for want of memory"
        if kind == "failure":
            self._failure = answer
            return None
        return answer


def _serve(connection: Connection, make_inputs, limits: Limits) -> None:
    """The process of one program: answers until it is ended."""
    resource.setrlimit(resource.RLIMIT_DATA, memory_limits(limits.memory_bytes))
    try:
        build = make_inputs()
        before = peak_bytes()
        program = build()
        connection.send(("built", program.temp_bytes))
        result, seconds = _timed(program.run)
        connection.send(("ready", None))
        while connection.recv() == "run":
            for _ in range(2 if seconds < limits.short else 1):
                # The last result must not stand beside the next.
                del result
                result, seconds = _timed(program.run)
            connection.send(("seconds", seconds))
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not any(x in str(error).lower() for x in OUT_OF_MEMORY):
            raise
        connection.send(("failure", f"does not fit in {limits.memory_bytes / 2**30:.3g} GiB"))
        return
    grown = peak_bytes() - before
    connection.send(("done", (grown, {name: _to_numpy(x) for name, x in result.items()})))
    # Ended by the parent: leaving would race with the sending of large results.
    connection.recv()


def _timed(run: Callable[[], dict]) -> tuple[dict, float]:
    began = time.perf_counter()
    result = run()
    return result, time.perf_counter() - began


def _to_numpy(x) -> np.ndarray:
    # torch does not fetch a tensor from a GPU unasked.
    return np.asarray(x.cpu() if hasattr(x, "cpu") else x)
