"""The common contract of the quantizers, by hand-computed values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax import quantize

KEY = jax.random.key(7)
B, h, w, K, D = 2, 4, 4, 8, 3


@pytest.fixture(scope="module")
def logits():
    return jax.random.normal(jax.random.key(1), (B, h, w, K)) * 2


@pytest.fixture(scope="module")
def codebook():
    return jax.random.normal(jax.random.key(2), (K, D))


def half_masked(key, logits, codebook):
    return quantize.regularized(key, logits, codebook, mask_ratio=0.5)


def never_masked(key, logits, codebook):
    return quantize.deterministic(logits, codebook)


QUANTIZERS = {"regularized": half_masked, "deterministic": never_masked}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_contract(name, logits, codebook):
    out = jax.jit(QUANTIZERS[name])(KEY, logits, codebook)
    assert out.quantized.shape == (B, h, w, D) and out.quantized.dtype == jnp.float32
    for codes in (out.codes, out.best_codes):
        assert codes.shape == (B, h, w) and codes.dtype == jnp.int32
        assert 0 <= codes.min() and codes.max() < K
    assert out.posterior.shape == (B, K)
    assert out.stochastic_mask.shape == (B, h, w) and out.stochastic_mask.dtype == bool
    # The decoder sees exactly the code vectors that the codes name: decode(encode) can repeat it.
    np.testing.assert_array_equal(out.quantized, codebook[out.codes])
    np.testing.assert_array_equal(out.best_codes, np.argmax(logits, -1))
    counts = np.stack([np.bincount(np.ravel(c), minlength=K) for c in out.codes])
    np.testing.assert_allclose(out.posterior, counts / (h * w), atol=1e-6)
    kept = ~np.asarray(out.stochastic_mask)
    np.testing.assert_array_equal(np.asarray(out.codes)[kept], np.asarray(out.best_codes)[kept])
    distance = np.sum((codebook[out.codes] - codebook[out.best_codes]) ** 2, -1)
    np.testing.assert_allclose(out.perturbation, distance, rtol=1e-6)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_same_key_same_result_and_bfloat16_logits(name, logits, codebook):
    first = QUANTIZERS[name](KEY, logits, codebook)
    again = QUANTIZERS[name](KEY, logits, codebook)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    low = QUANTIZERS[name](KEY, logits.astype(jnp.bfloat16), codebook)
    assert low.quantized.dtype == low.posterior.dtype == jnp.float32


def test_mask_ratio_is_the_share_of_sampled_positions(codebook):
    logits = jnp.zeros((16, 16, 16, K))
    out = quantize.regularized(KEY, logits, codebook, mask_ratio=0.4)
    assert abs(float(out.stochastic_mask.mean()) - 0.4) < 0.02
    assert not quantize.regularized(KEY, logits, codebook, mask_ratio=0.0).stochastic_mask.any()
    assert quantize.regularized(KEY, logits, codebook, mask_ratio=1.0).stochastic_mask.all()


def test_sampled_codes_follow_the_softmax_whatever_the_temperature():
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    logits = jnp.broadcast_to(jnp.log(probabilities), (64, 16, 16, 4))
    codebook = jnp.eye(4)
    for temperature in (0.2, 1.0):
        out = quantize.regularized(KEY, logits, codebook, mask_ratio=1.0, temperature=temperature)
        np.testing.assert_allclose(out.posterior.mean(0), probabilities, atol=0.01)


def test_gradients_by_hand(codebook):
    """One position: d quantized / d logits = softmax Jacobian @ codebook; the chosen code gets the rest."""
    logits = jnp.array([0.3, 1.5, -0.7]).reshape(1, 1, 1, 3)
    codebook = codebook[:3]
    cotangent = jnp.array([1.0, -2.0, 0.5])
    temperature = 0.7

    def value(logits, codebook):
        out = quantize.deterministic(logits, codebook, temperature=temperature)
        return jnp.sum(out.quantized * cotangent)

    to_logits, to_codebook = jax.grad(value, argnums=(0, 1))(logits, codebook)
    p = np.exp(np.ravel(logits) / temperature)
    p /= p.sum()
    jacobian = (np.diag(p) - np.outer(p, p)) / temperature
    expected = jacobian @ np.asarray(codebook) @ np.asarray(cotangent)
    np.testing.assert_allclose(np.ravel(to_logits), expected, rtol=1e-5)
    np.testing.assert_allclose(to_codebook[1], cotangent, rtol=1e-6)
    np.testing.assert_array_equal(to_codebook[np.array([0, 2])], 0.0)


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("scale", [0.0, 1e4, 1e30])
def test_extreme_logits_stay_finite(name, scale, logits, codebook):
    def value(logits, codebook):
        out = QUANTIZERS[name](KEY, logits * scale, codebook)
        return out.quantized.sum() + quantize.prior_kl(out.posterior)

    result, grads = jax.value_and_grad(value, argnums=(0, 1))(logits, codebook)
    assert np.isfinite(result)
    assert all(np.isfinite(g).all() for g in grads)
