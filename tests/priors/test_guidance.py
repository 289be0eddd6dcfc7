"""Classifier-free guidance by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax.priors.guidance import RAMPS, guided, guided_step, interleave


class Network:
    """logits[r, n, k] = (tokens[r, n] + time[r]) * condition[r, k]; remembers how many rows it saw."""

    def __init__(self):
        self.rows = []

    def __call__(self, tokens, condition, time):
        self.rows.append(tokens.shape[0])
        return (tokens + time[:, None])[..., None] * condition["vector"][:, None, :]


TOKENS = jnp.array([[0, 1], [2, 0], [1, 1]])
TIME = jnp.array([1.0, 0.5, 0.25])
CONDITION = {"vector": jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])}
NULL = {"vector": jnp.array([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0]])}
CONDITIONAL_LOGITS = Network()(TOKENS, CONDITION, TIME)
NULL_LOGITS = Network()(TOKENS, NULL, TIME)

HALFWAY = {"constant": 1.0, "linear": 0.5, "cosine": 0.5}
QUARTER = {"constant": 1.0, "linear": 0.25, "cosine": (1 - np.sqrt(0.5)) / 2}


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0, 3])
def test_formula_in_one_call_on_twice_the_rows(scale):
    network = Network()
    logits = guided(network, CONDITION, NULL, scale)(TOKENS, TIME)
    np.testing.assert_allclose(
        logits, NULL_LOGITS + scale * (CONDITIONAL_LOGITS - NULL_LOGITS), rtol=1e-6, atol=1e-6
    )
    assert network.rows == [6]


@pytest.mark.parametrize("scale", [1.0, 1])
def test_scale_one_calls_the_conditional_rows_alone(scale):
    network = Network()
    logits = guided(network, CONDITION, NULL, scale)(TOKENS, TIME)
    np.testing.assert_array_equal(logits, CONDITIONAL_LOGITS)
    assert network.rows == [3]


def test_scale_a_row_and_traced():
    scales = jnp.array([0.0, 1.0, 2.0])
    logits = jax.jit(lambda s: guided(Network(), CONDITION, NULL, s)(TOKENS, TIME))(scales)
    for i in range(3):
        one = guided(Network(), CONDITION, NULL, float(scales[i]))(TOKENS, TIME)
        np.testing.assert_allclose(logits[i], one[i], rtol=1e-6)


def test_logits_come_back_in_float32():
    def network(tokens, condition, time):
        return jnp.zeros((*tokens.shape, 4), jnp.bfloat16) + condition[:, None, None]

    for scale in (1.0, 2.0):
        condition = jnp.ones(3, jnp.bfloat16)
        assert guided(network, condition, 0 * condition, scale)(TOKENS, TIME).dtype == jnp.float32


@pytest.mark.parametrize("name", RAMPS)
def test_ramps_by_hand(name):
    ramp = np.asarray(RAMPS[name](jnp.linspace(0, 1, 101)))
    assert ramp.dtype == np.float32
    assert ramp[-1] == pytest.approx(1, abs=1e-6)
    assert ramp[50] == pytest.approx(HALFWAY[name], abs=1e-6)
    assert ramp[25] == pytest.approx(QUARTER[name], abs=1e-6)
    assert (np.diff(ramp) >= 0).all()
    assert name == "constant" or ramp[0] == 0
    assert RAMPS[name](0.5) == pytest.approx(HALFWAY[name], abs=1e-6)


def test_every_ramp_has_known_values():
    assert RAMPS.keys() == HALFWAY.keys() == QUARTER.keys()


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_ramp_grows_from_conditional_to_the_full_scale_by_the_time_of_each_row(name):
    network = Network()
    logits = guided(network, CONDITION, NULL, 5.0, RAMPS[name])(TOKENS, TIME)
    np.testing.assert_allclose(logits[0], CONDITIONAL_LOGITS[0], rtol=1e-6)  # Time 1 is ratio 0.
    for row, ratio in ((1, 0.5), (2, 0.75)):
        share = {"linear": ratio, "cosine": (1 - np.cos(np.pi * ratio)) / 2}[name]
        difference = CONDITIONAL_LOGITS[row] - NULL_LOGITS[row]
        np.testing.assert_allclose(
            logits[row], NULL_LOGITS[row] + (1 + 4 * share) * difference, rtol=1e-5, atol=1e-5
        )
    assert network.rows == [6]


def test_interleave_puts_twins_side_by_side():
    pairs = interleave({"a": jnp.arange(3), "b": None}, {"a": -jnp.arange(3), "b": None})
    assert pairs["a"].tolist() == [0, 0, 1, -1, 2, -2] and pairs["b"] is None
    assert interleave(CONDITION, NULL)["vector"].shape == (6, 2)


class TestStep:
    """A step whose cache sums the tokens fed so far: logits = cache + condition."""

    CONDITION = jnp.array([[1.0, 2.0], [3.0, 5.0]])
    NULL = jnp.array([[0.0, 1.0], [1.0, 1.0]])

    def step(self, cache, token, position):
        total = cache["total"] + token
        logits = total[:, None] + cache["condition"]
        return {"total": total, "condition": cache["condition"]}, logits.astype(jnp.bfloat16)

    def start(self):
        return {"total": jnp.zeros(4, jnp.int32), "condition": interleave(self.CONDITION, self.NULL)}

    def test_twins_are_fed_the_same_token(self):
        step = guided_step(self.step, 3.0, 4)
        cache, logits = step(self.start(), jnp.array([2, 7]), jnp.int32(0))
        assert cache["total"].tolist() == [2, 2, 7, 7]
        conditional, null = (jnp.array([[2.0], [7.0]]) + x for x in (self.CONDITION, self.NULL))
        np.testing.assert_array_equal(logits, null + 3 * (conditional - null))
        assert logits.dtype == jnp.float32

    def test_ramp_over_the_positions_and_scale_a_row(self):
        step = guided_step(self.step, jnp.array([5.0, 0.0]), 4, RAMPS["linear"])
        for position, scales in ((0, [1, 1]), (2, [3, 0.5]), (3, [4, 0.25])):
            _, logits = step(self.start(), jnp.array([0, 0]), jnp.int32(position))
            expected = self.NULL + jnp.array(scales)[:, None] * (self.CONDITION - self.NULL)
            np.testing.assert_allclose(logits, expected, rtol=1e-6)
