"""The benchmark of the autoregressive sampler: its programs do the same, its figures are right."""

import json

import numpy as np
import pytest

from regvq_jax.bench import __main__ as bench
from regvq_jax.bench import autoregressive
from regvq_jax.bench.autoregressive import CACHED, COMPILED_ONLY, TORCH, UNCACHED, Problem
from regvq_jax.bench.measure import Measurement
from regvq_jax.errors import UserError

PROBLEM = Problem(dim=32, depth=2, heads=2, grid=3, codes=16, batch=2, seed=0)


def test_tiny_run(tmp_path, capsys):
    output = tmp_path / "figures.json"
    bench.main(["autoregressive", "--tiny", f"--output={output}"])
    assert "2 sequences of 64 codes; dim 32" in capsys.readouterr().out
    rows = json.loads(output.read_text())["rows"]
    assert [(row["tokens"], row["sampler"]) for row in rows] == [
        (16, CACHED),
        (16, UNCACHED),
        (4, COMPILED_ONLY),
        (64, COMPILED_ONLY),
    ]
    cached, uncached, *_ = rows
    assert uncached["tokens_off"] == 0 and uncached["speed_over_uncached"] == 1.0
    assert cached["tokens_per_second"] == pytest.approx(2 * 16 / np.median(cached["all_seconds"]))
    assert "speed_over_torch" not in cached


def test_figures_by_hand():
    tokens = np.zeros((2, 9), int)
    other = tokens.copy()
    other[1, 4:] = 3
    measured = {
        CACHED: Measurement((0.5, 0.25, 1.0), temp_bytes=7_000, result={"tokens": tokens}),
        UNCACHED: Measurement((2.0,), temp_bytes=9_000, result={"tokens": other}),
        TORCH: Measurement((1.0,), result={"tokens": other}),
    }
    rows = {name: autoregressive.make_row(PROBLEM, name, measured) for name in measured}
    # Keys and values of 2 layers, 2 rows, 9 tokens, 32 wide, 4 bytes each.
    assert rows[CACHED]["cache_bytes"] == 2 * 2 * 2 * 9 * 32 * 4 == rows[TORCH]["cache_bytes"]
    assert rows[CACHED]["temp_beside_cache"] == 7_000 - 9_216
    assert rows[CACHED]["tokens_per_second"] == 36.0
    assert rows[CACHED]["speed_over_uncached"] == 4.0 and rows[CACHED]["speed_over_torch"] == 2.0
    assert rows[TORCH]["speed_over_uncached"] == 2.0
    assert rows[UNCACHED]["tokens_off"] == 5 and "tokens_off" not in rows[TORCH]
    measured[UNCACHED] = Measurement(failure="not done in 5 s")
    assert autoregressive.make_row(PROBLEM, UNCACHED, measured)["failure"] == "not done in 5 s"
    assert "speed_over_uncached" not in autoregressive.make_row(PROBLEM, CACHED, measured)


def test_torch_has_our_parameters_and_logits():
    pytest.importorskip("torch")
    shapes = (16 + 1) * 32 + 2 * 3 * 32 + (32 * 16 + 16) + 2 * 32  # Embeddings, places, head, last norm.
    block = 2 * 2 * 32 + 4 * (32 * 32 + 32) + (32 * 128 + 128) + (128 * 32 + 32)
    assert autoregressive.check_equal(PROBLEM, "cpu") == shapes + 2 * block


def test_torch_draws_from_its_softmax():
    pytest.importorskip("torch")
    gpt = autoregressive.TorchGPT(PROBLEM.net, PROBLEM.params(), rows=2)
    tokens = gpt.sample(seed=0)
    assert tokens.shape == (2, 9) and 0 <= tokens.min() and tokens.max() < 16
    np.testing.assert_array_equal(tokens, gpt.sample(seed=0))
    # The first token over many seeds, against its distribution.
    many = np.concatenate([gpt.sample(seed)[:, 0] for seed in range(300)])
    logits = gpt.logits(np.full((2, 1), PROBLEM.codes))[0, 0].astype(np.float64)
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    assert np.abs(np.bincount(many, minlength=16) / len(many) - expected).sum() / 2 < 0.12


def test_programs_that_differ_are_not_timed(monkeypatch):
    with pytest.raises(RuntimeError, match="different tokens from the same key"):
        with monkeypatch.context() as patch:
            other = lambda net, params, keys, tokens: autoregressive.sample_cached(
                net, params, keys[::-1], tokens
            )
            patch.setattr(autoregressive, "sample_uncached", other)
            autoregressive.check_equal(PROBLEM, None)
    pytest.importorskip("torch")
    monkeypatch.setattr(autoregressive.TorchGPT, "logits", lambda self, tokens: np.zeros((2, 9, 16)))
    with pytest.raises(RuntimeError, match="logits are off by"):
        autoregressive.check_equal(PROBLEM, "cpu")


def test_heads_that_do_not_fit():
    with pytest.raises(UserError, match="--heads=3 does not divide --dim=256"):
        bench.main(["autoregressive", "--heads=3"])
