"""LPIPS against its formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax import losses
from regvq_jax.losses.lpips import lpips


@pytest.fixture(scope="module")
def taps():
    """Features of three images and of their reconstructions in two taps, and heads."""
    keys = jax.random.split(jax.random.key(0), 6)
    shapes = ((3, 4, 4, 5), (3, 2, 2, 7))
    originals, reconstructions = (
        [jax.nn.relu(jax.random.normal(key, shape)) for key, shape in zip(pair, shapes, strict=True)]
        for pair in (keys[:2], keys[2:4])
    )
    heads = [jax.random.uniform(key, shape[-1:]) for key, shape in zip(keys[4:], shapes, strict=True)]
    return originals, reconstructions, heads


def test_value(taps):
    expected = np.zeros(3)
    for key, query, head in zip(*taps, strict=True):
        y, z = (np.asarray(x, np.float64) for x in (key, query))
        y, z = (x / (np.linalg.norm(x, axis=-1, keepdims=True) + 1e-10) for x in (y, z))
        expected += ((y - z) ** 2 @ np.asarray(head, np.float64)).mean((1, 2))
    value = lpips(*taps)
    assert value.shape == (3,) and value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_gradient_by_hand():
    """Heads (3, 5), unit y = (1, 0) and z = (0, 1): -2 h (y - z) = (-6, 10), of which z's length takes 10."""
    key, query = jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2), jnp.array([0.0, 2.0]).reshape(1, 1, 1, 2)
    heads = [jnp.array([3.0, 5.0])]
    gradient = jax.grad(lambda z: jnp.sum(lpips([key], [z], heads)))(query)
    np.testing.assert_allclose(np.ravel(gradient), [-3.0, 0.0], atol=1e-6)


def test_heads_of_ones_are_the_plain_feature_distance(taps):
    originals, reconstructions, heads = taps
    value = jnp.mean(lpips(originals, reconstructions, [jnp.ones_like(head) for head in heads]))
    assert value == pytest.approx(float(losses.feature_distance(originals, reconstructions)), rel=1e-5)


def test_equal_images_and_dead_features_have_finite_gradients(taps):
    originals, reconstructions, heads = taps
    dead = [tap.at[:, 0].set(0.0) for tap in originals]
    value_and_grad = jax.jit(jax.value_and_grad(lambda query, key: jnp.sum(lpips(key, query, heads))))
    for key, query in ((originals, originals), (dead, dead), (dead, reconstructions), (originals, dead)):
        value, grads = value_and_grad(query, key)
        assert np.isfinite(value) and all(np.isfinite(grad).all() for grad in grads)
        assert (value == 0) == (key is query)


def test_bfloat16_features_give_float32(taps):
    originals, reconstructions, heads = taps
    rough = [[tap.astype(jnp.bfloat16) for tap in side] for side in (originals, reconstructions)]
    value = lpips(*rough, heads)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, lpips(*taps), rtol=2e-2)
