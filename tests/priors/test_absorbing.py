"""Absorbing diffusion: its bound and samplers by enumeration, and a toy learned and drawn back."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax.errors import UserError
from regvq_jax.priors import absorbing, masked
from tests.priors import toy

K, N = 5, 12
MASK = K
ALPHAS = {"linear": lambda t: 1 - t, "cosine": lambda t: 1 - np.cos(np.pi / 2 * (1 - t))}


def row_keys(seed, rows):
    return jax.random.split(jax.random.key(seed), rows)


def logits_fn(tokens, time):
    """Logits that depend on the whole row and the time, so that a changed token changes all after it."""
    table = jnp.asarray(np.random.default_rng(0).standard_normal((K + 1, K)), jnp.float32)
    return table[tokens] + jnp.cos(3 * table[tokens].sum(1, keepdims=True)) * (1 + time[:, None, None])


def trajectory(logits_fn, tokens, **options):
    """The tokens before each step and at the end, int [steps + 1, B, N], and the times the network saw."""
    seen = []

    def recording(tokens, time):
        jax.debug.callback(lambda *x: seen.append(tuple(map(np.asarray, x))), tokens, time, ordered=True)
        return logits_fn(tokens, time)

    keys = row_keys(0, tokens.shape[0])
    draw = lambda: absorbing.sample(keys, recording, tokens, mask_id=MASK, **options)
    result = jax.jit(draw)()
    jax.effects_barrier()
    states, times = map(np.stack, zip(*seen, strict=True))
    return np.concatenate([states, np.asarray(result)[None]]), times


class TwoTokens:
    """A fixed tabular network over two tokens of K = 3 that ignores time, and what follows from it."""

    states = np.array(list(itertools.product(range(4), repeat=2)))  # [16, 2]
    data = [i for i, state in enumerate(states) if (state < 3).all()]

    def __init__(self):
        self.table = np.random.default_rng(5).standard_normal((16, 2, 3)) * 1.5
        weights = np.exp(self.table)
        self.shares = weights / weights.sum(-1, keepdims=True)

    def logits_fn(self, tokens, time):
        return jnp.asarray(self.table, jnp.float32)[4 * tokens[:, 0] + tokens[:, 1]]

    def chances(self, x0):
        """p(first | none), p(second | none), p(first | second), p(second | first) of one pair."""
        first, second = x0
        return (
            self.shares[15, 0, first],
            self.shares[15, 1, second],
            self.shares[12 + second, 0, first],
            self.shares[4 * first + 3, 1, second],
        )

    def probability(self, x0):
        """In continuous time tokens open one by one, in an order drawn uniformly."""
        first, second, first_after, second_after = self.chances(x0)
        return (first * second_after + second * first_after) / 2

    def expected_bound(self, x0):
        first, second, first_after, second_after = self.chances(x0)
        return -(np.log(first * second_after) + np.log(second * first_after)) / 2

    def step(self, stay_masked, sigma):
        """Transition over the 16 states: each token opens, stays, or is masked again."""
        rows = []
        for state, shares in zip(self.states, self.shares, strict=True):
            single = []
            for place in range(2):
                if state[place] == 3:
                    single.append(np.r_[(1 - stay_masked) * shares[place], stay_masked])
                else:
                    single.append(np.r_[(1 - sigma) * np.eye(3)[state[place]], sigma])
            rows.append(np.outer(*single).ravel())
        return np.array(rows)


@pytest.mark.parametrize("name", absorbing.SCHEDULES)
def test_schedules(name):
    schedule, alpha = absorbing.SCHEDULES[name], ALPHAS[name]
    times = np.linspace(0.01, 0.99, 99)
    np.testing.assert_allclose(1 - schedule.masked(times, np), alpha(times), atol=1e-12)
    assert schedule.masked(np.array([0.0, 1.0]), np).tolist() == [0, 1]
    slope = (alpha(times + 1e-6) - alpha(times - 1e-6)) / 2e-6
    np.testing.assert_allclose(schedule.weight(times, np), -slope / (1 - alpha(times)), rtol=1e-6)
    np.testing.assert_allclose(schedule.time(schedule.masked(times, np), np), times, rtol=1e-12)


class TestCorruptAndLoss:
    @pytest.mark.parametrize("name", absorbing.SCHEDULES)
    def test_masks_each_token_with_one_minus_alpha(self, name):
        tokens = jnp.tile(jnp.arange(4), (3 * 10_000, 1))
        time = jnp.repeat(jnp.array([0.0, 0.3, 1.0]), 10_000)
        corrupted, is_masked = absorbing.corrupt(jax.random.key(0), tokens, time, mask_id=9, schedule=name)
        np.testing.assert_array_equal(corrupted, np.where(is_masked, 9, tokens))
        is_masked = np.asarray(is_masked).reshape(3, 10_000, 4)
        assert not is_masked[0].any() and is_masked[2].all()
        share = 1 - ALPHAS[name](0.3)
        np.testing.assert_allclose(is_masked[1].mean(0), share, atol=0.025)
        assert is_masked[1, :, :2].all(-1).mean() == pytest.approx(share**2, abs=0.025)

    def test_by_hand(self):
        logits = jnp.log(jnp.array([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]] * 3))
        tokens = jnp.array([[0, 2]] * 3)
        is_masked = jnp.array([[True, True], [False, True], [False, False]])
        time = jnp.array([0.5, 0.25, 0.001])
        plain = np.array([np.log(20), np.log(10), 0])
        compute = lambda **options: absorbing.loss(logits, tokens, is_masked, time, **options)
        np.testing.assert_allclose(compute(), plain * [2, 4, 1000], rtol=1e-5)
        weights = np.pi / 2 * np.tan(np.pi / 2 * (1 - np.asarray(time)))
        np.testing.assert_allclose(compute(schedule="cosine"), plain * weights, rtol=1e-5)
        np.testing.assert_allclose(compute(weighted=False), plain, rtol=1e-5)
        # MaskGIT's loss is the mean over the batch's masked tokens.
        maskgit = masked.loss(logits, tokens, is_masked, label_smoothing=0.1)
        summed = compute(weighted=False, label_smoothing=0.1).sum()
        assert summed / is_masked.sum() == pytest.approx(float(maskgit), rel=1e-5)

    @pytest.mark.parametrize("name", absorbing.SCHEDULES)
    def test_gradients_are_finite_at_extreme_logits_and_both_ends(self, name):
        logits = jnp.tile(jnp.array([[-1e4, 1e4, 0], [0, 0, 1e30]], jnp.bfloat16)[:, None], (2, 2, 1))
        time = jnp.array([1e-3, 1e-3, 1.0, 1.0])
        tokens, is_masked = jnp.zeros((4, 2), jnp.int32), jnp.array([[True, False]] * 4)
        compute = lambda x: absorbing.loss(x, tokens, is_masked, time, schedule=name).sum()
        value, gradient = jax.jit(jax.value_and_grad(compute))(logits)
        gradient = np.asarray(gradient, np.float32)
        assert np.isfinite(value) and value > 0 and np.isfinite(gradient).all()
        assert (gradient[:2, 0, 0] < 0).all() and (gradient[:, 1] == 0).all()


class TestBound:
    def test_lies_above_the_enumerated_likelihood_and_loss_has_its_mean(self):
        net, rows = TwoTokens(), 10_000
        pairs = net.states[net.data]
        total = sum(net.probability(x0) for x0 in pairs)
        assert total == pytest.approx(1, abs=1e-9)
        gaps = [net.expected_bound(x0) + np.log(net.probability(x0)) for x0 in pairs]
        assert min(gaps) > 1e-6 and max(gaps) > 0.1

        tokens = jnp.repeat(jnp.asarray(pairs, jnp.int32), rows, 0)
        expected = np.array([net.expected_bound(x0) for x0 in pairs])

        @jax.jit
        def draw(key):
            return absorbing.bound(key, net.logits_fn, tokens, mask_id=3, draws=2)

        values = np.asarray(draw(jax.random.key(0)), np.float64).reshape(-1, rows)
        assert (np.abs(values.mean(-1) - expected) < 4 * values.std(-1) / np.sqrt(rows)).all()

        for name in absorbing.SCHEDULES:

            @jax.jit
            def losses(key, name=name):
                time_key, mask_key = jax.random.split(key)
                time = absorbing.draw_times(time_key, len(tokens))
                corrupted, is_masked = absorbing.corrupt(mask_key, tokens, time, mask_id=3, schedule=name)
                logits = net.logits_fn(corrupted, time)
                return absorbing.loss(logits, tokens, is_masked, time, schedule=name)

            values = np.asarray(losses(jax.random.key(1)), np.float64).reshape(-1, rows)
            error = np.abs(values.mean(-1) - expected)
            assert (error < 4 * values.std(-1) / np.sqrt(rows) + 2e-3 * expected).all(), name

    def test_the_time_told_fits_the_share_that_is_masked(self):
        """A network that answers with its time: the mean time given n of N masked is that of the chain."""
        rows = 20_000
        tokens = jnp.zeros((rows, 3), jnp.int32)
        for name in absorbing.SCHEDULES:
            told = []

            def recording(tokens, time, told=told):
                jax.debug.callback(lambda *x: told.append(tuple(map(np.asarray, x))), tokens, time)
                return jnp.zeros((*tokens.shape, 2))

            value = absorbing.bound(jax.random.key(0), recording, tokens, mask_id=2, schedule=name)
            jax.effects_barrier()
            np.testing.assert_allclose(value, 3 * np.log(2), rtol=1e-5)
            count, time = (told[0][0] == 2).sum(-1), told[0][1]
            # By quadrature: time t weighs weight(t) * P(n of 3 masked at t).
            grid = (np.arange(100_000) + 0.5) / 100_000
            share = 1 - ALPHAS[name](grid)
            for n in (1, 2, 3):
                weight = absorbing.SCHEDULES[name].weight(grid, np) * share**n * (1 - share) ** (3 - n)
                expected = np.sum(weight * grid) / np.sum(weight)
                assert time[count == n].mean() == pytest.approx(expected, abs=0.015)
                assert (count == n).mean() == pytest.approx(1 / 3, abs=1e-3)

    def test_is_tight_for_the_true_posterior(self):
        """In continuous time tokens open one by one, so nothing is lost between them."""
        joint = np.r_[toy.JOINT, [toy.JOINT.sum(0)]]
        joint = np.c_[joint, joint.sum(1)] + 1e-12  # Index K means: not seen.
        log_joint = jnp.log(joint)

        def posterior(tokens, time):
            first, second = log_joint[:4, tokens[:, 1]].T, log_joint[tokens[:, 0], :4]
            return jnp.stack([first, second], 1)

        rows = 20_000
        pairs = np.array([[0, 0], [1, 3], [2, 1]])
        tokens = jnp.repeat(jnp.asarray(pairs, jnp.int32), rows, 0)
        draw = jax.jit(lambda key: absorbing.bound(key, posterior, tokens, mask_id=4, draws=2))
        values = np.asarray(draw(jax.random.key(0)), np.float64).reshape(-1, rows)
        error = np.abs(values.mean(-1) + np.log(toy.JOINT[tuple(pairs.T)]))
        assert (error < 4 * values.std(-1) / np.sqrt(rows)).all()


class TestSampler:
    @pytest.mark.parametrize("name", absorbing.SCHEDULES)
    @pytest.mark.parametrize("remask", ["none", "cap", "rescale"])
    def test_law_by_enumeration(self, remask, name):
        net, rows, steps, eta = TwoTokens(), 40_000, 4, 0.3
        expected = np.zeros(16)
        expected[-1] = 1
        times = np.linspace(1, 0, steps + 1)
        for alpha_t, alpha_s in itertools.pairwise(ALPHAS[name](times)):
            limit = min(1, (1 - alpha_s) / alpha_t) if alpha_t > 0 else 1
            sigma = {"none": 0, "cap": min(eta, limit), "rescale": eta * limit}[remask]
            expected = expected @ net.step((1 - alpha_s - sigma * alpha_t) / (1 - alpha_t), sigma)

        @jax.jit
        def draw(keys):
            start = jnp.full((rows, 2), 3)
            options = {"mask_id": 3, "steps": steps, "schedule": name, "remask": remask, "eta": eta}
            return absorbing.sample(keys, net.logits_fn, start, **options)

        drawn = np.asarray(draw(row_keys(0, rows))) @ np.array([4, 1])
        shares = np.bincount(drawn, minlength=16) / rows
        assert np.abs(shares - expected).max() < 5 * np.sqrt(0.25 / rows)

    @pytest.mark.parametrize("name", absorbing.SCHEDULES)
    @pytest.mark.parametrize("remask", absorbing.REMASKS)
    def test_as_much_is_masked_as_the_schedule_says(self, remask, name):
        rows = 400
        options = {"steps": 8, "schedule": name, "remask": remask, "eta": 0.5}
        states, times = trajectory(logits_fn, jnp.full((rows, N), MASK), **options)
        np.testing.assert_allclose(times[:, 0], np.linspace(1, 0, 9)[:-1], rtol=1e-6)
        is_masked = states == MASK
        share = 1 - ALPHAS[name](np.linspace(1, 0, 9))
        np.testing.assert_allclose(is_masked.mean((1, 2)), share, atol=5 * np.sqrt(0.25 / rows / N))
        assert not is_masked[-1].any()
        again = (~is_masked[:-1] & is_masked[1:]).sum()
        assert (again == 0) == (remask == "none")
        # Open tokens change by way of the mask only.
        both = ~is_masked[:-1] & ~is_masked[1:]
        np.testing.assert_array_equal(states[:-1][both], states[1:][both])

    def test_conf_masks_unsure_tokens_more_often(self):
        # Half of the row is drawn with probability 1, half with 1/5.
        sure = jnp.zeros((N, K)).at[: N // 2, 0].set(50.0)
        fn = lambda tokens, time: jnp.broadcast_to(sure, (*tokens.shape, K))
        options = {"steps": 6, "remask": "conf", "eta": 0.4}
        is_masked = trajectory(fn, jnp.full((2000, N), MASK), **options)[0] == MASK
        # At time 1/3 > 1/6, two thirds are open, and sigma averages 0.4 * (1/6) / (2/3).
        before, after = is_masked[4], is_masked[5]
        rate = [
            (after & ~before)[:, half].sum() / (~before)[:, half].sum()
            for half in (slice(0, N // 2), slice(N // 2, N))
        ]
        assert np.mean(rate) == pytest.approx(0.1, abs=0.01)
        assert rate[1] / rate[0] == pytest.approx(np.exp(1 - 0.2), rel=0.15)

    @pytest.mark.parametrize("remask", absorbing.REMASKS)
    def test_given_tokens_stay_and_every_position_is_filled(self, remask):
        start = jnp.full((3, N), MASK).at[1, :8].set(2).at[2].set(4)
        states, _ = trajectory(logits_fn, start, steps=16, remask=remask, eta=1.0)
        assert (states[:, 1, :8] == 2).all() and (states[:, 2] == 4).all()
        assert states[-1].min() >= 0 and states[-1].max() < K

    @pytest.mark.parametrize("remask", ["none", "conf"])
    def test_keys_alone_decide_and_a_batch_equals_one_by_one(self, remask):
        traces = []

        @jax.jit
        def draw(keys, start, eta):
            def counting(*inputs):
                traces.append(inputs[0].shape)
                return logits_fn(*inputs)

            return absorbing.sample(keys, counting, start, mask_id=MASK, steps=9, remask=remask, eta=eta)

        keys, start = row_keys(3, 4), jnp.full((4, N), MASK).at[2, 3:6].set(1)
        batch = draw(keys, start, 0.3)
        np.testing.assert_array_equal(draw(keys, start, 0.3), batch)
        np.testing.assert_array_equal(draw(keys[::-1], start[::-1], 0.3)[::-1], batch)
        assert traces == [(4, N)]  # One trace for nine steps and three calls.
        for i in range(4):
            np.testing.assert_array_equal(draw(keys[i : i + 1], start[i : i + 1], 0.3)[0], batch[i])
        assert (batch[0] != batch[1]).any()
        assert batch.dtype == start.dtype

    def test_temperature_and_filters(self):
        start, keys = jnp.full((4, N), MASK), row_keys(0, 4)
        likeliest = jax.nn.one_hot(jnp.arange(N) % K, K)
        fn = lambda tokens, time: jnp.broadcast_to(likeliest, (*tokens.shape, K))
        for options in ({"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.1}):
            result = absorbing.sample(keys, fn, start, mask_id=MASK, steps=2, **options)
            np.testing.assert_array_equal(result, np.broadcast_to(np.arange(N) % K, (4, N)))

    def test_bad_arguments(self):
        start, options = jnp.full((2, N), MASK), {"mask_id": MASK, "steps": 2}
        with pytest.raises(UserError, match="none, cap, rescale, conf"):
            absorbing.sample(row_keys(0, 2), logits_fn, start, remask="loop", **options)
        with pytest.raises(UserError, match="linear, cosine"):
            absorbing.sample(row_keys(0, 2), logits_fn, start, schedule="square", **options)
        with pytest.raises(UserError, match="at least 1 step"):
            absorbing.sample(row_keys(0, 2), logits_fn, start, mask_id=MASK, steps=0)
        with pytest.raises(ValueError, match="one a row"):
            absorbing.sample(row_keys(0, 3), logits_fn, start, **options)
        with pytest.raises(ValueError, match="mask id 4"):
            absorbing.sample(row_keys(0, 2), logits_fn, start - 1, mask_id=4, steps=2)


@pytest.mark.parametrize("name", absorbing.SCHEDULES)
def test_a_toy_distribution_is_learned_and_sampled_back(name):
    def loss_fn(key, logits_fn, tokens):
        time_key, mask_key = jax.random.split(key)
        time = absorbing.draw_times(time_key, len(tokens))
        corrupted, is_masked = absorbing.corrupt(
            mask_key, tokens, time, mask_id=toy.NUM_CODES, schedule=name
        )
        return absorbing.loss(logits_fn(corrupted, time), tokens, is_masked, time, schedule=name)

    params = toy.train(loss_fn)
    network = lambda *inputs: toy.network(params, *inputs)
    options = {"mask_id": toy.NUM_CODES, "steps": 40, "schedule": name}
    start, keys = jnp.full((6000, toy.NUM_TOKENS), toy.NUM_CODES), row_keys(1, 6000)
    for remask in ("none", "conf") if name == "linear" else ("cap", "rescale"):
        draw = jax.jit(lambda k, r=remask: absorbing.sample(k, network, start, remask=r, **options))
        assert toy.total_variation(draw(keys)) < 0.05, remask
