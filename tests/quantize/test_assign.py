"""Tiles and their own backward pass against the plain form, which holds everything and is differentiated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax.quantize.assign import assign
from regvq_jax.quantize.logits import Affine, affine_logits, best_code, distance_affine, dot_affine
from regvq_jax.quantize.noise import draw, gumbel_noise

B, N, D, K = 2, 12, 5, 32
TEMPERATURE, ENTROPY_TEMPERATURE = 0.7, 0.3
FEATURES = jax.random.normal(jax.random.key(1), (B, N, D))
CODEBOOK = jax.random.normal(jax.random.key(2), (K, D)) * 0.5
KERNEL, BIAS = jax.random.normal(jax.random.key(3), (D, K)), jax.random.normal(jax.random.key(4), (K,))
DRAWS = draw(jax.random.key(5), B, N, 0.4)
SOFT = ("quantized", "posterior", "soft_posterior", "entropy")
AFFINES = {
    "dot": lambda params: dot_affine(params["codebook"]),
    "distance": lambda params: distance_affine(params["codebook"]),
    "projection": lambda params: Affine(params["kernel"], params["bias"]),
}
PARAMS = {"codebook": CODEBOOK, "kernel": KERNEL, "bias": BIAS}


def plain(features, affine, codebook, draws):
    """The same by automatic differentiation of whole arrays."""
    logits = affine_logits(features, affine)
    noisy = logits
    if draws is not None:
        noisy = jnp.where(draws.mask[..., None], logits + gumbel_noise(draws.row_keys, jnp.arange(K)), logits)
    codes = jnp.argmax(noisy, -1)
    soft = jax.nn.softmax(noisy / TEMPERATURE, -1)
    soft_path = soft - jax.lax.stop_gradient(soft)
    log_shares = jax.nn.log_softmax(logits / ENTROPY_TEMPERATURE, -1)
    shares = jnp.exp(log_shares)
    return {
        "quantized": codebook[codes] + soft_path @ jax.lax.stop_gradient(codebook),
        "posterior": jnp.mean(jax.nn.one_hot(codes, K) + soft_path, 1),
        "soft_posterior": jnp.mean(shares, 1),
        "entropy": -jnp.sum(shares * log_shares, -1),
        "codes": codes,
        "best_codes": jnp.argmax(logits, -1),
    }


def tiled(tile_size):
    def fn(features, affine, codebook, draws):
        temperature = jnp.float32(TEMPERATURE)
        out = assign(features, affine, codebook, draws, temperature, ENTROPY_TEMPERATURE, tile_size)
        return out._asdict()

    return fn


def step(assign_fn, affine_fn, draws, used):
    """((value, outputs), gradients) of a weighted sum of the used outputs."""

    def value(features, params):
        out = assign_fn(features, affine_fn(params), params["codebook"], draws)
        weights = {name: np.random.default_rng(i).normal(size=out[name].shape) for i, name in enumerate(SOFT)}
        return sum(jnp.sum(weights[name] * out[name]) for name in used), out

    return jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))(FEATURES, PARAMS)


def assert_same(one, other):
    ((_, a), a_grads), ((_, b), b_grads) = one, other
    for name in ("codes", "best_codes"):
        np.testing.assert_array_equal(a[name], b[name])
    trees = ({name: a[name] for name in SOFT}, a_grads), ({name: b[name] for name in SOFT}, b_grads)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-5), *trees)


@pytest.mark.parametrize("affine", AFFINES)
@pytest.mark.parametrize("draws", [DRAWS, None], ids=["sampled", "clean"])
def test_everything_equals_the_plain_form(affine, draws):
    expected = step(plain, AFFINES[affine], draws, SOFT)
    for tile_size in (4, N):
        assert_same(step(tiled(tile_size), AFFINES[affine], draws, SOFT), expected)


@pytest.mark.parametrize("used", SOFT)
def test_each_output_has_its_own_gradient(used):
    """The backward pass leaves out what the loss does not look at, and nothing else."""
    results = (step(fn, AFFINES["projection"], DRAWS, (used,)) for fn in (tiled(4), plain))
    assert_same(*results)


def test_logits_may_be_given():
    def gradient(fn):
        def value(logits):
            out = fn(logits, Affine(), CODEBOOK, DRAWS)
            return jnp.sum(out["quantized"] ** 2) + jnp.sum(out["posterior"] ** 2)

        return jax.jit(jax.grad(value))(affine_logits(FEATURES, Affine(KERNEL, BIAS)))

    np.testing.assert_allclose(gradient(tiled(4)), gradient(plain), rtol=1e-4, atol=1e-5)


def test_the_temperature_gets_no_gradient():
    def value(temperature):
        out = assign(FEATURES, dot_affine(CODEBOOK), CODEBOOK, DRAWS, temperature, 1.0, N)
        return jnp.sum(out.quantized)

    assert jax.grad(value)(jnp.float32(0.5)) == 0.0


@pytest.mark.parametrize("num_codes", [1, 7, 96, 256, 384, 1000])
def test_best_code_is_the_argmax_and_the_first_of_equals(num_codes):
    rng = np.random.default_rng(0)
    for logits in (rng.normal(size=(3, 5, num_codes)), rng.integers(0, 3, (3, 5, num_codes))):
        codes, largest = best_code(jnp.asarray(logits, jnp.float32))
        np.testing.assert_array_equal(codes, logits.argmax(-1))
        np.testing.assert_allclose(largest, logits.max(-1), rtol=1e-6)
    last = num_codes - 1
    codes, _ = best_code(jnp.asarray(logits, jnp.float32), lambda x, codes: x + 10.0 * (codes == last))
    assert (codes == last).all()
