"""Paper equation 1: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax import quantize

K = 4


def test_values_by_hand():
    assert quantize.prior_kl(jnp.full((2, K), 0.25)) == pytest.approx(0.0, abs=1e-6)
    collapsed = jnp.zeros((3, K)).at[:, 1].set(1.0)
    assert quantize.prior_kl(collapsed) == pytest.approx(np.log(K), rel=1e-6)
    half = jnp.array([[0.5, 0.5, 0.0, 0.0]])
    assert quantize.prior_kl(half) == pytest.approx(np.log(2), rel=1e-6)


def test_scope_averages_before_or_after_the_logarithm():
    two_images = jnp.array([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    assert quantize.prior_kl(two_images, scope="batch") == pytest.approx(np.log(2), rel=1e-6)
    assert quantize.prior_kl(two_images, scope="image") == pytest.approx(np.log(4), rel=1e-6)
    with pytest.raises(ValueError, match="scope"):
        quantize.prior_kl(two_images, scope="device")


def test_gradient_is_log_plus_one_and_finite_at_zero():
    shares = jnp.array([[0.7, 0.2, 0.1, 0.0]])
    gradient = jax.grad(quantize.prior_kl)(shares)[0]
    np.testing.assert_allclose(gradient[:3], np.log(K * shares[0, :3]) + 1, rtol=1e-5)
    assert np.isfinite(gradient[3]) and gradient[3] < gradient[2]


def test_descent_on_the_logits_spreads_the_codes():
    """The straight-through path carries eq. 1 to the logits: usage must grow from one code to all."""
    features = jax.random.normal(jax.random.key(0), (4, 8, 8, 6))
    weights = {"kernel": jax.random.normal(jax.random.key(1), (6, 16)) * 0.1, "bias": jnp.zeros(16)}
    weights["bias"] = weights["bias"].at[3].set(5.0)
    codebook = jnp.zeros((16, 2))

    def posterior(weights):
        logits = features @ weights["kernel"] + weights["bias"]
        return quantize.deterministic(logits, codebook).posterior

    @jax.jit
    def step(weights):
        gradient = jax.grad(lambda w: quantize.prior_kl(posterior(w)))(weights)
        return jax.tree.map(lambda w, g: w - 1.0 * g, weights, gradient)

    assert (posterior(weights).mean(0) > 0).sum() == 1
    for _ in range(200):
        weights = step(weights)
    assert (posterior(weights).mean(0) > 0).sum() == 16
