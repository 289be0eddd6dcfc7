"""Copies are found and named; what nobody saw counts for half."""

import numpy as np
import pytest

from regvq_jax.evaluate.memorisation import find_neighbours


def draw(count, seed):
    return np.random.default_rng(seed).standard_normal((count, 16)).astype(np.float32)


def test_copies():
    train, heldout = draw(90, 0), draw(90, 1)
    places = np.random.default_rng(2).permutation(90)[:30]
    found = find_neighbours(train[places], train, heldout)
    assert found.metrics["closer_to_train"] == 1
    assert found.metrics["train_distance"] < 1e-5 < 1 < found.metrics["heldout_distance"]
    np.testing.assert_array_equal(found.train, places[found.samples])
    assert sorted(found.samples) == list(range(30)) and found.distances.max() < 1e-5


def test_one_copy_is_the_first_among_samples():
    train, samples = draw(300, 0), draw(20, 1)
    samples[13] = train[217] + 1e-4
    found = find_neighbours(samples, train, draw(50, 2))
    assert (found.samples[0], found.train[0]) == (13, 217)
    assert (np.diff(found.distances) >= 0).all()
    assert found.distances[0] == pytest.approx(4e-4, rel=1e-2)
    for sample, nearest, distance in zip(*found[1:], strict=True):
        table = np.linalg.norm(train - samples[sample], axis=1)
        assert table.argmin() == nearest and table.min() == pytest.approx(distance, rel=1e-3)


@pytest.mark.parametrize(("train_count", "heldout_count"), [(400, 400), (2000, 200), (200, 2000)])
def test_independent_samples(train_count, heldout_count):
    """However many more images one side has."""
    found = find_neighbours(draw(400, 0), draw(train_count, 1), draw(heldout_count, 2))
    assert found.metrics["closer_to_train"] == pytest.approx(0.5, abs=0.1)
    ratio = found.metrics["train_distance"] / found.metrics["heldout_distance"]
    assert ratio == pytest.approx(1, abs=0.03)
    assert len(found.samples) == len(found.train) == len(found.distances) == 400


def test_a_tie_is_half():
    train = draw(40, 0)
    metrics = find_neighbours(draw(30, 1), train, train).metrics
    assert metrics["closer_to_train"] == 0.5
    assert metrics["train_distance"] == metrics["heldout_distance"]


def test_figures_by_hand():
    """The median of 1, 2 and 6, and of 3, 0.5 and 1; two of three are closer to what was not seen."""
    samples, train, heldout = (np.array(x, float)[:, None] for x in ([0, 10, 20], [1, 12, 26], [-3, 9.5, 21]))
    found = find_neighbours(samples, train, heldout)
    assert found.metrics == pytest.approx(
        {"train_distance": 2, "heldout_distance": 1, "closer_to_train": 1 / 3}
    )
    np.testing.assert_array_equal(found.samples, [0, 1, 2])
    np.testing.assert_array_equal(found.train, [0, 1, 2])
    np.testing.assert_allclose(found.distances, [1, 2, 6])
