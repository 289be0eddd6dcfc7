"""The benchmark of evaluations: rivals do the same work, its figures are right."""

import hashlib
import importlib.util
import json
import sys
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy

from regvq_jax.bench import __main__ as bench
from regvq_jax.bench import evaluate, flags
from regvq_jax.bench import evaluate_programs as programs
from regvq_jax.bench.evaluate import EFFICIENTNET, INCEPTION, MADE, STREAMED, TORCH, WHOLE
from regvq_jax.bench.evaluate_programs import FeatureSets, Images
from regvq_jax.bench.measure import Measurement
from regvq_jax.interop.inception_weights import load_inception

# 70 = three whole batches and a part.
SETS = FeatureSets(count=70, dimensions=12, batch=20, seed=3)
IMAGES = Images(count=evaluate.TINY["images"], batch=2, size=evaluate.TINY["size"], seed=0)


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """(file of random weights, the protocol with them)."""
    monkeypatch.setenv("REGVQ_JAX_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "random.safetensors"
    path.write_bytes(safetensors.numpy.save(programs.random_weights(0)))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return path, f"torch-fidelity@{path}#sha256={digest}"


def test_tiny_run(tmp_path, capsys):
    output = tmp_path / "figures.json"
    bench.main(["evaluate", "--tiny", f"--json={output}"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 sets of 1,000 features of 64 dimensions" in printed and "no features were compared" in printed
    rows = {row["program"]: row for row in json.loads(output.read_text())["rows"]}
    assert {name: row["inputs"] for name, row in rows.items()} == {
        INCEPTION: 2,
        EFFICIENTNET: 2,
        STREAMED: 2000,
        WHOLE: 2000,
        MADE: 2000,
    }
    assert all(row["repeats"] == 2 and not row["failure"] for row in rows.values())
    assert rows[INCEPTION]["rss_bytes"] > 2**20
    assert rows[INCEPTION]["per_second"] == pytest.approx(2 / np.median(rows[INCEPTION]["all_seconds"]))
    assert "ratio" not in rows[INCEPTION] and "off" not in rows[INCEPTION]
    streamed = rows[STREAMED]
    assert streamed["off"] < 1e-9 and streamed["distance"] > 0 and "distance_seconds" not in rows[MADE]
    assert streamed["gathering_seconds"] + streamed["distance_seconds"] < 1.5 * streamed["seconds"]


def test_torch_has_our_features(weights):
    pytest.importorskip("torch")
    if importlib.util.find_spec("torch_fidelity") is None:
        pytest.skip("needs torch-fidelity 0.4.0 (pip install --no-deps)")
    path, spec = weights
    results = {
        INCEPTION: programs.our_features(spec, IMAGES, path.parent / "cache")().run(),
        TORCH: programs.torch_features(path, "cpu", IMAGES)().run(),
    }
    assert results[INCEPTION]["features"].shape == (2, 2048)
    off = evaluate.features_off({name: Measurement(result=x) for name, x in results.items()})
    assert 0 < off < 1e-5
    assert getattr(sys.modules.get("torch_fidelity"), "__file__", "") is not None


def test_every_tensor_of_the_random_weights_is_used(weights):
    path, spec = weights
    module, params, _ = load_inception(spec.partition("@")[2])
    tensors = safetensors.numpy.load_file(path)
    # A scale and a bias for each norm; of the last layer's bias nothing is left.
    convolutions = len(params) - 1
    assert len(tensors) == 5 * convolutions + 2 == 472
    for name in ("Conv2d_1a_3x3", "Mixed_7c.branch_pool"):
        factor = tensors[f"{name}.bn.weight"] / np.sqrt(tensors[f"{name}.bn.running_var"] + 1e-3)
        kernel = tensors[f"{name}.conv.weight"] * factor[:, None, None, None]
        np.testing.assert_allclose(params[name]["kernel"], kernel.transpose(2, 3, 1, 0), rtol=1e-5)


def test_features_that_differ_give_no_figures():
    theirs = np.array([[1.0, 4.0], [3.0, 2.0]])
    measured = {INCEPTION: Measurement(result={"features": theirs + [[0, 2e-4], [0, 0]]})}
    assert evaluate.features_off(measured) is None
    measured[TORCH] = Measurement(result={"features": theirs})
    assert evaluate.features_off(measured) == pytest.approx(5e-5)
    measured[INCEPTION] = Measurement(result={"features": theirs + 6e-4})
    with pytest.raises(RuntimeError, match="off torch-fidelity's by 1.5e-04 of the largest"):
        evaluate.features_off(measured)
    measured[INCEPTION] = Measurement(result={"features": np.full((2, 2), np.nan)})
    with pytest.raises(RuntimeError, match="off torch-fidelity's by nan"):
        evaluate.features_off(measured)
    same = Measurement(result={"features": np.ones((2, 2))})
    with pytest.raises(RuntimeError, match="hardly differ"):
        evaluate.features_off({INCEPTION: same, TORCH: same})
    assert evaluate.features_off({INCEPTION: same, TORCH: Measurement(failure="not done in 5 s")}) is None


def test_both_statistics_are_of_the_same_features():
    makers = programs.streamed_statistics, programs.whole_statistics
    ours, theirs = (make(SETS)().run()["distance"] for make in makers)
    # By way of the features themselves, and the eigenvalues of a product.
    a, b = (np.concatenate([x[valid] for x, valid in SETS.batches(which)]) for which in (0, 1))
    assert a.shape == b.shape == (70, 12) and not np.array_equal(a, b)
    np.testing.assert_array_equal(a, np.concatenate([x[valid] for x, valid in SETS.batches(0)]))
    first, second = np.cov(a.T.astype(np.float64)), np.cov(b.T.astype(np.float64))
    roots = np.sqrt(np.linalg.eigvals(first @ second).real)
    means = a.mean(0, dtype=np.float64) - b.mean(0, dtype=np.float64)
    expected = means @ means + np.trace(first + second) - 2 * roots.sum()
    assert ours == pytest.approx(expected, rel=1e-8) and theirs == pytest.approx(expected, rel=1e-8)


def test_streaming_holds_no_features():
    sets = FeatureSets(count=20_000, dimensions=64, batch=100, seed=0)
    size = 20_000 * 64 * 8
    peaks = {}
    for name, make in ((STREAMED, programs.streamed_statistics), (WHOLE, programs.whole_statistics)):
        run = make(sets)().run
        run()  # What is compiled and made once is no matter here.
        tracemalloc.start()
        run()
        peaks[name] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # numpy's covariance takes a copy; a few batches may wait for their turn.
    assert peaks[WHOLE] > 1.9 * size
    assert peaks[STREAMED] < 0.3 * size


def test_figures_by_hand():
    parts = np.array([[9.0, 9.0], [3.0, 1.0], [1.0, 1.0], [2.0, 4.0]])
    ours, theirs = ({"distance": np.array(x), "seconds": parts[:runs]} for x, runs in ((11.0, 4), (10.0, 2)))
    measured = {
        STREAMED: Measurement((4.0, 2.0, 6.0), None, 7, ours),
        WHOLE: Measurement((8.0,), None, 9, theirs),
        MADE: Measurement((2.0,), None, 1, {"seconds": np.array([[5.0, 0.0], [2.0, 0.0]])}),
    }
    rows = {name: evaluate.make_row(name, 100, measured) for name in measured}
    # The first run of all is no run.
    assert rows[STREAMED]["gathering_seconds"] == 2.0 and rows[STREAMED]["distance_seconds"] == 1.0
    assert rows[STREAMED]["per_second"] == 50 and rows[STREAMED]["seconds"] == 4.0
    assert rows[STREAMED]["ratio"] == 2.0 and rows[STREAMED]["off"] == pytest.approx(0.1)
    assert rows[STREAMED]["rss_bytes"] == 7 and rows[STREAMED]["repeats"] == 3
    assert not {"ratio", "off"} & set(rows[WHOLE]) and "distance" not in rows[MADE]
    measured[WHOLE] = Measurement(failure="does not fit in 1 GiB")
    assert "ratio" not in evaluate.make_row(STREAMED, 100, measured)
    assert evaluate.make_row(WHOLE, 100, measured) == dict(
        inputs=100, program=WHOLE, failure="does not fit in 1 GiB"
    )
    networks = {INCEPTION: Measurement((0.5,)), TORCH: Measurement((2.0,))}
    row = evaluate.make_row(INCEPTION, 8, networks)
    assert row["per_second"] == 16 and row["ratio"] == 4.0 and "gathering_seconds" not in row


def test_images_are_of_the_asked_kind():
    batches = Images(count=6, batch=2, size=16, seed=1).batches()
    assert [x.shape for x in batches] == 3 * [(2, 16, 16, 3)] and batches[0].dtype == np.uint8
    assert len(np.unique(np.concatenate(batches), axis=0)) == 6


def test_what_is_left_out_is_said(monkeypatch, capsys):
    seen = []

    def measure(programs, limits):
        seen.extend(programs)
        raise RuntimeError("measured")

    monkeypatch.setattr(evaluate, "measure_in_turns", measure)
    monkeypatch.setattr(evaluate, "random_weights", lambda seed: {"fc.bias": np.zeros(1)})
    missing = ["torch_fidelity"]
    monkeypatch.setattr(flags.importlib.util, "find_spec", lambda name: None if name in missing else name)

    def printed(*arguments):
        seen.clear()
        with pytest.raises(RuntimeError, match="measured"):
            bench.main(["evaluate", *arguments])
        return capsys.readouterr().out

    assert printed() == (
        "The rival is left out: no torch_fidelity here; "
        "pip install --no-deps torch-fidelity==0.4.0 brings it.\n"
    )
    assert seen == [INCEPTION, EFFICIENTNET]
    missing.clear()
    assert printed("--against=torch") == "" and seen == [INCEPTION, TORCH, EFFICIENTNET]
    assert printed("--against=none") == "" and seen == [INCEPTION, EFFICIENTNET]
