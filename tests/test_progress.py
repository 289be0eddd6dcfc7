import io
import logging
import subprocess
import sys

import absl.logging
import pytest
from rich.console import Console

from regvq_jax import progress as progress_lib
from regvq_jax.progress import Progress, format_seconds, format_speed, setup_logging, track


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def make_console(terminal=False):
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, force_jupyter=False)


@pytest.fixture
def restored_logging():
    log, verbosity = logging.getLogger("regvq_jax"), absl.logging.get_verbosity()
    before = log.handlers[:], log.level, log.propagate
    yield log
    log.handlers[:], log.propagate = before[0], before[2]
    log.setLevel(before[1])
    absl.logging.set_verbosity(verbosity)


def test_plain_lines_every_ten_seconds():
    clock, console = Clock(), make_console()
    progress = Progress("tokenizer", 2000, console=console, clock=clock)
    for step in range(1, 101):  # half a second a step
        clock.now += 0.5
        progress.update(step, loss=0.12345678)
    lines = console.file.getvalue().splitlines()
    # After 1, 11, 21, 31, 41 seconds.
    steps = [int(line.split()[1].removesuffix("/2000")) for line in lines]
    assert steps == [2, 22, 42, 62, 82]
    assert lines[-1] == "tokenizer   82/2000  4 %  120 steps/min  ETA 15:59  loss 0.1235"


def test_last_line_tells_the_whole_time():
    clock, console = Clock(), make_console()
    progress = Progress("prior", 3, start=1, seconds_before=60.0, console=console, clock=clock)
    with progress:
        clock.now += 2.0
        progress.update(2)
        clock.now += 4.0
        progress.update(3)
        assert progress.seconds == 66.0
    lines = console.file.getvalue().splitlines()
    assert lines == [
        "prior       2/3  66 %  30 steps/min  ETA 0:02",
        "prior       3/3  100 %  15 steps/min  done in 1:06",
    ]


def test_eta_after_a_resume_comes_from_this_process():
    clock = Clock()
    progress = Progress("x", 1000, start=900, seconds_before=9000.0, console=make_console(), clock=clock)
    assert progress.eta is None
    clock.now += 30.0  # the first step is slow
    progress.update(901)
    clock.now += 10.0
    progress.update(921)
    assert progress.steps_per_second == 2.0
    assert progress.eta == 79 / 2.0
    assert progress.seconds == 9040.0


def test_close_shows_the_last_state_once():
    clock, console = Clock(), make_console()
    progress = Progress("x", 100, console=console, clock=clock)
    clock.now += 0.1
    progress.update(1, note="[red]as it is[/red]")
    assert console.file.getvalue() == ""
    progress.close()
    progress.close()
    (line,) = console.file.getvalue().splitlines()
    assert line.endswith("note [red]as it is[/red]")


def test_nothing_to_show():
    for options in ({"start": 5}, {"enabled": False}):
        console = make_console(terminal=True)
        with Progress("x", 5, console=console, **options) as progress:
            progress.update(5)
        assert console.file.getvalue() == ""


def test_live_bar_on_a_terminal_with_another_inside(monkeypatch, restored_logging):
    console = make_console(terminal=True)
    monkeypatch.setattr(progress_lib, "console", console)
    setup_logging()
    clock = Clock()
    with Progress("tokenizer", 10, console=console, clock=clock) as progress:
        clock.now += 1.0
        progress.update(4, loss=0.5)
        restored_logging.info("a line above the bar")
        assert list(track([1, 2, 3], "evaluate", console=console)) == [1, 2, 3]
        clock.now += 1.0
        progress.update(10, loss=0.25)
    shown = console.file.getvalue()
    assert "4/10" in shown and "loss 0.5" in shown
    assert "a line above the bar" in shown
    assert "3/3" in shown
    assert "10/10" in shown and "loss 0.25" in shown
    assert "\x1b[" in shown  # drawn in place


def test_track():
    console = make_console()
    assert list(track(iter("ab"), "letters", 2, console=console, unit="letters")) == ["a", "b"]
    assert "letters     2/2  100 %" in console.file.getvalue()
    with pytest.raises(TypeError, match="total"):
        next(track(iter("ab"), "letters"))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(7.4, "0:07"), (754, "12:34"), (3723, "1:02:03"), (183845, "2 d 03:04:05"), (59.6, "1:00")],
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text


def test_format_speed():
    assert format_speed(250.2, "images") == "250 images/s"
    assert format_speed(1.9667, "steps") == "118 steps/min"
    assert format_speed(0.01, "steps") == "36 steps/h"


def test_logging_is_short_and_quiet(monkeypatch, restored_logging):
    console = make_console()
    monkeypatch.setattr(progress_lib, "console", console)
    setup_logging()
    setup_logging()  # a second call does not double the lines
    restored_logging.debug("hidden")
    restored_logging.info("wrote %d [pictures]", 3)
    restored_logging.warning("skipped one")
    absl.logging.info("a flood")
    assert console.file.getvalue() == "wrote 3 [pictures]\nwarning: skipped one\n"
    setup_logging("debug", process_index=2)
    restored_logging.info("hidden")
    restored_logging.warning("disk is slow")
    assert console.file.getvalue().splitlines()[-1] == "warning: [2] disk is slow"


def test_needs_no_jax():
    code = "import sys, regvq_jax.progress; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
