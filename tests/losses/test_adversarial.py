"""GAN losses and penalties against values and gradients computed by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax import losses
from regvq_jax.models.discriminator import PatchDiscriminator


def logits(*values, dtype=jnp.float32):
    return jnp.array(values, dtype).reshape(1, len(values), 1, 1)


def test_hinge_by_hand():
    real, fake = logits(2.0, 0.5), logits(-3.0, 1.0)
    assert losses.hinge_generator_loss(fake) == pytest.approx(1.0)
    assert losses.hinge_discriminator_loss(real, fake) == pytest.approx((0.25 + 1.0) / 2)
    to_real, to_fake = jax.grad(losses.hinge_discriminator_loss, argnums=(0, 1))(real, fake)
    np.testing.assert_allclose(np.ravel(to_real), [0.0, -0.25])
    np.testing.assert_allclose(np.ravel(to_fake), [0.0, 0.25])


def test_non_saturating_by_hand():
    """softplus(log 3) = log 4, softplus(-log 3) = log 4/3, and their slopes are 3/4 and 1/4."""
    real, fake = logits(np.log(3), 0.0), logits(-np.log(3), np.log(3))
    generator_loss, discriminator_loss = losses.GAN_LOSSES["non_saturating"]
    value, toward_real = jax.value_and_grad(generator_loss)(fake)
    assert value == pytest.approx((np.log(4) + np.log(4 / 3)) / 2)
    np.testing.assert_allclose(np.ravel(toward_real), [-3 / 8, -1 / 8], rtol=1e-5)
    value, (to_real, to_fake) = jax.value_and_grad(discriminator_loss, argnums=(0, 1))(real, fake)
    on_real, on_fake = (np.log(4 / 3) + np.log(2)) / 2, (np.log(4 / 3) + np.log(4)) / 2
    assert value == pytest.approx((on_real + on_fake) / 2)
    np.testing.assert_allclose(np.ravel(to_real), [-1 / 16, -1 / 8], rtol=1e-5)
    np.testing.assert_allclose(np.ravel(to_fake), [1 / 16, 3 / 16], rtol=1e-5)


@pytest.mark.parametrize("name", losses.GAN_LOSSES)
def test_gan_losses_push_apart_and_stay_finite(name):
    """At +-10,000 too; the generator still learns where the discriminator is sure of a fake."""
    generator_loss, discriminator_loss = losses.GAN_LOSSES[name]
    for dtype in (jnp.float32, jnp.bfloat16):
        extremes = logits(-1e4, -1.0, 0.0, 1.0, 1e4, dtype=dtype)
        value, toward_real = jax.value_and_grad(generator_loss)(extremes)
        assert value.dtype == jnp.float32 and np.isfinite(value)
        assert np.isfinite(toward_real).all() and np.all(toward_real <= 0)
        assert float(toward_real[0, 0, 0, 0]) == pytest.approx(-1 / 5, rel=1e-2)
        value, grads = jax.value_and_grad(discriminator_loss, argnums=(0, 1))(extremes, extremes)
        # The wrong 10,000 of either side weighs 1/2 * 1/5.
        assert value.dtype == jnp.float32 and value == pytest.approx(2000.0, rel=1e-2)
        assert np.isfinite(grads).all() and np.all(grads[0] <= 0) and np.all(grads[1] >= 0)


def test_r1_by_hand():
    """D(x) = a |x_patch|^2: the gradient is 2 a x, hence 2 a^2 |x|^2 and its slope 4 a |x|^2."""
    images = jnp.arange(24.0).reshape(2, 2, 2, 3) / 8
    squares = np.sum(np.square(images, dtype=np.float64), axis=(1, 2, 3)).mean()

    def penalty(a, images):
        return losses.r1_penalty(lambda x: a * jnp.sum(x * x, -1, keepdims=True), images)

    for dtype in (jnp.float32, jnp.bfloat16):
        value, slope = jax.value_and_grad(penalty)(0.5, images.astype(dtype))
        assert value.dtype == jnp.float32
        assert value == pytest.approx(0.5 * squares, rel=1e-5)
        assert slope == pytest.approx(2.0 * squares, rel=1e-5)
    assert penalty(1e4, images) == pytest.approx(2e8 * squares, rel=1e-5)


def test_r1_of_a_batch_is_the_mean_over_its_images():
    discriminator = PatchDiscriminator(channels=4, num_layers=1)
    images = jax.random.uniform(jax.random.key(0), (3, 8, 8, 3), minval=-1.0)
    params = discriminator.init(jax.random.key(1), images)["params"]

    def penalty(params, images):
        return losses.r1_penalty(partial(discriminator.apply, {"params": params}), images)

    penalty_and_slope = jax.value_and_grad(penalty)
    whole = jax.jit(penalty_and_slope)(params, images)
    alone = jax.jit(jax.vmap(penalty_and_slope, in_axes=(None, 0)))(params, images[:, None])
    for x, parts in zip(jax.tree.leaves(whole), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(x, parts.mean(0), rtol=1e-3, atol=1e-6)
    assert np.any(whole[1]["Conv_0"]["kernel"])


def test_lecam_by_hand():
    """Only what lies beyond the other side's average is pulled back, with the slope 2 x / count."""
    real, fake = logits(2.0, -1.0), logits(-3.0, 1.5)
    averages = jnp.float32(1.0), jnp.float32(-0.5)
    value, (to_real, to_fake, *to_averages) = jax.value_and_grad(losses.lecam_penalty, argnums=(0, 1, 2, 3))(
        real, fake, *averages
    )
    assert value == pytest.approx((2.5**2 + 4.0**2) / 2)
    np.testing.assert_allclose(np.ravel(to_real), [2.5, 0.0])
    np.testing.assert_allclose(np.ravel(to_fake), [-4.0, 0.0])
    assert to_averages == [0.0, 0.0]


