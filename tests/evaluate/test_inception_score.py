"""Inception Score by hand, and by torch-fidelity."""

import numpy as np
import pytest

from regvq_jax.evaluate.inception_score import add, empty_sums, inception_score, split_of_images
from tests.evaluate import torch_fidelity_parts


def score(logits, sizes, splits=10, seed=2020):
    """The logits in batches of these sizes."""
    assert sum(sizes) == len(logits)
    split = split_of_images(len(logits), splits, seed)
    sums = empty_sums(splits, logits.shape[1])
    edges = np.cumsum([0, *sizes])
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        sums = add(sums, logits[start:stop], split[start:stop])
    return inception_score(sums)


@pytest.mark.parametrize("count", [1000, 97, 10])
@pytest.mark.parametrize("scale", [0.3, 3, 300])
def test_torch_fidelity(count, scale):
    isc = torch_fidelity_parts.load().isc
    torch = pytest.importorskip("torch")
    logits = (scale * np.random.default_rng(0).standard_normal((count, 20))).astype(np.float32)
    expected = isc.isc_features_to_metric(torch.from_numpy(logits))
    ours = score(logits, [count // 2, 1, count - count // 2 - 1])
    if scale == 300:
        # Classes of a probability below 1e-308 make 0 times infinity there.
        assert np.isfinite(ours).all()
    else:
        expected = expected[isc.KEY_METRIC_ISC_MEAN], expected[isc.KEY_METRIC_ISC_STD]
        np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-9)


def test_by_hand():
    logits = 50.0 * np.eye(4, dtype=np.float32)[np.arange(40) % 4]
    # All in one split: four classes, equally often, without doubt.
    np.testing.assert_allclose(score(logits, [40], splits=1), (4, 0), atol=1e-9)
    # One class only; the same doubt everywhere.
    np.testing.assert_allclose(score(logits[::4], [10]), (1, 0), atol=1e-9)
    np.testing.assert_allclose(score(np.tile([1.0, 2, 3], (40, 1)), [40]), (1, 0), atol=1e-9)
    # Two images of one split, p = (3/4, 1/4) and (1/4, 3/4), marginal 1/2 each: KL = log 2 - H(1/4).
    odds = np.log([[3.0, 1], [1, 3]])
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    np.testing.assert_allclose(score(odds, [1, 1], splits=1)[0], 2 / np.exp(entropy), rtol=1e-12)


def test_splits():
    split = split_of_images(103)
    assert set(np.bincount(split)) == {10, 11} and split.dtype == np.int64
    assert len(set(split[:10])) > 3  # Shuffled: an order in the data is no matter.
    np.testing.assert_array_equal(split, split_of_images(103))
    assert (split != split_of_images(103, seed=1)).any()
    # Ten splits of which some are empty: those count for nothing.
    logits = 50.0 * np.eye(4)
    assert score(logits, [4]) == pytest.approx((1, 0))


def test_what_was_summed_stays():
    rng = np.random.default_rng(0)
    first = add(empty_sums(2, 3), rng.standard_normal((4, 3)), np.array([0, 0, 1, 1]))
    before = [x.copy() for x in first]
    add(first, rng.standard_normal((2, 3)), np.array([0, 1]))
    for now, then in zip(first, before, strict=True):
        np.testing.assert_array_equal(now, then)
