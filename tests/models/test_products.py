"""A kernel's product is `dot_general`'s, and so are its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax.models.products import kernel_product


@pytest.mark.parametrize(
    "shapes",
    [((2, 3, 4), (4, 9)), ((2, 3, 9), (9, 4)), ((2, 3, 4), (4, 5, 6)), ((2, 3, 4, 5), (4, 5, 2))],
    ids=["wider", "narrower", "heads out", "heads in"],
)
def test_values_and_gradients(shapes):
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=False))
    axes = next(n for n in (1, 2) if x.shape[-n:] == kernel.shape[:n])
    dims = ((tuple(range(x.ndim - axes, x.ndim)), tuple(range(axes))), ((), ()))
    expected, pull_back = jax.vjp(lambda x, k: jax.lax.dot_general(x, k, dims), x, kernel)
    own_fn = lambda x, k: kernel_product(x, k, dims)
    out, own_pull_back = jax.jit(lambda x, k: jax.vjp(own_fn, x, k))(x, kernel)
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)
    direction = jax.random.normal(keys[2], out.shape)
    for own, other in zip(own_pull_back(direction), pull_back(direction), strict=True):
        assert own.shape == other.shape
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-5)


def test_other_products_are_left_alone():
    x = jnp.arange(6.0).reshape(2, 3)
    dims = (((0,), (0,)), ((), ()))
    np.testing.assert_array_equal(kernel_product(x, x, dims), x.T @ x)
