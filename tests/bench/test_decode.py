"""The benchmark of the samplers: its programs do the same, its figures are right."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax.bench import __main__ as bench
from regvq_jax.bench import decode
from regvq_jax.bench import decode_programs as programs
from regvq_jax.bench.decode import CACHED, COMPILED_ONLY, TORCH, UNCACHED
from regvq_jax.bench.decode_programs import Problem
from regvq_jax.bench.measure import Measurement
from regvq_jax.errors import UserError
from regvq_jax.models.prior import make_room

PROBLEM = Problem(dim=32, depth=2, heads=2, grid=3, codes=16, batch=2, seed=0)


def test_tiny_run(tmp_path, capsys):
    output = tmp_path / "figures.json"
    bench.main(["decode", "--tiny", f"--output={output}"])
    assert "sequences of 64 codes; dim 32" in capsys.readouterr().out
    rows = json.loads(output.read_text())["rows"]
    assert [(row["tokens"], row["sampler"]) for row in rows] == [
        (16, CACHED),
        (16, UNCACHED),
        (16, "masked"),
        (16, "diffusion"),
        (4, COMPILED_ONLY),
        (64, COMPILED_ONLY),
    ]
    cached, uncached, masked, *_ = rows
    assert uncached["tokens_off"] == 0 and uncached["speed_over_uncached"] == 1.0
    assert cached["tokens_per_second"] == pytest.approx(2 * 16 / np.median(cached["all_seconds"]))
    assert "speed_over_torch" not in cached and "share_of_bandwidth" not in masked
    assert masked["images_per_second"] == pytest.approx(2 / np.median(masked["all_seconds"]))


def test_figures_by_hand():
    tokens = np.zeros((2, 9), int)
    other = tokens.copy()
    other[1, 4:] = 3
    measured = {
        CACHED: Measurement((0.5, 0.25, 1.0), temp_bytes=7_000, result={"tokens": tokens}),
        UNCACHED: Measurement((2.0,), temp_bytes=9_000, result={"tokens": other}),
        TORCH: Measurement((1.0,), result={"tokens": other}),
    }
    rows = {name: decode.make_row(PROBLEM, name, measured, 1e6) for name in measured}
    # Keys and values of 2 layers, 2 rows, 9 tokens, 32 wide, 4 bytes each.
    assert rows[CACHED]["cache_bytes"] == 2 * 2 * 2 * 9 * 32 * 4 == rows[TORCH]["cache_bytes"]
    assert rows[CACHED]["temp_beside_cache"] == 7_000 - 9_216
    assert rows[CACHED]["tokens_per_second"] == 36.0
    assert rows[CACHED]["speed_over_uncached"] == 4.0 and rows[CACHED]["speed_over_torch"] == 2.0
    assert rows[TORCH]["speed_over_uncached"] == 2.0
    # A step reads every parameter, and half of the cache on average.
    count = sum(x.size for x in jax.tree.leaves(jax.eval_shape(PROBLEM.params)))
    assert rows[CACHED]["share_of_bandwidth"] == pytest.approx(36.0 * (4 * count + 9_216 / 2) / 2 / 1e6)
    assert rows[UNCACHED]["tokens_off"] == 5 and "tokens_off" not in rows[TORCH]
    measured[UNCACHED] = Measurement(failure="not done in 5 s")
    assert decode.make_row(PROBLEM, UNCACHED, measured, 1e6)["failure"] == "not done in 5 s"
    assert "speed_over_uncached" not in decode.make_row(PROBLEM, CACHED, measured, 1e6)


def test_torch_has_our_parameters_and_logits():
    pytest.importorskip("torch")
    shapes = (16 + 1) * 32 + 2 * 3 * 32 + (32 * 16 + 16) + 2 * 32  # Embeddings, places, head, last norm.
    block = 2 * 2 * 32 + 4 * (32 * 32 + 32) + (32 * 128 + 128) + (128 * 32 + 32)
    assert programs.check_equal(PROBLEM, "cpu") == shapes + 2 * block


def test_torch_draws_from_its_softmax():
    pytest.importorskip("torch")
    gpt = programs.TorchGPT(PROBLEM.net, PROBLEM.params(), rows=2)
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
            other = lambda net, params, keys, tokens: programs.sample_cached(net, params, keys[::-1], tokens)
            patch.setattr(programs, "sample_uncached", other)
            programs.check_equal(PROBLEM, None)
    pytest.importorskip("torch")
    monkeypatch.setattr(programs.TorchGPT, "logits", lambda self, tokens: np.zeros((2, 9, 16)))
    with pytest.raises(RuntimeError, match="logits are off by"):
        programs.check_equal(PROBLEM, "cpu")


def test_heads_that_do_not_fit():
    with pytest.raises(UserError, match="--heads=3 does not divide --dim=256"):
        bench.main(["decode", "--heads=3"])


def test_a_bfloat16_network_keeps_its_cache_in_bfloat16():
    half = dataclasses.replace(PROBLEM, dtype="bfloat16")
    start = lambda params: half.net.apply({"params": params}, 2, method="start")
    full = lambda params: make_room(start(params), half.num_tokens).cache
    cache = jax.eval_shape(full, jax.eval_shape(half.params))
    arrays = jax.tree.leaves((cache.key, cache.value))
    assert {x.dtype for x in arrays} == {jnp.dtype("bfloat16")}
    assert half.cache_bytes == PROBLEM.cache_bytes // 2 == sum(2 * x.size for x in arrays)


def test_torch_has_float32_whatever_ours_have():
    half = dataclasses.replace(PROBLEM, dtype="bfloat16")
    measured = {name: Measurement((0.5,), result={}) for name in (CACHED, TORCH)}
    ours, torch = (decode.make_row(half, name, measured, 1e6) for name in (CACHED, TORCH))
    assert (ours["dtype"], ours["cache_bytes"]) == ("bfloat16", 9_216 // 2)
    assert torch == decode.make_row(PROBLEM, TORCH, measured, 1e6)
    assert (torch["dtype"], torch["cache_bytes"]) == ("float32", 9_216)
    # At the same speed torch reads more.
    assert torch["share_of_bandwidth"] > ours["share_of_bandwidth"]


def test_torch_computes_in_float32():
    torch = pytest.importorskip("torch")
    gpt = programs.TorchGPT(dataclasses.replace(PROBLEM, dtype="bfloat16").net, PROBLEM.params(), rows=2)
    assert gpt._cache.dtype == gpt._embedding.dtype == torch.float32
    assert gpt._cache.nbytes == 9_216
