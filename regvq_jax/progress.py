"""What the terminal shows while a run works: progress with ETA, and short log lines."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, Self, TypeVar

import absl.logging
import rich.progress
from rich.console import Console

T = TypeVar("T")
# Results go to stdout; everything about the way there goes here.
console = Console(stderr=True)
log = logging.getLogger("regvq_jax")

LIVE_SECONDS = 0.2  # between two drawings of a live bar
PLAIN_SECONDS = 10.0  # between two lines where there is no terminal
FIRST_LINE_SECONDS = 1.0


class Progress:
    """Progress of `total` steps: a live bar on a terminal, otherwise a line every ten seconds.

    Speed and ETA come from the steps of this process alone, so they are right after a resume, and
    from the first update on, so that compiling before it does not spoil them.
    """

    def __init__(
        self,
        name: str,
        total: int,
        start: int = 0,
        seconds_before: float = 0.0,
        *,
        unit: str = "steps",
        enabled: bool = True,
        console: Console = console,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Begins to show progress, unless everything is done already.

        Args:
            name: what is going on, e.g. the stage.
            total: steps in all.
            start: steps that earlier processes have done.
            seconds_before: the time they took.
            unit: plural of what is counted.
            enabled: False shows nothing (processes other than the first).
            console: where to show it.
            clock: seconds, monotonic.
        """
        self.name, self.total, self.step = name, total, start
        self._unit, self._clock, self._console = unit, clock, console
        self._seconds_before = seconds_before
        self._began = clock()
        self._first = (self._began, start)  # the clock and the step that the speed counts from
        self._updates = 0
        self._first_update = self._first
        self._shown: dict[str, Any] = {}
        self._printed: tuple[float, int] | None = None
        self._enabled = enabled and start < total
        self._bar = None
        if self._enabled and console.is_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}", markup=False),
                rich.progress.BarColumn(bar_width=20),
                rich.progress.TextColumn("{task.fields[text]}", markup=False),
                console=console,
                auto_refresh=False,
            )
            self._task = self._bar.add_task(f"{name:<10}", total=total, completed=start, text="")
            self._bar.start()

    @property
    def seconds(self) -> float:
        """Seconds since the beginning, earlier processes included."""
        return self._seconds_before + self._clock() - self._began

    @property
    def steps_per_second(self) -> float | None:
        """Speed of this process, or None before there is one."""
        began, first_step = self._first
        steps, elapsed = self.step - first_step, self._clock() - began
        return steps / elapsed if steps > 0 and elapsed > 0 else None

    @property
    def eta(self) -> float | None:
        """Seconds to go, or None before there is a speed."""
        speed = self.steps_per_second
        return None if speed is None else (self.total - self.step) / speed

    def update(self, step: int, **shown: float | str) -> None:
        """Notes that `step` steps are done.

        Args:
            step: in all, those of earlier processes included.
            **shown: put at the end of the line, e.g. loss=0.123.
        """
        self.step, self._shown = step, shown
        self._updates += 1
        now = self._clock()
        if self._updates == 1:
            self._first_update = (now, step)
        elif step > self._first_update[1]:
            self._first = self._first_update
        if not self._enabled:
            return
        began, interval = self._began, FIRST_LINE_SECONDS
        if self._printed is not None:
            began, interval = self._printed[0], PLAIN_SECONDS
        if self._bar is not None:
            interval = LIVE_SECONDS
        if now - began >= interval or step >= self.total:
            self._show(now)

    def close(self) -> None:
        """Shows the last state and ends the bar."""
        if self._enabled and (self._printed is None or self._printed[1] != self.step):
            self._show(self._clock())
        if self._bar is not None:
            self._bar.stop()
        self._enabled, self._bar = False, None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def line(self) -> str:
        """What is shown beside the name: "400/2000  20 %  118 steps/min  ETA 13:33  loss 0.123"."""
        parts = [f"{self.step}/{self.total}", f"{100 * self.step // max(self.total, 1)} %"]
        if self.steps_per_second is not None:
            parts.append(format_speed(self.steps_per_second, self._unit))
        if self.step >= self.total:
            parts.append(f"done in {format_seconds(self.seconds)}")
        elif self.eta is not None:
            parts.append(f"ETA {format_seconds(self.eta)}")
        for key, value in self._shown.items():
            parts.append(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}")
        return "  ".join(parts)

    def _show(self, now: float) -> None:
        self._printed = (now, self.step)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.step, text=self.line(), refresh=True)
        else:
            _print(self._console, f"{self.name:<10}  {self.line()}")


def track(iterable: Iterable[T], name: str, total: int | None = None, **options) -> Iterator[T]:
    """Passes the items of `iterable` on and shows how many are done.

    Args:
        iterable: what to go through.
        name: what is going on.
        total: number of items; may be left out where `iterable` has a length.
        **options: of `Progress`.
    """
    if total is None:
        if not isinstance(iterable, Sized):
            raise TypeError("track() needs `total` for an iterable without a length")
        total = len(iterable)
    with Progress(name, total, **options) as progress:
        for count, item in enumerate(iterable, 1):
            yield item
            progress.update(count)


def format_seconds(seconds: float) -> str:
    """Seconds as "0:07", "12:34", "1:02:03" or "2 d 03:04:05"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour:02}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def format_speed(per_second: float, unit: str) -> str:
    """Speed in a unit of time that gives a readable number: "118 steps/min", "250 images/s"."""
    if per_second >= 20:
        return f"{per_second:.0f} {unit}/s"
    if per_second * 60 >= 10:
        return f"{per_second * 60:.0f} {unit}/min"
    return f"{per_second * 3600:.0f} {unit}/h"


def setup_logging(verbosity: str = "info", process_index: int = 0) -> None:
    """Sends the package's log to the terminal as short lines; quietens the libraries.

    Args:
        verbosity: "debug", "info", "warning" or "error".
        process_index: of several processes, all but 0 show warnings only, with their number.
    """
    prefix = f"[{process_index}] " if process_index else ""
    handler = _ConsoleHandler()
    handler.setFormatter(_ShortFormatter(f"{prefix}%(message)s"))
    level = getattr(logging, verbosity.upper())
    log.handlers[:] = [handler]
    log.setLevel(max(level, logging.WARNING) if process_index else level)
    log.propagate = False  # absl's handler on the root logger would print every line again
    absl.logging.set_verbosity(absl.logging.WARNING)


class _ShortFormatter(logging.Formatter):
    """The message, with its level in front where that is news."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"{record.levelname.lower()}: {text}" if record.levelno >= logging.WARNING else text


class _ConsoleHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _print(console, self.format(record))


def _print(console: Console, text: str) -> None:
    # As it is: no markup, no colours for numbers, no breaking of lines.
    console.print(text, markup=False, highlight=False, soft_wrap=True)
