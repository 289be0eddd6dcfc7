"""Mask schedules: ends, middle, and direction."""

import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax.priors.schedules import SCHEDULES

HALFWAY = {"cosine": np.sqrt(0.5), "linear": 0.5, "square": 0.75, "arccos": 2 / 3}


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
