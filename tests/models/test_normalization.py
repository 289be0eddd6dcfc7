"""Group normalisation against its definition and against flax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax.models.normalization import GroupNorm, normalize_groups

X = np.random.default_rng(0).normal(2.0, 3.0, (2, 4, 6, 8)).astype(np.float32)
SCALE, BIAS = np.random.default_rng(1).normal(size=(2, 8)).astype(np.float32)
DY = np.random.default_rng(2).normal(size=X.shape).astype(np.float32)


def of_flax(x, scale, bias, groups, swish):
    y = nn.GroupNorm(groups, epsilon=1e-6).apply({"params": {"scale": scale, "bias": bias}}, x)
    return nn.swish(y) if swish else y


def test_by_hand():
    x = np.array([[[[1.0, 3.0, 10.0, 10.0]]]], np.float32)
    scale, bias = np.array([1.0, 2.0, 3.0, 4.0], np.float32), np.array([0.0, 1.0, 2.0, 3.0], np.float32)
    # The first group has mean 2 and deviation 1; the second has none, and only its shifts are left.
    y = normalize_groups(x, scale, bias, 2, 1e-6, False)
    np.testing.assert_allclose(y[0, 0, 0], [-1.0, 3.0, 2.0, 3.0], atol=1e-5)
    swish = normalize_groups(x, scale, bias, 2, 1e-6, True)
    np.testing.assert_allclose(swish, y / (1 + np.exp(-np.asarray(y))), atol=1e-6)


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("swish", [False, True])
def test_values_and_gradients_are_those_of_flax(groups, swish):
    ours, pull = jax.vjp(lambda *a: normalize_groups(*a, groups, 1e-6, swish), X, SCALE, BIAS)
    theirs, pull_theirs = jax.vjp(lambda *a: of_flax(*a, groups, swish), X, SCALE, BIAS)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    for found, expected in zip(pull(DY), pull_theirs(DY), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def test_gradients_of_gradients_are_those_of_flax():
    def penalty(function, x, scale):
        return jnp.sum(jax.grad(lambda x: jnp.sum(jnp.sin(function(x, scale, BIAS, 2, True))))(x) ** 2)

    ours = jax.grad(lambda *a: penalty(lambda *b: normalize_groups(*b[:4], 1e-6, b[4]), *a), (0, 1))(X, SCALE)
    theirs = jax.grad(lambda *a: penalty(of_flax, *a), (0, 1))(X, SCALE)
    for found, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_layer_has_the_parameters_of_flax():
    module = GroupNorm(2, swish=True)
    values, params = module.init_with_output(jax.random.key(0), X)
    expected, their_params = nn.GroupNorm(2, epsilon=1e-6).init_with_output(jax.random.key(0), X)
    jax.tree.map(np.testing.assert_array_equal, params, their_params)
    np.testing.assert_allclose(values, nn.swish(expected), atol=2e-5)


def test_statistics_are_float32_in_bfloat16():
    # 512 ones and as many values of 1.5: sums in bfloat16, with its 8 bits, would stop at 256.
    x = jnp.ones((1, 32, 32, 1), jnp.bfloat16).at[0, :, :16].set(1.5)
    y = GroupNorm(1, dtype=jnp.bfloat16).apply({"params": {"scale": np.ones(1), "bias": np.zeros(1)}}, x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.unique(np.asarray(y, np.float32)), [-1.0, 1.0], atol=1e-2)
