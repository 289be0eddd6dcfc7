"""The benchmark of the priors' training step: torch computes the same, the figures are right."""

import dataclasses
import json

import numpy as np
import pytest

from regvq_jax.bench import __main__ as bench
from regvq_jax.bench import prior_programs as programs
from regvq_jax.bench import prior_step
from regvq_jax.bench.measure import Measurement
from regvq_jax.bench.prior_programs import Problem
from regvq_jax.bench.prior_step import OURS, TORCH
from regvq_jax.errors import UserError
from regvq_jax.trainers.priors import PRIORS

PROBLEM = Problem(
    "masked", dim=16, depth=1, heads=2, dropout=0.1, grid=2, codes=8, batch=2, dtype="float32", seed=0
)


@pytest.mark.parametrize("kind", PRIORS)
def test_torch_has_our_parameters_loss_and_gradient(kind):
    pytest.importorskip("torch")
    assert programs.check_equal(dataclasses.replace(PROBLEM, kind=kind), "cpu") > 0


def test_a_rival_that_differs_is_not_timed(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(programs.TorchPrior, "gradient_norm", lambda self, *_: (1.0, 1.0))
    with pytest.raises(RuntimeError, match="masked: our loss is"):
        programs.check_equal(PROBLEM, "cpu")


@pytest.mark.parametrize("kind", PRIORS)
def test_torch_learns(kind):
    torch = pytest.importorskip("torch")
    problem = dataclasses.replace(PROBLEM, kind=kind, dropout=0.0)
    torch.manual_seed(0)
    rival = programs.make_torch_prior(problem, problem.state().params["prior"], "cpu")
    rival._adam.param_groups[0]["lr"] = rival._adam.param_groups[1]["lr"] = 1e-2
    tokens = torch.as_tensor(problem.tokens()).long()
    losses = [rival.train_step(tokens) for _ in range(60)]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


def test_figures_by_hand():
    measured = {
        OURS: Measurement((0.5, 0.25, 1.0), temp_bytes=7, peak_bytes=9),
        TORCH: Measurement((1.0,), peak_bytes=3),
    }
    row = prior_step.make_row(PROBLEM, OURS, measured, flops=1e9, peak=4e9)
    assert row["tokens"] == 8 and row["time_ratio"] == 0.5 and row["share_of_peak"] == 0.5
    assert (row["temp_bytes"], row["rss_bytes"], row["repeats"]) == (7, 9, 3)
    assert "temp_bytes" not in prior_step.make_row(PROBLEM, TORCH, measured, 1e9, 4e9)
    failed = prior_step.make_row(PROBLEM, OURS, {OURS: Measurement(failure="too long")}, 1e9, 4e9)
    assert failed["failure"] == "too long" and "seconds" not in failed


def test_flops_grow_with_depth_by_a_block():
    # So many tokens that the optimiser's work, which does not grow with them, is small.
    one, two = (dataclasses.replace(PROBLEM, dim=64, depth=depth, batch=32).flops() for depth in (1, 2))
    # 12 dim^2 multiply-adds for a token, forward and twice backward; the rest is attention and passes.
    block = 3 * 2 * 12 * 64**2 * 4 * 32
    assert block < two - one < 1.2 * block


def test_tiny_run(tmp_path, capsys):
    output = tmp_path / "figures.json"
    bench.main(["prior", "--tiny", "--kinds", "masked", f"--json={output}"])
    assert "2 sequences of 16 tokens of 64 codes; dim 32" in capsys.readouterr().out
    [row] = json.loads(output.read_text())["rows"]
    assert row["program"] == "masked, jax" and row["seconds"] > 0 and 0 < row["share_of_peak"] < 1


def test_mistakes():
    with pytest.raises(UserError, match="--heads=3 does not divide --dim=256"):
        bench.main(["prior", "--heads=3"])
    with pytest.raises(UserError, match="--dropout=1 must be"):
        bench.main(["prior", "--dropout=1"])
