"""Times drawn evenly or by a loss history: unbiased, stratified, the same on many devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax import sharding
from regvq_jax.priors import timesteps


def history(mean_square, visits=11):
    mean_square = jnp.asarray(mean_square, jnp.float32)
    return timesteps.History(mean_square, jnp.full(mean_square.shape, visits, jnp.int32))


def update(state, t, values):
    return timesteps.update_history(state, timesteps.observe(t, values, state.visits.shape[0]))


class TestStratified:
    def test_every_stratum_once_and_each_row_uniform(self):
        draw = jax.jit(jax.vmap(lambda key: timesteps.stratified(key, 10)))
        numbers = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
        assert numbers.min() >= 0 and numbers.max() < 1
        # Shifted by the smallest, ten numbers lie a tenth apart.
        gaps = np.sort(numbers, -1) - numbers.min(-1, keepdims=True)
        np.testing.assert_allclose(gaps, np.broadcast_to(np.arange(10) / 10, gaps.shape), atol=1e-6)
        assert np.abs(np.corrcoef(numbers[:, 0], numbers[:, 1])[0, 1]) < 0.2  # Neighbours lie anywhere.
        shares = np.stack([np.bincount((row * 5).astype(int), minlength=5) for row in numbers.T]) / 4000
        assert np.abs(shares - 0.2).max() < 5 * np.sqrt(0.16 / 4000)


class TestDrawTimes:
    @pytest.mark.parametrize("visits", [0, 10, 11])
    def test_value_over_probability_has_the_mean_of_the_plain_sum(self, visits):
        state = history([9.0, 0.0, 1.0, 400.0, 0.25], visits)
        t, probability = jax.jit(timesteps.draw_times, static_argnums=2)(jax.random.key(0), state, 100_000)
        assert t.dtype == jnp.int32 and t.min() == 1 and t.max() == 5
        values = np.array([3.0, 0.01, -1.0, 15.0, 2.0])
        # Stratified, 1e5 rows miss the exact shares by at most a row or two a time.
        estimate = np.mean(values[np.asarray(t) - 1] / np.asarray(probability, np.float64))
        assert estimate == pytest.approx(values.sum(), abs=0.05)

    def test_probability_by_hand_and_frequency(self):
        state = history([9.0, 0.0, 1.0, 400.0, 0.25])
        t, probability = timesteps.draw_times(jax.random.key(1), state, 100_000)
        size = np.array([3.0, 1e-5, 1.0, 20.0, 0.5])
        expected = 0.01 / 5 + 0.99 * size / size.sum()
        np.testing.assert_allclose(probability, expected[np.asarray(t) - 1], rtol=1e-5)
        np.testing.assert_allclose(np.bincount(t, minlength=6)[1:] / 100_000, expected, atol=5e-5)

    def test_uniform_until_every_time_was_seen_enough(self):
        state = history([9.0, 0.0, 1.0, 400.0])
        state = state._replace(visits=state.visits.at[2].set(timesteps.MIN_VISITS))
        _, probability = timesteps.draw_times(jax.random.key(0), state, 64)
        np.testing.assert_allclose(probability, 0.25)
        _, probability = timesteps.draw_times(jax.random.key(0), timesteps.init_history(4), 64)
        np.testing.assert_allclose(probability, 0.25)


class TestUpdateHistory:
    def test_by_hand(self):
        t = jnp.array([1, 3, 1, 4])
        first = update(timesteps.init_history(5), t, jnp.array([1.0, 2.0, 3.0, 0.0]))
        np.testing.assert_allclose(first.mean_square, [5.0, 0.0, 4.0, 0.0, 0.0])
        np.testing.assert_array_equal(first.visits, [2, 0, 1, 1, 0])
        t = jnp.array([3, 5, 1, 1])
        second = update(first, t, jnp.array([1.0, 6.0, 1.0, 2.0]))
        expected = [5 + 0.19 * (2.5 - 5), 0.0, 4 + 0.1 * (1 - 4), 0.0, 36.0]
        np.testing.assert_allclose(second.mean_square, expected, rtol=1e-6)
        np.testing.assert_array_equal(second.visits, [4, 0, 2, 1, 1])

    def test_parts_of_a_batch_add_up(self):
        t, values = jnp.array([1, 3, 1, 4]), jnp.array([1.0, 2.0, 3.0, 0.0])
        parts = [timesteps.observe(t[part], values[part], 5) for part in (slice(0, 1), slice(1, 4))]
        both = timesteps.update_history(history([1.0] * 5), jax.tree.map(jnp.add, *parts))
        whole = update(history([1.0] * 5), t, values)
        jax.tree.map(np.testing.assert_array_equal, both, whole)

    def test_values_that_are_not_finite_leave_no_trace(self):
        state = history([9.0, 4.0])
        t, values = jnp.array([1, 1, 2, 2]), jnp.array([jnp.nan, 1.0, jnp.inf, 1e30])
        after = update(state, t, values)
        np.testing.assert_allclose(after.mean_square, [9 - 0.1 * 8, 4.0], rtol=1e-6)
        np.testing.assert_array_equal(after.visits, [12, 11])

    def test_a_batch_over_eight_devices(self):
        mesh = sharding.make_mesh()
        rows = jax.NamedSharding(mesh, jax.P(mesh.axis_names))
        t = jax.random.randint(jax.random.key(0), 64, 1, 8)
        values = jax.random.normal(jax.random.key(1), 64)
        update_fn = jax.jit(update)
        alone = update_fn(timesteps.init_history(7), t, values)
        spread = update_fn(timesteps.init_history(7), *jax.device_put((t, values), rows))
        np.testing.assert_allclose(spread.mean_square, alone.mean_square, rtol=1e-6)
        np.testing.assert_array_equal(spread.visits, alone.visits)
        assert spread.visits.sharding.is_fully_replicated
