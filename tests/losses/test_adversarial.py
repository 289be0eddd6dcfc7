import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax import losses


def test_hinge_by_hand():
    real = jnp.array([2.0, 0.5]).reshape(1, 2, 1, 1)
    fake = jnp.array([-3.0, 1.0]).reshape(1, 2, 1, 1)
    assert losses.hinge_generator_loss(fake) == pytest.approx(1.0)
    assert losses.hinge_discriminator_loss(real, fake) == pytest.approx((0.25 + 1.0) / 2)
    to_real, to_fake = jax.grad(losses.hinge_discriminator_loss, argnums=(0, 1))(real, fake)
    np.testing.assert_allclose(np.ravel(to_real), [0.0, -0.25])
    np.testing.assert_allclose(np.ravel(to_fake), [0.0, 0.25])


def test_adaptive_weight_is_a_clamped_ratio_of_norms():
    ratio = losses.adaptive_weight(jnp.array([3.0, 4.0]), jnp.array([0.0, 10.0]))
    assert ratio == pytest.approx(0.5, rel=1e-4)
    assert losses.adaptive_weight(jnp.ones(3) * 1e9, jnp.zeros(3)) == 1e4
    assert losses.adaptive_weight(jnp.zeros(3), jnp.zeros(3)) == 0.0
    low = losses.adaptive_weight(jnp.ones(3, jnp.bfloat16), jnp.ones(3, jnp.bfloat16))
    assert low.dtype == jnp.float32
