import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax import losses


@pytest.fixture
def images():
    """(originals, reconstructions) that differ in two of six values, by -0.6 and 0.3."""
    images = jnp.zeros((1, 2, 1, 3))
    return images, images.at[0, 0, 0, 0].set(-0.6).at[0, 1, 0, 2].set(0.3)


def test_l1_by_hand(images):
    value, gradient = jax.value_and_grad(losses.l1_loss, argnums=1)(*images)
    assert value == pytest.approx(0.9 / 6)
    moved = np.ravel(gradient)[[0, 5]]
    np.testing.assert_allclose(moved, [-1 / 6, 1 / 6], rtol=1e-6)


def test_l2_by_hand(images):
    value, gradient = jax.value_and_grad(losses.l2_loss, argnums=1)(*images)
    assert value == pytest.approx(0.45 / 6)
    np.testing.assert_allclose(np.ravel(gradient), [-0.2, 0, 0, 0, 0, 0.1], rtol=1e-5)
    low = losses.l2_loss(*(x.astype(jnp.bfloat16) for x in images))
    assert low.dtype == jnp.float32 and low == pytest.approx(0.45 / 6, rel=1e-2)
