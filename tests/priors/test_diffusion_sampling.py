"""The mask-and-replace sampler: its law by enumeration, its promises, and a toy learned and drawn back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax.errors import UserError
from regvq_jax.priors import diffusion, diffusion_sampling, timesteps
from regvq_jax.priors.diffusion_schedules import SCHEDULES, make_schedule
from tests.priors import toy
from tests.priors.test_diffusion import TwoTokens, product

K, N, T = 5, 12, 10
MASK = K


def row_keys(seed, rows):
    return jax.random.split(jax.random.key(seed), rows)


def logits_fn(tokens, time):
    """Logits that depend on the whole row and the time, so that a changed token changes all after it."""
    table = jnp.asarray(np.random.default_rng(0).standard_normal((K + 1, K)), jnp.float32)
    return table[tokens] + jnp.cos(3 * table[tokens].sum(1, keepdims=True)) * (1 + time[:, None, None])


def trajectory(logits_fn, tokens, schedule, **options):
    """The tokens before each step, int [steps, B, N], the times the network was told, and the result."""
    seen = []

    def recording(tokens, time):
        jax.debug.callback(lambda *x: seen.append(tuple(map(np.asarray, x))), tokens, time, ordered=True)
        return logits_fn(tokens, time)

    keys = row_keys(0, tokens.shape[0])
    result = jax.jit(lambda: diffusion_sampling.sample(keys, recording, tokens, schedule, **options))()
    jax.effects_barrier()
    states, times = map(np.stack, zip(*seen, strict=True))
    return states, times, np.asarray(result)


@pytest.mark.parametrize("steps", [3, 5])
@pytest.mark.parametrize("name", SCHEDULES)
def test_law_of_the_sampler_by_enumeration(name, steps):
    """An arbitrary network on two tokens, every chain multiplied out, with skipped steps too."""
    toy_chain, rows = TwoTokens(name), 40_000
    times = np.rint(np.linspace(5, 0, steps + 1)).astype(int)
    expected = np.zeros(9)
    expected[-1] = 1  # All mask.
    for t, s in zip(times[:-1], times[1:], strict=True):
        expected = expected @ toy_chain.back(t, s)
    start = jnp.full((rows, 2), 2)
    draw = lambda keys: diffusion_sampling.sample(
        keys, toy_chain.logits_fn, start, toy_chain.schedule, steps=steps
    )
    drawn = np.asarray(jax.jit(draw)(row_keys(0, rows))) @ np.array([3, 1])
    shares = np.bincount(drawn, minlength=9) / rows
    assert np.abs(shares - expected).max() < 5 * np.sqrt(0.25 / rows)
    assert product(toy_chain.steps, 2)[0, 2] > 0.89  # The chain has something to open.


class TestPromises:
    @pytest.mark.parametrize("options", [{}, {"purity": 1.0, "truncation": 0.86, "temperature": 0.7}])
    @pytest.mark.parametrize("name", SCHEDULES)
    def test_given_tokens_stay_and_every_position_is_filled(self, name, options):
        start = jnp.full((3, N), MASK).at[1, :8].set(2).at[2].set(4)
        states, times, result = trajectory(logits_fn, start, make_schedule(name, K, T), steps=4, **options)
        assert (states[0] == start).all()
        np.testing.assert_allclose(times[:, 0] * T, np.rint(np.linspace(10, 0, 5))[:-1], rtol=1e-6)
        assert (states[:, 1, :8] == 2).all() and (states[:, 2] == 4).all()
        assert (result[1, :8] == 2).all() and (result[2] == 4).all()
        assert result.min() >= 0 and result.max() < K
        masked = (states == MASK).sum(-1)
        assert (np.diff(masked, axis=0) <= 0).all() and 0 < masked[2, 0] < N

    @pytest.mark.parametrize("options", [{}, {"purity": 0.5}])
    def test_keys_alone_decide_and_a_batch_equals_one_by_one(self, options):
        schedule = make_schedule("paper", K, T)
        traces = []

        @jax.jit
        def draw(keys, start):
            def counting(*inputs):
                traces.append(inputs[0].shape)
                return logits_fn(*inputs)

            return diffusion_sampling.sample(keys, counting, start, schedule, steps=T, **options)

        keys, start = row_keys(3, 4), jnp.full((4, N), MASK).at[2, 3:6].set(1)
        batch = draw(keys, start)
        np.testing.assert_array_equal(draw(keys, start), batch)
        np.testing.assert_array_equal(draw(keys[::-1], start[::-1])[::-1], batch)
        assert traces == [(4, N)]  # One trace for ten steps and three calls.
        for i in range(4):
            np.testing.assert_array_equal(draw(keys[i : i + 1], start[i : i + 1])[0], batch[i])
        assert (batch[0] != batch[1]).any()
        assert batch.dtype == start.dtype

    def test_bad_arguments(self):
        start, schedule = jnp.full((2, N), MASK), make_schedule("paper", K, T)
        for steps in (0, T + 1):
            with pytest.raises(UserError, match=r"1\.\.10"):
                diffusion_sampling.sample(row_keys(0, 2), logits_fn, start, schedule, steps=steps)
        with pytest.raises(ValueError, match="one a row"):
            diffusion_sampling.sample(row_keys(0, 3), logits_fn, start, schedule, steps=2)
        with pytest.raises(ValueError, match="over 5 codes"):
            other = make_schedule("paper", K + 1, T)
            diffusion_sampling.sample(row_keys(0, 2), logits_fn, start, other, steps=2)


class TestFilters:
    SHARES = np.array([0.5, 0.3, 0.15, 0.05])

    def draw(self, **options):
        """Shares of the four codes among 8,000 tokens that are drawn in one jump."""
        fn = lambda tokens, time: jnp.broadcast_to(jnp.log(self.SHARES), (*tokens.shape, 4))
        schedule, start = make_schedule("released", 4, T), jnp.full((1, 8000), 4)
        draw = lambda keys: diffusion_sampling.sample(keys, fn, start, schedule, steps=1, **options)
        return np.bincount(np.asarray(jax.jit(draw)(row_keys(1, 1)))[0], minlength=4) / 8000

    def test_temperature(self):
        expected = self.SHARES**2 / np.sum(self.SHARES**2)
        np.testing.assert_allclose(self.draw(temperature=0.5), expected, atol=0.025)
        np.testing.assert_array_equal(self.draw(temperature=0.0), [1, 0, 0, 0])

    def test_truncation_keeps_the_likeliest(self):
        expected = np.array([0.5, 0.3, 0.15, 0]) / 0.95
        shares = self.draw(truncation=0.86)
        np.testing.assert_allclose(shares, expected, atol=0.025)
        assert shares[3] == 0

    def test_purity_sharpens(self):
        expected = self.SHARES ** (1 + 0.8 * 0.5)
        np.testing.assert_allclose(self.draw(purity=0.8), expected / expected.sum(), atol=0.025)


@pytest.mark.parametrize("name", SCHEDULES)
def test_purity_opens_confident_tokens_first_and_as_many_as_without(name):
    # The first half of the row is sure of code 0, the second half knows nothing.
    sure = jnp.zeros((N, K)).at[: N // 2, 0].set(9.0)
    fn = lambda tokens, time: jnp.broadcast_to(sure, (*tokens.shape, K))
    start, schedule = jnp.full((400, N), MASK), make_schedule(name, K, T)
    plain, _, _ = trajectory(fn, start, schedule, steps=2)
    pure, _, _ = trajectory(fn, start, schedule, steps=2, purity=200.0)
    left = lambda states: (states[1] == MASK).reshape(400, 2, N // 2).sum(-1)
    log_gamma = schedule.total.log_gamma
    chance = np.exp(log_gamma[5] - log_gamma[10])
    np.testing.assert_allclose(left(plain).mean(0) / (N // 2), chance, atol=0.05)
    # Sure tokens are left only where all unsure ones are.
    num_left = left(plain).sum(-1)
    np.testing.assert_array_equal(left(pure)[:, 0], np.maximum(num_left - N // 2, 0))
    np.testing.assert_array_equal(left(pure)[:, 1], np.minimum(num_left, N // 2))


def test_tokens_open_in_proportion_to_purity():
    # Purity 0.9995 and 0.2; at strength 2 the odds are 25 to 1.
    logits = jnp.zeros((2, K)).at[0, 0].set(9.0)
    fn = lambda tokens, time: jnp.broadcast_to(logits, (*tokens.shape, K))
    start, schedule = jnp.full((4000, 2), MASK), make_schedule("paper", K, T)
    for strength in (1.0, 2.0):
        is_masked = trajectory(fn, start, schedule, steps=2, purity=strength)[0][1] == MASK
        one_open = is_masked[is_masked.sum(-1) == 1]
        assert len(one_open) > 1500
        assert 1 - one_open[:, 0].mean() == pytest.approx(1 / (1 + 0.2**strength), abs=0.03)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_toy_distribution_is_learned_and_sampled_back(name):
    schedule = make_schedule(name, toy.NUM_CODES, 50)

    def loss_fn(key, logits_fn, tokens):
        time_key, noise_key = jax.random.split(key)
        history = timesteps.init_history(50)
        t, probability = timesteps.draw_times(time_key, history, len(tokens))
        noisy = diffusion.corrupt(noise_key, tokens, t, schedule)
        logits = logits_fn(noisy, t / 50)
        return diffusion.loss(logits, tokens, noisy, t, schedule, probability=probability).loss

    params = toy.train(loss_fn)
    start = jnp.full((6000, toy.NUM_TOKENS), toy.NUM_CODES)
    draw = lambda keys: diffusion_sampling.sample(
        keys, lambda *inputs: toy.network(params, *inputs), start, schedule, steps=50
    )
    assert toy.total_variation(jax.jit(draw)(row_keys(1, 6000))) < 0.05
