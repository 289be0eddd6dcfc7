"""The benchmark of the tokenizer: its programs do the same, its figures are right."""

import json

import numpy as np
import pytest

from regvq_jax.bench import tokenizer
from regvq_jax.bench import tokenizer_programs as programs
from regvq_jax.bench.differences import relative_error
from regvq_jax.bench.measure import Measurement
from regvq_jax.bench.tokenizer_programs import FORWARD, GRADIENTS, STEP, Problem
from regvq_jax.errors import UserError

PROBLEM = Problem(
    size=16,
    batch=2,
    channels=8,
    multipliers=(1, 2),
    res_blocks=1,
    codes=16,
    code_dim=4,
    features="random",
    dtype="float32",
    seed=0,
)


def test_tiny_run(tmp_path, capsys):
    output = tmp_path / "figures.json"
    tokenizer.main(["--tiny", f"--output={output}"])
    assert "2 images of 16x16 px; 8 channels x (1, 2)" in capsys.readouterr().out
    rows = {row["program"]: row for row in json.loads(output.read_text())["rows"]}
    assert list(rows) == [FORWARD, GRADIENTS, STEP]
    for row in rows.values():
        assert row["repeats"] == len(row["all_seconds"]) == 2
        assert "time_ratio" not in row and row["failure"] == ""
    # A backward pass has two products for each of the forward pass, and the first needs one of them.
    assert 2.5 < rows[GRADIENTS]["flops"] / rows[FORWARD]["flops"] < 3.1
    assert rows[STEP]["flops"] > rows[GRADIENTS]["flops"]


def test_figures_by_hand():
    codes, images = np.zeros((2, 8, 8), int), np.full((2, 16, 16, 3), 0.5)
    theirs = codes.copy()
    theirs[0, 0, :3] = 1
    own = Measurement((0.5, 0.25, 1.0), temp_bytes=7, peak_bytes=9, result={"codes": codes, "images": images})
    rival = Measurement((1.0,), result={"codes": theirs, "images": images * 2})
    row = tokenizer.make_row(PROBLEM, FORWARD, own, rival, flops=3e9, peak=12e9)
    assert row["seconds"] == 0.5 and row["all_seconds"] == (0.5, 0.25, 1.0) and row["time_ratio"] == 0.5
    assert row["flops_per_second"] == 6e9 and row["share_of_peak"] == 0.5
    assert row["codes_off"] == 3 and row["off"] == 0.5 and row["temp_bytes"] == 7 and row["rss_bytes"] == 9
    alone = tokenizer.make_row(PROBLEM, "forward, torch", rival, rival)
    assert alone["time_ratio"] == 1.0 and "off" not in alone and "flops" not in alone
    failed = tokenizer.make_row(PROBLEM, FORWARD, Measurement(failure="not done in 5 s"), rival)
    assert failed["failure"] == "not done in 5 s" and "time_ratio" not in failed


@pytest.mark.parametrize("name", [FORWARD, GRADIENTS])
def test_torch_does_the_same_work(name):
    pytest.importorskip("torch", reason="needs the extra [parity]")
    pytest.importorskip("diffusers", reason="needs the extra [parity]")
    ours = programs.jax_program(name, PROBLEM)().run()
    theirs = programs.torch_program(name, "cpu", PROBLEM)().run()
    assert ours.keys() == theirs.keys()
    if name == FORWARD:
        assert len(np.unique(ours["codes"])) > 4
    for key in ours:
        values, reference = np.asarray(ours[key]), np.asarray(theirs[key])
        assert values.shape == reference.shape
        assert relative_error(values, reference) < 1e-4


def test_another_network_is_no_rival():
    pytest.importorskip("diffusers", reason="needs the extra [parity]")
    params = PROBLEM.params()
    assert programs.make_rival(PROBLEM, params) is not None
    params["unknown"] = {"kernel": np.zeros(3)}
    with pytest.raises(RuntimeError, match="parameters"):
        programs.make_rival(PROBLEM, params)


def test_mistakes():
    with pytest.raises(UserError, match=r"\.md nor in \.json"):
        tokenizer.main(["--output=a.txt"])
