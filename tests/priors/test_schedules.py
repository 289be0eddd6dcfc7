"""Mask schedules: ends, middle, and direction; the Halton order by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax.priors.schedules import SCHEDULES, halton_order

HALFWAY = {
    "cosine": np.sqrt(0.5),
    "linear": 0.5,
    "square": 0.75,
    "exp": (1 - 1 / 16) * 256 / 255,
    "arccos": 2 / 3,
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule(name):
    values = np.asarray(SCHEDULES[name](jnp.linspace(0, 1, 101)))
    assert values.dtype == np.float32
    assert values[0] == pytest.approx(1, abs=1e-6) and values[0] <= 1
    assert values[-1] == 0
    assert values[50] == pytest.approx(HALFWAY[name], abs=1e-6)
    assert (np.diff(values) < 0).all()


def test_every_schedule_has_a_known_value():
    assert SCHEDULES.keys() == HALFWAY.keys()


@pytest.mark.parametrize("name", SCHEDULES)
def test_integer_and_python_ratios(name):
    assert SCHEDULES[name](0) == pytest.approx(1, abs=1e-6)
    assert SCHEDULES[name](1) == 0


def test_halton_order_by_hand():
    # Points (1/2, 1/3), (1/4, 2/3), (3/4, 1/9), (1/8, 4/9), (5/8, 7/9), (3/8, 2/9), (7/8, 5/9): on 2 x 3 the
    # cells (1, 1), (0, 2), (1, 0), (0, 1), (1, 2), (0, 0).
    assert halton_order((2, 3)).reshape(2, 3).tolist() == [[5, 3, 1], [2, 0, 4]]
    # Along one row the column is base 3 alone: 1/3, 2/3, 1/9 of 3 cells.
    assert halton_order((1, 3)).tolist() == [2, 0, 1]


@pytest.mark.parametrize("grid", [(1, 1), (16, 16), (5, 11), (32, 8)])
def test_halton_order_visits_each_cell_once(grid):
    order = halton_order(grid)
    assert order.dtype == np.int32
    np.testing.assert_array_equal(np.sort(order), np.arange(grid[0] * grid[1]))


def test_halton_order_spreads_from_the_start():
    """The first 25 cells touch each of 16 blocks, none more than twice; random ones do 1 time in 100."""
    early = (halton_order((16, 16)) < 25).reshape(4, 4, 4, 4).sum((1, 3))
    assert early.min() == 1 and early.max() == 2
