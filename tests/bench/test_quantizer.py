"""The benchmark itself: what it compares is equal, and it tells what did not fit."""

import json
import os
import signal
import time

import numpy as np
import pytest

from regvq_jax.bench import __main__ as bench
from regvq_jax.bench import quantizer, table
from regvq_jax.bench.measure import Limits, Measurement, Program, measure_in_turns
from regvq_jax.bench.quantizer_programs import Problem
from regvq_jax.errors import UserError

GIB = 2**30


def test_tiny_run(tmp_path, capsys):
    output = tmp_path / "figures.json"
    bench.main(["quantizer", "--tiny", "--all", f"--json={output}"])
    printed = capsys.readouterr().out
    assert quantizer.TILED in printed and "32 positions [2, 4, 4]" in printed and output.name in printed
    rows = {row["quantizer"]: row for row in json.loads(output.read_text())["rows"]}
    assert set(rows) == {quantizer.NEAREST, quantizer.PLAIN, quantizer.TILED, *quantizer.OTHERS}
    assert rows[quantizer.NEAREST]["times_nearest"] == 1.0
    for row in rows.values():
        assert not row["failure"] and row["times_nearest"] > 0 and row["temp_growth"] == 1.0
    tiled, plain = rows[quantizer.TILED], rows[quantizer.PLAIN]
    assert tiled["tile_size"] == 4 and tiled["repeats"] == 2
    assert tiled["codes_off"] == 0 and tiled["gradients_off"] < 1e-5
    assert tiled["temp_bytes"] < plain["temp_bytes"] and plain["time_ratio"] == 1.0
    # Its baseline is torch's, which --tiny leaves out.
    assert "time_ratio" not in rows[quantizer.NEAREST]


def test_torch_does_the_same_work():
    pytest.importorskip("vector_quantize_pytorch")
    problem = Problem(num_codes=64, batch=2, grid=4, code_dim=8, tile_elements=512, seed=0)
    ours, theirs = (
        quantizer.CASES[name].program(problem, "cpu")()().run()
        for name in (quantizer.NEAREST, quantizer.TORCH_NEAREST)
    )
    np.testing.assert_array_equal(ours["codes"], theirs["codes"])
    for name in ("features", "codebook"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-8)


def test_growth_is_over_the_fewest_codes():
    rows = [
        dict(codes=64, quantizer="a", temp_bytes=30),
        dict(codes=16, quantizer="a", temp_bytes=10),
        dict(codes=16, quantizer="b", temp_bytes=7),
        dict(codes=64, quantizer="b"),
    ]
    quantizer.add_growth(rows)
    assert [row.get("temp_growth") for row in rows] == [3.0, 1.0, 1.0, None]


def test_262144_codes_can_be_asked_for(monkeypatch, capsys):
    seen = []

    def measure(programs, limits):
        seen.extend(program.args[-1] for program in programs.values())
        return {name: Measurement(failure="does not fit in 16 GiB") for name in programs}

    monkeypatch.setattr(quantizer, "measure_in_turns", measure)
    bench.main(["quantizer", "--codes", "262144", "--all", "--against=none"])
    [problem] = set(seen)
    assert len(seen) == 3 + len(quantizer.OTHERS) and problem.num_codes == 2**18
    # Eight positions of each of 8 images at once: 64 MiB in place of 8 GiB.
    assert problem.tile_size == 8 and problem.array_bytes == 8 * GIB
    assert capsys.readouterr().out.count("262,144 ") == len(seen)
    with pytest.raises(SystemExit):
        bench.main(["quantizer", "--help"])
    assert "At 262,144 and the default 8,192 positions one" in capsys.readouterr().out


def allocate():
    return lambda: Program(lambda: {"sum": np.ones(GIB // 8).sum()}, temp_bytes=GIB)


def sleep():
    return lambda: Program(lambda: time.sleep(60))


def die():
    return lambda: os.kill(os.getpid(), signal.SIGKILL)


def exit_with_an_error():
    return lambda: os._exit(3)


def test_what_does_not_fit_is_reported():
    programs = {"large": allocate, "slow": sleep, "killed": die}
    measured = measure_in_turns(programs, Limits(repeats=1, seconds=5, memory_bytes=GIB))
    assert measured["large"].failure == "does not fit in 1 GiB" and measured["large"].temp_bytes == GIB
    assert measured["slow"].failure == "not done in 5 s"
    assert measured["killed"].failure == "ended by SIGKILL, as for want of memory"
    problem = Problem(num_codes=4, batch=1, grid=2, code_dim=2, tile_elements=4, seed=0)
    case = quantizer.Case(allocate, baseline="slow")
    row = quantizer.make_row(problem, "large", case, measured)
    [line] = table.make_cells([row], quantizer.COLUMNS)[1:]
    assert "large: does not fit in 1 GiB" in line and f"{GIB // 2**20:,}" in line


def test_peak_memory_is_that_of_the_program():
    [measured] = measure_in_turns({"": allocate}, Limits(2, 60, 2 * GIB)).values()
    assert len(measured.seconds) == 2 and measured.result["sum"] == GIB // 8
    assert 0.95 * GIB < measured.peak_bytes < 1.1 * GIB


def test_a_bug_is_no_figure():
    with pytest.raises(RuntimeError, match="ended with code 3"):
        measure_in_turns({"": exit_with_an_error}, Limits(1, 60, GIB))


@pytest.mark.parametrize(
    "arguments, words",
    [(["quantizer", "--output=a.txt"], r"\.md nor in \.json"), (["speed"], "'speed'"), ([], "name")],
)
def test_mistakes(arguments, words):
    with pytest.raises(UserError, match=words):
        bench.main(arguments)
