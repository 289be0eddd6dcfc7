import jax.numpy as jnp
import numpy as np
import optax
import pytest

from regvq_jax.state import init_state, update_ema


def test_ema_forgets_its_start_and_then_slows_down():
    ema, params = {"w": jnp.array(0.0)}, {"w": jnp.array(1.0)}
    assert update_ema(ema, params, jnp.array(0), 0.999)["w"] == pytest.approx(0.9)
    assert update_ema(ema, params, jnp.array(90), 0.999)["w"] == pytest.approx(9 / 100)
    assert update_ema(ema, params, jnp.array(10**6), 0.999)["w"] == pytest.approx(1e-3, rel=1e-3)


def test_a_fresh_state_averages_only_what_it_was_told_to():
    params = {"a": {"w": jnp.ones(2)}, "b": {"w": jnp.zeros(3)}}
    optimizers = {name: optax.sgd(0.1) for name in params}
    state = init_state(params, optimizers, averaged=("a",))
    assert state.step == 0 and set(state.opt_state) == {"a", "b"} and set(state.ema) == {"a"}
    np.testing.assert_array_equal(state.ema["a"]["w"], params["a"]["w"])
    assert state.ema["a"]["w"] is not params["a"]["w"]
