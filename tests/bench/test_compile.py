"""The benchmark of the first step: what it reads of a training, and what it says."""

import dataclasses
import json
import sys

import pytest

from regvq_jax.bench import compile as bench_compile
from regvq_jax.bench.compile import COLD, Start
from regvq_jax.bench.measure import Limits
from regvq_jax.errors import UserError

PYTHON = sys.executable
LIMITS = Limits(repeats=1, seconds=30, memory_bytes=2**30)
# In place of a training: logs as one, takes a step and goes on for ever.
TRAINING = """
import pathlib, sys, time
flags = dict(arg.lstrip("-").split("=", 1) for arg in sys.argv[1:] if "=" in arg)
print("tokenizer: starting\\ntokenizer: compiling the step, which\\ntokenizer: step compiled in 0.1 s")
assert flags["config.seed"] == "5"
held = b"x" * 2**28
where = pathlib.Path(flags["workdir"], "tokenizer")
where.mkdir(parents=True)
(where / "metrics.jsonl").write_text('{"step": 1}\\n')
time.sleep(60)
"""


@pytest.fixture
def python(tmp_path, monkeypatch):
    """Puts a script in the place of the interpreter."""

    def put(text):
        script = tmp_path / "python"
        script.write_text(f"#!{PYTHON}\n{text}")
        script.chmod(0o755)
        monkeypatch.setattr(bench_compile.sys, "executable", str(script))

    return put


def test_a_training_is_ended_after_its_first_step(python, tmp_path):
    python(TRAINING)
    start = bench_compile.measure_start("c.py", tmp_path / "cache", LIMITS, 5)
    assert list(start.marks) == list(bench_compile.MARKS) and 0 < start.seconds < 30
    # What it holds, and an interpreter.
    assert 2**28 < start.peak_bytes < 2**28 + 2**26


def test_one_that_wants_too_much_memory_is_ended(python, tmp_path):
    python("import time; time.sleep(1); held = b'x' * 2**28; time.sleep(60)")
    with pytest.raises(UserError, match="ended before its first step .*MemoryError"):
        bench_compile.measure_start("c.py", tmp_path, dataclasses.replace(LIMITS, memory_bytes=2**27), 5)


def test_one_that_fails_says_why(python, tmp_path):
    python("raise SystemExit('error: no such config')")
    with pytest.raises(UserError, match=r"first step .*--memory-limit\): error: no such config"):
        bench_compile.measure_start("c.py", tmp_path, LIMITS, 5)
    python("import time; time.sleep(60)")
    with pytest.raises(UserError, match="took no step in 0 s"):
        bench_compile.measure_start("c.py", tmp_path, dataclasses.replace(LIMITS, seconds=0.2), 5)


def test_figures_by_hand():
    marks = {"starting": 1.0, "initialised": 4.0, "compiled": 9.0}
    row = bench_compile.make_row(COLD, [Start(20.0, {}, 8), Start(10.0, marks, 7), Start(5.0, {}, 9)])
    assert row["seconds"] == 10.0 and row["all_seconds"] == [20.0, 10.0, 5.0] and row["target"] == 40.0
    assert [row[x] for x in ("starting", "init", "compile", "first_step")] == [1.0, 3.0, 5.0, 1.0]
    assert row["rss_bytes"] == 7
    row = bench_compile.make_row(COLD, [Start(3.0, {"starting": 1.0})])
    assert "init" not in row and "rss_bytes" not in row


def test_the_first_of_equal_lines_counts():
    lines = [(1.0, "tokenizer: starting"), (2.0, "prior: starting"), (3.0, "x: step compiled in 2.0 s")]
    assert bench_compile.find_marks(lines) == {"starting": 1.0, "compiled": 3.0}


def test_table(monkeypatch, tmp_path):
    seconds = iter([30.0, 8.0])
    seen = []

    def start(config, cache, limits, seed):
        seen.append((config, cache, limits.seconds, seed))
        return Start(next(seconds), {})

    monkeypatch.setattr(bench_compile, "measure_start", start)
    bench_compile.main(["--tiny", "--seed=4", "--time-limit=9", f"--json={tmp_path}/a.json"])
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert [(row["start"], row["seconds"]) for row in rows] == [("cold", 30.0), ("cached", 8.0)]
    # The second has what the first has compiled.
    assert seen[0] == seen[1] and seen[0][0] == "configs/quickstart.py:tiny" and seen[0][2:] == (9, 4)
