"""Classifier-free guidance by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax.priors.guidance import guided


class Network:
    """logits[r, n, k] = (tokens[r, n] + 1) * condition[r, k]; remembers how many rows it saw."""

    def __init__(self):
        self.rows = []

    def __call__(self, tokens, condition):
        self.rows.append(tokens.shape[0])
        return (tokens[..., None] + 1.0) * condition["vector"][:, None, :]


TOKENS = jnp.array([[0, 1], [2, 0], [1, 1]])
CONDITION = {"vector": jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])}
NULL = {"vector": jnp.array([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0]])}


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0, 3])
def test_formula_in_one_call_on_twice_the_rows(scale):
    network = Network()
    logits = guided(network, CONDITION, NULL, scale)(TOKENS)
    conditional = (TOKENS[..., None] + 1.0) * CONDITION["vector"][:, None]
    null = (TOKENS[..., None] + 1.0) * NULL["vector"][:, None]
    np.testing.assert_allclose(logits, null + scale * (conditional - null), rtol=1e-6)
    assert network.rows == [6]


@pytest.mark.parametrize("scale", [1.0, 1])
def test_scale_one_calls_the_conditional_rows_alone(scale):
    network = Network()
    logits = guided(network, CONDITION, NULL, scale)(TOKENS)
    np.testing.assert_array_equal(logits, (TOKENS[..., None] + 1.0) * CONDITION["vector"][:, None])
    assert network.rows == [3]


def test_scale_a_row_and_traced():
    scales = jnp.array([0.0, 1.0, 2.0])
    logits = jax.jit(lambda s: guided(Network(), CONDITION, NULL, s)(TOKENS))(scales)
    for i in range(3):
        one = guided(Network(), CONDITION, NULL, float(scales[i]))(TOKENS)
        np.testing.assert_allclose(logits[i], one[i], rtol=1e-6)


def test_logits_come_back_in_float32():
    def network(tokens, condition):
        return jnp.zeros((*tokens.shape, 4), jnp.bfloat16) + condition[:, None, None]

    for scale in (1.0, 2.0):
        condition = jnp.ones(3, jnp.bfloat16)
        assert guided(network, condition, 0 * condition, scale)(TOKENS).dtype == jnp.float32
