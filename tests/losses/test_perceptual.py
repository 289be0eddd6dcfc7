import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax import losses


def test_distance_of_unit_vectors_by_hand():
    # Angles of 0, 90 and 180 degrees: |a - b|^2 = 0, 2 and 4, whatever the lengths.
    keys = jnp.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]).reshape(1, 3, 1, 2)
    queries = jnp.array([[5.0, 0.0], [0.0, 4.0], [-1.0, 0.0]]).reshape(1, 3, 1, 2)
    assert losses.feature_distance([keys], [queries]) == pytest.approx(2.0, rel=1e-5)
    assert losses.feature_distance([keys] * 3, [queries] * 3) == pytest.approx(6.0, rel=1e-5)


def test_gradient_by_hand():
    """d/dz |y - z/|z||^2 = -2 (y - (y.z) z) / |z| of unit y and z: at right angles y alone counts."""
    key, query = jnp.array([2.0, 0.0]).reshape(1, 1, 1, 2), jnp.array([0.0, 4.0]).reshape(1, 1, 1, 2)
    gradient = jax.grad(lambda z: losses.feature_distance([key], [z]))(query)
    np.testing.assert_allclose(np.ravel(gradient), [-0.5, 0.0], atol=1e-6)


def test_zero_features_have_a_finite_gradient():
    gradient = jax.grad(lambda x: losses.feature_distance([x], [x + 1]))(jnp.zeros((1, 2, 2, 3)))
    assert np.isfinite(gradient).all()
