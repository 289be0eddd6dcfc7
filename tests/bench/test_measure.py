"""Programs take turns, back and forth."""

import subprocess
import sys
import time
from functools import partial

import numpy as np

from regvq_jax.bench.measure import Limits, Program, measure_in_turns, peak_bytes


def append(path, letter, seconds=0.0):
    def run():
        time.sleep(seconds)
        with path.open("a") as file:
            file.write(letter)
        return {"letter": letter}

    return lambda: Program(run)


def test_every_second_round_goes_the_other_way_round(tmp_path):
    path = tmp_path / "order"
    programs = {letter: partial(append, path, letter) for letter in "ab"}
    measured = measure_in_turns(programs, Limits(repeats=3, seconds=60, memory_bytes=2**32))
    # Once untimed, then three rounds; of short programs, each time once untimed before.
    assert path.read_text() == "ab" + "aabb" + "bbaa" + "aabb"
    assert [len(x.seconds) for x in measured.values()] == [3, 3]
    assert measured["b"].result["letter"] == "b"


def test_long_runs_need_no_run_before(tmp_path):
    path = tmp_path / "order"
    programs = {letter: partial(append, path, letter, 0.1) for letter in "ab"}
    measure_in_turns(programs, Limits(repeats=1, seconds=60, memory_bytes=2**32, short=0.05))
    assert path.read_text() == "abab"


class OnGPU:
    """Of torch's tensors on a GPU what matters here."""

    def __array__(self, *_, **__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def cpu(self):
        """What it holds."""
        return np.arange(3)


def return_from_gpu():
    return lambda: Program(lambda: {"x": OnGPU()})


def test_results_are_fetched_from_gpus():
    [measured] = measure_in_turns({"": return_from_gpu}, Limits(1, 60, 2**32)).values()
    np.testing.assert_array_equal(measured.result["x"], [0, 1, 2])


def test_peak_memory_is_told_of_any_process():
    assert 2**20 < peak_bytes() < 2**40
    script = "held = b'x' * 2**27; print(flush=True); input()"
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", script], **pipes) as process:
        process.stdout.readline()
        told = peak_bytes(process.pid)
        process.communicate(b"\n")
    assert told is None or 2**27 < told < 2**27 + 2**26
    assert (told is None) == (sys.platform != "linux") and peak_bytes(2**30) is None
