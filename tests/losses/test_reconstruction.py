import jax.numpy as jnp
import pytest

from regvq_jax import losses


def test_l1_by_hand():
    images = jnp.zeros((1, 2, 1, 3))
    reconstructions = images.at[0, 0, 0, 0].set(-0.6).at[0, 1, 0, 2].set(0.3)
    assert losses.l1_loss(images, reconstructions) == pytest.approx(0.9 / 6)
