"""Precision, recall, density and coverage by loops over pairs, and by torch-fidelity."""

import numpy as np
import pytest

from regvq_jax.evaluate import manifold
from regvq_jax.evaluate.manifold import (
    manifold_scores,
    nearest_neighbours,
    nearest_radii,
    squared_distances,
)
from tests.evaluate import torch_fidelity_parts


def draw(count, size, seed, shift=0.0, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal((count, size)) + shift).astype(np.float32)


def distance(x, y):
    return np.linalg.norm(np.float64(x) - np.float64(y))


def by_loops(real, fake, k, k_density):
    """The papers' sums, one pair after the other."""

    def radii(points, k):
        return [
            sorted(distance(x, y) for j, y in enumerate(points) if j != i)[k - 1]
            for i, x in enumerate(points)
        ]

    real_radii, wide, fake_radii = radii(real, k), radii(real, k_density), radii(fake, k)
    inside = [[distance(x, y) < r for y in fake] for x, r in zip(real, wide, strict=True)]
    return {
        "precision": np.mean(
            [any(distance(x, y) <= r for x, r in zip(real, real_radii, strict=True)) for y in fake]
        ),
        "recall": np.mean(
            [any(distance(x, y) <= r for y, r in zip(fake, fake_radii, strict=True)) for x in real]
        ),
        "density": np.sum(inside) / (k_density * len(fake)),
        "coverage": np.mean([any(row) for row in inside]),
    }


@pytest.mark.parametrize("rows", [1024, 7])
@pytest.mark.parametrize(("k", "k_density"), [(3, 5), (1, 2)])
def test_by_loops(monkeypatch, rows, k, k_density):
    """Also where the rows of the table of distances come in several parts."""
    monkeypatch.setattr(manifold, "_ROWS", rows)
    real, fake = draw(30, 3, 0), draw(25, 3, 1, shift=0.8, scale=1.2)
    expected = by_loops(real, fake, k, k_density)
    # An exchange of two would show.
    assert len(set(expected.values())) == 4
    assert manifold_scores(real, fake, k=k, k_density=k_density) == pytest.approx(expected)


@pytest.mark.parametrize("size", [2, 20])
def test_torch_fidelity(size):
    prc = torch_fidelity_parts.load().prc
    torch = pytest.importorskip("torch")
    real, fake = draw(200, size, 0), draw(150, size, 1, shift=0.3, scale=0.8)
    # Theirs takes the generated ones first.
    expected = prc.prc_features_to_metric(torch.from_numpy(fake), torch.from_numpy(real), verbose=False)
    ours = manifold_scores(real, fake)
    assert ours["precision"] == pytest.approx(expected[prc.KEY_METRIC_PRECISION], abs=1e-6)
    assert ours["recall"] == pytest.approx(expected[prc.KEY_METRIC_RECALL], abs=1e-6)
    assert ours["precision"] != ours["recall"]


def test_equal_and_foreign_sets():
    a = draw(50, 4, 0)
    equal = manifold_scores(a, a)
    assert equal["precision"] == equal["recall"] == equal["coverage"] == 1
    # Itself and four more, at a distance less than that of the fifth neighbour.
    assert equal["density"] == pytest.approx(1)
    assert set(manifold_scores(a, a + 1000).values()) == {0}


def test_few_kinds_of_good_samples():
    """They are precise, and recall little; many kinds of which half are bad are the other way round."""
    real = draw(200, 4, 0)
    few = manifold_scores(real, real[:5].repeat(20, 0) + draw(100, 4, 1, scale=1e-3))
    assert few["precision"] > 0.95 and few["recall"] < 0.1 and few["coverage"] < 0.2
    half = manifold_scores(real, np.concatenate([draw(100, 4, 2), draw(100, 4, 3, shift=50)]))
    assert half["precision"] < 0.6 and half["recall"] > 0.8 and half["coverage"] > 0.5


@pytest.mark.parametrize("rows", [1024, 4])
def test_neighbours(monkeypatch, rows):
    monkeypatch.setattr(manifold, "_ROWS", rows)
    points = np.array([[0.0], [1], [3], [7], [15]])
    np.testing.assert_allclose(nearest_radii(points, 1), [1, 1, 4, 16, 64])
    np.testing.assert_allclose(nearest_radii(points, 4), [225, 196, 144, 64, 225])
    queries = np.array([[6.5], [-2], [3], [2.4], [100], [0.2]])
    indices, distances = nearest_neighbours(queries, points)
    np.testing.assert_array_equal(indices, [3, 0, 2, 2, 4, 0])
    np.testing.assert_allclose(distances, [0.5, 2, 0, 0.6, 85, 0.2], atol=1e-12)
    assert indices.dtype == np.int64
    table = np.concatenate([part for _, part in squared_distances(queries, points)])
    np.testing.assert_allclose(table, (queries - points.T) ** 2, atol=1e-12)


def test_distances_are_never_negative():
    """Equal points far from zero: the three terms cancel, up to rounding."""
    points = draw(20, 300, 0, shift=100.0)
    for _, squared in squared_distances(points, points):
        assert (squared >= 0).all() and np.diag(squared).max() < 1e-6