def test_lecam_of_extreme_logits():
    extremes = logits(-1e4, 1e4, dtype=jnp.bfloat16)
    zero = jnp.float32(0.0)
    value, grads = jax.value_and_grad(losses.lecam_penalty, argnums=(0, 1))(extremes, extremes, zero, zero)
    assert value.dtype == jnp.float32 and value == pytest.approx(1e8, rel=1e-2)
    assert np.isfinite(np.asarray(grads, np.float32)).all()


def test_accuracy_counts_zero_as_wrong():
    real, fake = logits(3.0, 1e-3, 0.0, -1.0), logits(-2.0, 0.0, 0.0, 5.0, dtype=jnp.bfloat16)
    accuracies = losses.discriminator_accuracy(real, fake)
    assert accuracies == (0.5, 0.25)
    assert [x.dtype for x in accuracies] == [jnp.float32] * 2
    zeros = jnp.zeros((1, 2, 1, 1))
    assert losses.discriminator_accuracy(zeros, zeros) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("ramp_steps", "expected"),
    [(4, [0, 0, 0.25, 0.5, 0.75, 1, 1]), (1, [0, 0, 1, 1, 1, 1, 1]), (0, [0, 0, 1, 1, 1, 1, 1])],
)
def test_ramp(ramp_steps, expected):
    ramp = losses.linear_ramp(jnp.arange(8, 15), 10, ramp_steps)
    np.testing.assert_array_equal(ramp, np.float32(expected))
    assert ramp.dtype == jnp.float32


def test_adaptive_weight_is_a_clamped_ratio_of_norms():
    ratio = losses.adaptive_weight(jnp.array([3.0, 4.0]), jnp.array([0.0, 10.0]))
    assert ratio == pytest.approx(0.5, rel=1e-4)
    assert losses.adaptive_weight(jnp.ones(3) * 1e9, jnp.zeros(3)) == 1e4
    assert losses.adaptive_weight(jnp.zeros(3), jnp.zeros(3)) == 0.0
    low = losses.adaptive_weight(jnp.ones(3, jnp.bfloat16), jnp.ones(3, jnp.bfloat16))
    assert low.dtype == jnp.float32
