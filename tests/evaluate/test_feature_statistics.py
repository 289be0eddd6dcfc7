"""Mean and covariance are the same in any split over batches and devices; files of others are read."""

import jax
import numpy as np
import pytest

from regvq_jax import sharding
from regvq_jax.errors import UserError
from regvq_jax.evaluate.feature_statistics import (
    empty_statistics,
    load_statistics,
    merge,
    save_statistics,
    update,
)
from regvq_jax.evaluate.frechet import frechet_distance


def gather(features, size, mesh=None):
    """Statistics of features that come `size` at a time; NaN that do not count fill up the last batch."""
    statistics = empty_statistics(features.shape[1])
    for start in range(0, len(features), size):
        part = features[start : start + size]
        padded = np.full((size, features.shape[1]), np.nan, features.dtype)
        padded[: len(part)] = part
        batch = {"features": padded, "valid": np.arange(size) < len(part)}
        if mesh is not None:
            batch = sharding.put_batch(batch, mesh)
        statistics = update(statistics, batch["features"], batch["valid"])
    return statistics


def correlated(count, size, seed):
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((count, size)) @ rng.standard_normal((size, size)) / size**0.5
    return (mixed + rng.uniform(0, 2, size)).astype(np.float32)


@pytest.mark.parametrize(
    ("count", "size"), [(1000, 40), (250, 300)], ids=["more features than dimensions", "fewer"]
)
def test_any_split_gives_the_same_fid(count, size):
    a, b = correlated(count, size, 0), correlated(count, size, 1)
    mean, covariance = a.astype(np.float64).mean(0), np.cov(a.astype(np.float64), rowvar=False)
    reference = jax.device_get(gather(b, count))
    distances = []
    # In 1, 7 and 64 parts, and over 8 devices.
    splits = ((count, None), (-(-count // 7), None), (-(-count // 64), None), (64, sharding.make_mesh(4, 2)))
    for batch_size, mesh in splits:
        on_devices = gather(a, batch_size, mesh)
        # Each process of several can read them.
        assert all(x.dtype == np.float64 and x.sharding.is_fully_replicated for x in on_devices)
        statistics = jax.device_get(on_devices)
        assert statistics.count == count
        np.testing.assert_allclose(statistics.mean, mean, rtol=1e-12)
        np.testing.assert_allclose(statistics.covariance, covariance, rtol=0, atol=1e-13 * covariance.max())
        distances.append(frechet_distance(statistics, reference))
    assert distances[0] > 0.1
    np.testing.assert_allclose(distances, distances[0], rtol=1e-9)


def test_a_large_mean_costs_no_digits():
    """Sums of squares would: they have 10 digits before the comma here."""
    rng = np.random.default_rng(0)
    features = (1e5 + rng.standard_normal((500, 3))).astype(np.float32)
    statistics = jax.device_get(gather(features, 33))
    expected = np.cov(features.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(statistics.covariance, expected, rtol=0, atol=1e-11)


def test_merging():
    features = correlated(50, 4, 0)
    whole = jax.device_get(gather(features, 50))
    parts = (features[:1], features[1:20], features[20:])
    parts = [jax.device_get(gather(part, len(part))) for part in parts]
    for order in (parts, parts[::-1]):
        merged = empty_statistics(4)
        for part in (empty_statistics(4), *order, empty_statistics(4)):
            merged = merge(merged, part)
        for ours, expected in zip(merged, whole, strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-12)
    nothing = jax.device_get(update(empty_statistics(4), features, np.zeros(50, bool)))
    assert nothing.count == 0 and not nothing.mean.any() and not nothing.m2.any()


def test_files_go_round(tmp_path):
    statistics = jax.device_get(gather(correlated(30, 5, 0), 30))
    about = {"protocol": "adm", "images": "emoji, 32 pixels"}
    save_statistics(tmp_path / "own.npz", statistics, about)
    again, read = load_statistics(tmp_path / "own.npz")
    assert read == about and again.count == 30
    for ours, expected in zip(again, statistics, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-14)
    # As pytorch-fid reads it.
    with np.load(tmp_path / "own.npz") as content:
        np.testing.assert_array_equal(content["mu"], statistics.mean)
        np.testing.assert_allclose(content["sigma"], np.cov(correlated(30, 5, 0), rowvar=False), rtol=1e-5)
    with pytest.raises(UserError, match="Cannot write .*nowhere/own.npz"):
        save_statistics(tmp_path / "nowhere" / "own.npz", statistics, about)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_foreign_files(tmp_path, dtype):
    features = correlated(30, 5, 0).astype(np.float64)
    mean, covariance = features.mean(0).astype(dtype), np.cov(features, rowvar=False).astype(dtype)
    np.savez(tmp_path / "pytorch_fid.npz", mu=mean, sigma=covariance)
    # ADM's evaluator: with images, and with statistics of another layer whose size is another.
    images = np.zeros((2, 4, 4, 3), np.uint8)
    other = {"mu_s": np.zeros(7), "sigma_s": np.zeros((7, 7))}
    np.savez(tmp_path / "adm.npz", arr_0=images, mu=mean, sigma=covariance, **other)
    own = jax.device_get(gather(features.astype(np.float32), 30))
    for name in ("pytorch_fid.npz", "adm.npz"):
        statistics, about = load_statistics(tmp_path / name)
        assert about == {} and statistics.count == 0
        assert statistics.mean.dtype == statistics.covariance.dtype == np.float64
        np.testing.assert_array_equal(statistics.mean, mean)
        np.testing.assert_array_equal(statistics.covariance, covariance)
        assert frechet_distance(statistics, own) < 1e-5


BAD = {
    "images only": ({"arr_0": np.zeros((2, 4, 4, 3), np.uint8)}, r"has arr_0, but statistics are mu \[D\]"),
    "no sigma": ({"mu": np.zeros(3)}, r"has mu, but statistics are mu"),
    "empty": ({}, "has nothing, but"),
    "shapes": ({"mu": np.zeros(3), "sigma": np.zeros((4, 4))}, r"mu is \(3,\), sigma \(4, 4\)"),
    "not square": ({"mu": np.zeros(3), "sigma": np.zeros((3, 4))}, r"mu is \(3,\), sigma \(3, 4\)"),
    "rows": ({"mu": np.zeros((1, 3)), "sigma": np.zeros((3, 3))}, r"mu is \(1, 3\)"),
    "nan": ({"mu": np.full(2, np.nan), "sigma": np.eye(2)}, "not finite"),
    "infinite": ({"mu": np.zeros(2), "sigma": np.diag([1, np.inf])}, "not finite"),
    "objects": ({"mu": np.array([{}]), "sigma": np.eye(1)}, "no .npz file of statistics"),
}


@pytest.mark.parametrize(("arrays", "message"), BAD.values(), ids=BAD)
def test_bad_arrays(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match=f"bad.npz.*{message}"):
        load_statistics(tmp_path / "bad.npz")


def test_bad_files(tmp_path):
    with pytest.raises(UserError, match="Cannot read .*missing.npz"):
        load_statistics(tmp_path / "missing.npz")
    np.savez(tmp_path / "whole.npz", mu=np.zeros(90), sigma=np.zeros((90, 90)))
    whole = (tmp_path / "whole.npz").read_bytes()
    np.save(tmp_path / "array.npy", np.zeros(3))
    contents = {"page": b"<html>Not found</html>", "cut": whole[: len(whole) // 2], "empty": b""}
    contents["one array"] = (tmp_path / "array.npy").read_bytes()
    broken = bytearray(whole)
    broken[500] ^= 1
    contents["flipped bit"] = bytes(broken)
    for name, content in contents.items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.npz is no .npz file of statistics"):
            load_statistics(path)
