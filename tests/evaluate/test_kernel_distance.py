"""KID and CMMD by their sums over pairs, and KID by torch-fidelity."""

import inspect

import numpy as np
import pytest

from regvq_jax.evaluate import manifold
from regvq_jax.evaluate.kernel_distance import cmmd, kernel_distance
from tests.evaluate import torch_fidelity_parts


def draw(count, size, seed, shift=0.0):
    return (np.random.default_rng(seed).standard_normal((count, size)) + shift).astype(np.float32)


def test_kid_by_pairs():
    """All features in one subset: no choice is left but their order."""
    a, b = draw(7, 3, 0), draw(7, 3, 1, 0.5)
    kernel = lambda x, y: (sum(float(p) * float(q) for p, q in zip(x, y, strict=True)) / 3 + 1) ** 3
    apart = [(i, j) for i in range(7) for j in range(7) if i != j]
    within = sum(kernel(x[i], x[j]) for x in (a, b) for i, j in apart) / len(apart)
    across = sum(kernel(x, y) for x in a for y in b) / 49
    mean, deviation = kernel_distance(a, b, subsets=3, subset_size=7)
    assert mean == pytest.approx(within - 2 * across, rel=1e-10)
    assert deviation == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("size", [8, 64])
def test_torch_fidelity_draws_the_same_subsets(size):
    kid = torch_fidelity_parts.load().kid
    torch = pytest.importorskip("torch")
    a, b = draw(60, size, 0), draw(45, size, 1, 0.2)
    settings = {"kid_subsets": 20, "kid_subset_size": 30, "verbose": False}
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        expected = kid.kid_features_to_metric(
            torch.from_numpy(a).to(dtype), torch.from_numpy(b).to(dtype), **settings
        )
        expected = expected[kid.KEY_METRIC_KID_MEAN], expected[kid.KEY_METRIC_KID_STD]
        ours = kernel_distance(a, b, subsets=20, subset_size=30)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance)
    assert kernel_distance(a, b, subsets=20, subset_size=30, seed=1) != ours


def test_the_defaults_are_torch_fidelitys():
    default = torch_fidelity_parts.load().kid.get_kwarg
    expected = {name: default(f"kid_{name}", {}) for name in ("subsets", "subset_size")}
    parameters = inspect.signature(kernel_distance).parameters
    ours = {name: x.default for name, x in parameters.items() if x.kind is x.KEYWORD_ONLY}
    assert ours == expected | {"seed": default("rng_seed", {})}


def test_kid_is_not_biased():
    """Its mean over many pairs of sets from one distribution is 0, also with 10 of each."""
    values = [
        kernel_distance(draw(10, 4, 2 * seed), draw(10, 4, 2 * seed + 1), subsets=1, subset_size=10)[0]
        for seed in range(2000)
    ]
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 3 * np.std(values) / 2000**0.5
    # With the diagonal it would be the mean of k(x, x) - k(x, y), over 10: here above 0.5.
    assert abs(np.mean(values)) < 0.1


@pytest.mark.parametrize("rows", [1024, 5])
def test_cmmd_by_pairs(monkeypatch, rows):
    monkeypatch.setattr(manifold, "_ROWS", rows)
    a, b = draw(12, 6, 0), draw(9, 6, 1, 1.0)

    def mean_kernel(x, y):
        x, y = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (np.float64(x), np.float64(y)))
        return np.mean([[np.exp(-np.sum((p - q) ** 2) / (2 * 10**2)) for q in y] for p in x])

    expected = 1000 * (mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b))
    assert cmmd(a, b) == pytest.approx(expected, rel=1e-8)
    # Lengths say nothing.
    assert cmmd(a * 7, b * np.arange(1, 10)[:, None]) == pytest.approx(expected, rel=1e-5)


def test_cmmd_by_hand():
    """Two points of unit length at a right angle: a squared distance of 2."""
    a, b = np.array([[3.0, 0]]), np.array([[0, 0.5]])
    assert cmmd(a, b) == pytest.approx(1000 * (1 + 1 - 2 * np.exp(-2 / 200)), rel=1e-9)
    assert cmmd(a, a) == pytest.approx(0, abs=1e-9)
