"""Dropout drops the share that it is told, each element on its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax.models.dropout import STEPS, Dropout, keep_mask


def drop(rate, x, seed=0, deterministic=False):
    return Dropout(rate).apply({}, x, deterministic=deterministic, rngs={"dropout": jax.random.key(seed)})


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_share_and_mean(rate):
    x = jnp.ones((64, 64, 64))
    out = np.asarray(drop(rate, x))
    kept = out[out != 0]
    # Five standard deviations of a share of 2^18 draws.
    assert abs(1 - kept.size / out.size - rate) < 5 * np.sqrt(rate * (1 - rate)) / 2**9
    np.testing.assert_allclose(kept, 1 / (1 - rate), rtol=1e-4)
    assert (out != np.asarray(drop(rate, x, seed=1))).any()


def test_elements_do_not_hang_together():
    keep = np.asarray(keep_mask(jax.random.key(0), (4096, 8), STEPS // 2)) - 0.5
    correlation = 4 * keep.T @ keep / len(keep)
    np.testing.assert_allclose(correlation, np.eye(8), atol=5 / np.sqrt(len(keep)))


def test_widths_that_four_does_not_divide():
    assert keep_mask(jax.random.key(0), (3, 7), STEPS // 2).shape == (3, 7)


def test_nothing_and_all():
    x = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(drop(0.0, x), x)
    np.testing.assert_array_equal(drop(0.5, x, deterministic=True), x)
    np.testing.assert_array_equal(drop(1.0, x), jnp.zeros_like(x))
    assert drop(0.5, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
