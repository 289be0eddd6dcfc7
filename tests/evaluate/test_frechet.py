"""The Frechet distance by formula, by scipy's matrix square root, and by torch-fidelity."""

import numpy as np
import pytest
import scipy.linalg

from regvq_jax.evaluate.feature_statistics import FeatureStatistics
from regvq_jax.evaluate.frechet import frechet_distance
from tests.evaluate import torch_fidelity_parts


def draw(count, size, seed, shift=0.3):
    """Correlated features of unequal variances, float64."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((count, size)) @ rng.standard_normal((size, size)) / size**0.5
    return mixed * np.linspace(0.1, 2, size) + shift * rng.standard_normal(size)


def statistics_of(features):
    centred = features - features.mean(0)
    return FeatureStatistics(len(features), features.mean(0), centred.T @ centred)


def test_gaussians_with_axes_of_their_own():
    """|a - b|^2 and the sum of the squared differences of standard deviations."""
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0, 3, (2, 6))
    mean_a, mean_b = rng.standard_normal((2, 6))
    rotation, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    first, second = (
        FeatureStatistics(0, mean, rotation @ np.diag(deviations**2) @ rotation.T)
        for mean, deviations in ((mean_a, a), (mean_b, b))
    )
    expected = np.sum((mean_a - mean_b) ** 2) + np.sum((a - b) ** 2)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-12)
    # Deviations that share no axis: tr A + tr B.
    flat = [FeatureStatistics(0, np.zeros(2), np.diag(x)) for x in ([4.0, 0], [0, 9.0])]
    assert frechet_distance(*flat) == pytest.approx(13)
    # Without any.
    points = [FeatureStatistics(0, x, np.zeros((2, 2))) for x in (np.zeros(2), np.array([3.0, 4]))]
    assert frechet_distance(*points) == pytest.approx(25)
    assert frechet_distance(points[0], flat[0]) == pytest.approx(4)


@pytest.mark.parametrize("count", [1000, 60], ids=["full rank", "fewer features than dimensions"])
def test_matrix_square_root(count):
    a, b = (statistics_of(draw(count, 100, seed)) for seed in (0, 1))
    difference = a.mean - b.mean
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    expected = difference @ difference + np.trace(a.covariance + b.covariance - 2 * root.real)
    # Without full rank sqrtm itself is off.
    rel = 1e-9 if count == 1000 else 1e-4
    assert frechet_distance(a, b) == pytest.approx(expected, rel=rel)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-9)


@pytest.mark.parametrize("count", [1000, 60])
def test_torch_fidelity(count):
    fid = torch_fidelity_parts.load().fid
    torch = pytest.importorskip("torch")
    a, b = draw(count, 100, 0), draw(2 * count, 100, 1)
    statistics = [fid.fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
    expected = fid.fid_statistics_to_metric(*statistics, verbose=False)[fid.KEY_METRIC_FID]
    ours = frechet_distance(statistics_of(a), statistics_of(b))
    # Theirs takes roots of what is rounding only: the error is of some 1e-8 each.
    assert ours == pytest.approx(expected, rel=1e-9 if count == 1000 else 1e-5)


@pytest.mark.parametrize("count", [500, 50])
def test_equal_sets_are_at_no_distance(count):
    a = draw(count, 200, 0)
    value = frechet_distance(statistics_of(a), statistics_of(a[::-1]))
    assert 0 <= value < 1e-9 * np.trace(statistics_of(a).covariance)


def test_grows_as_sets_part():
    a = draw(300, 20, 0)
    shifted = [frechet_distance(statistics_of(a), statistics_of(a + x)) for x in (0.1, 1, 10)]
    np.testing.assert_allclose(shifted, [20 * x**2 for x in (0.1, 1, 10)], rtol=1e-9)
    scaled = frechet_distance(statistics_of(a), statistics_of(a.mean(0) + 3 * (a - a.mean(0))))
    assert scaled == pytest.approx(4 * np.trace(statistics_of(a).covariance))
