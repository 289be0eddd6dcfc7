"""The masked prior: corruption counts, the loss by hand, and the sampler's promises."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from regvq_jax.priors import masked
from regvq_jax.priors.guidance import RAMPS, guided
from regvq_jax.priors.schedules import arccos, cosine, halton_order, linear

K = 7
MASK = K


def row_keys(seed, rows):
    return jax.random.split(jax.random.key(seed), rows)


def random_logits_fn(seed=0, num_codes=K):
    """Logits that depend on the whole row, so that a changed token changes everything after it."""
    table = np.random.default_rng(seed).standard_normal((MASK + 1, num_codes))
    table = jnp.asarray(table, jnp.float32)

    def logits_fn(tokens, time):
        embedded = table[tokens]
        return embedded + jnp.cos(3 * embedded.sum(1, keepdims=True))

    return logits_fn


@jax.jit
def corrupt_fraction(key, tokens, fraction):
    return masked.corrupt(key, tokens, mask_id=MASK, schedule_fn=lambda ratio: jnp.full_like(ratio, fraction))


class TestCorrupt:
    @pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 1.0])
    def test_exact_count(self, fraction):
        tokens = np.random.default_rng(0).integers(0, K, (5, 10), np.int32)
        corrupted, is_masked = corrupt_fraction(jax.random.key(1), tokens, fraction)
        assert (is_masked.sum(-1) == max(1, round(10 * fraction))).all()
        np.testing.assert_array_equal(corrupted == MASK, is_masked)
        np.testing.assert_array_equal(np.where(is_masked, tokens, corrupted), tokens)

    def test_counts_follow_the_schedule_and_places_are_uniform(self):
        tokens = jnp.zeros((4000, 16), jnp.int32)
        _, is_masked = masked.corrupt(jax.random.key(0), tokens, mask_id=MASK, schedule_fn=linear)
        counts = np.bincount(is_masked.sum(-1), minlength=17)
        assert counts[0] == 0
        # round(16 u), at least 1: 1 has a share of 1.5/16, 2..15 have 1/16, 16 has 0.5/16.
        expected = 4000 / 16 * np.array([1.5] + [1.0] * 14 + [0.5])
        assert np.abs(counts[1:] - expected).max() < 5 * np.sqrt(375)
        assert np.abs(is_masked.mean(0) - 0.5).max() < 0.05

    def test_min_ratio(self):
        tokens = jnp.zeros((200, 20), jnp.int32)
        _, is_masked = masked.corrupt(
            jax.random.key(0), tokens, mask_id=MASK, schedule_fn=cosine, min_ratio=0.5
        )
        counts = np.asarray(is_masked.sum(-1))
        assert counts.min() == 10 and counts.max() > 17


class TestLoss:
    LOGITS = jnp.log(jnp.array([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]]))
    TOKENS = jnp.array([[0, 2]])

    def test_by_hand(self):
        both = jnp.array([[True, True]])
        value = masked.loss(self.LOGITS, self.TOKENS, both, label_smoothing=0.0)
        assert value == pytest.approx((np.log(2) + np.log(10)) / 2, rel=1e-6)
        assert value.dtype == jnp.float32
        only_second = jnp.array([[False, True]])
        value = masked.loss(self.LOGITS, self.TOKENS, only_second, label_smoothing=0.0)
        assert value == pytest.approx(np.log(10), rel=1e-6)

    def test_label_smoothing_by_hand(self):
        value = masked.loss(self.LOGITS, self.TOKENS, jnp.array([[False, True]]), label_smoothing=0.3)
        expected = -(0.1 * np.log(0.1) + 0.1 * np.log(0.8) + 0.8 * np.log(0.1))
        assert value == pytest.approx(expected, rel=1e-6)

    def test_rows_that_do_not_count(self):
        logits = jnp.concatenate([self.LOGITS, jnp.full_like(self.LOGITS, jnp.nan)])
        tokens = jnp.tile(self.TOKENS, (2, 1))
        value = masked.loss(logits, tokens, jnp.ones((2, 2), bool), row_mask=jnp.array([True, False]))
        alone = masked.loss(self.LOGITS, self.TOKENS, jnp.ones((1, 2), bool))
        assert value == alone

    def test_nothing_masked_is_zero_with_zero_gradient(self):
        nothing = jnp.zeros((1, 2), bool)
        value, gradient = jax.value_and_grad(masked.loss)(self.LOGITS, self.TOKENS, nothing)
        assert value == 0 and (gradient == 0).all()

    def test_gradient_of_bfloat16_and_extreme_logits(self):
        logits = jnp.array([[[1e4, -1e4, 0.0], [0.0, 0.0, 0.0]]], jnp.bfloat16)
        gradient = jax.grad(masked.loss)(logits, self.TOKENS, jnp.ones((1, 2), bool))
        assert gradient.dtype == jnp.bfloat16
        assert jnp.isfinite(gradient.astype(jnp.float32)).all()
        # Softmax minus the smoothed target, over the 2 masked positions.
        expected = (1 / 3 - np.array([0.1 / 3, 0.1 / 3, 0.9 + 0.1 / 3])) / 2
        np.testing.assert_allclose(gradient[0, 1].astype(jnp.float32), expected, atol=2e-3)


class TestSample:
    def trajectory(self, tokens, steps, schedule_fn=cosine, **options):
        """Returns the tokens before each step, int [steps, B, N], and the result."""
        seen = []
        logits_fn = random_logits_fn()

        def recording(tokens, time):
            jax.debug.callback(lambda x: seen.append(np.asarray(x)), tokens, ordered=True)
            return logits_fn(tokens, time)

        result = masked.sample(
            row_keys(0, tokens.shape[0]),
            recording,
            tokens,
            mask_id=MASK,
            steps=steps,
            schedule_fn=schedule_fn,
            **options,
        )
        jax.effects_barrier()
        return np.stack(seen), np.asarray(result)

    def test_every_masked_position_is_filled_once_on_schedule(self):
        start = jnp.full((3, 16), MASK).at[1, :8].set(2).at[2].set(5)
        seen, result = self.trajectory(start, steps=4, schedule_fn=linear)
        states = np.concatenate([seen, result[None]])
        left = (states == MASK).sum(-1)
        assert left[:, 0].tolist() == [16, 12, 8, 4, 0]
        assert left[:, 1].tolist() == [8, 6, 4, 2, 0]
        assert left[:, 2].tolist() == [0, 0, 0, 0, 0]
        for before, after in zip(states, states[1:], strict=False):
            filled = before != MASK
            np.testing.assert_array_equal(before[filled], after[filled])
        assert (result[1, :8] == 2).all() and (result[2] == 5).all()
        assert result.min() >= 0 and result.max() < K

    @pytest.mark.parametrize("steps", [1, 12])
    def test_never_an_idle_step_before_the_end(self, steps):
        # With more steps than positions, or a flat start of the schedule, each step still fills
        # one.
        seen, result = self.trajectory(jnp.full((1, 9), MASK), steps, lambda r: jnp.float32(1.0))
        left = [*(seen[:, 0] == MASK).sum(-1), (result[0] == MASK).sum()]
        filled = -np.diff(left)
        assert left[-1] == 0
        assert (filled[: min(steps, 9)] >= 1).all()
        assert filled.sum() == 9

    def test_a_known_picture_comes_back(self):
        known = np.random.default_rng(3).integers(0, K, (4, 12), np.int32)
        logits = 100.0 * np.eye(K, dtype=np.float32)[known]
        result = masked.sample(
            row_keys(0, 4),
            lambda tokens, time: jnp.asarray(logits),
            jnp.full((4, 12), MASK),
            mask_id=MASK,
            steps=3,
            schedule_fn=cosine,
        )
        np.testing.assert_array_equal(result, known)
        assert result.dtype == jnp.int32

    def test_most_confident_first_without_choice_noise(self):
        sharpness = jnp.array([[1.0, 8.0, 4.0, 2.0]])
        order = []

        def logits_fn(tokens, time):
            jax.debug.callback(lambda x: order.append(np.asarray(x[0])), tokens, ordered=True)
            return sharpness[..., None] * jax.nn.one_hot(jnp.zeros_like(tokens), K)

        masked.sample(
            row_keys(0, 1),
            logits_fn,
            jnp.full((1, 4), MASK),
            mask_id=MASK,
            steps=4,
            schedule_fn=linear,
            temperature=0.0,
            choice_temperature=0.0,
        )
        jax.effects_barrier()
        assert [(row != MASK).tolist() for row in order] == [
            [False, False, False, False],
            [False, True, False, False],
            [False, True, True, False],
            [False, True, True, True],
        ]

    def test_a_row_is_the_same_alone_and_in_a_batch(self):
        @jax.jit
        def draw(keys, start):
            return masked.sample(keys, random_logits_fn(), start, mask_id=MASK, steps=5, schedule_fn=cosine)

        start = jnp.full((4, 16), MASK).at[2, 3:9].set(1)
        keys = row_keys(0, 4)
        batch = draw(keys, start)
        for i in range(4):
            np.testing.assert_array_equal(draw(keys[i : i + 1], start[i : i + 1])[0], batch[i])
        np.testing.assert_array_equal(draw(keys[::-1], start[::-1])[::-1], batch)
        assert (batch[0] != batch[1]).any()

    def test_single_codes_follow_the_softmax_at_a_temperature(self):
        shares = np.array([0.6, 0.3, 0.1])

        @jax.jit
        def draw(temperature):
            return masked.sample(
                row_keys(1, 1),
                lambda tokens, time: jnp.broadcast_to(jnp.log(shares), (*tokens.shape, 3)),
                jnp.full((1, 8000), 3),
                mask_id=3,
                steps=1,
                schedule_fn=cosine,
                temperature=temperature,
            )

        for temperature in (1.0, 0.5):
            drawn = np.bincount(np.asarray(draw(temperature))[0], minlength=3) / 8000
            expected = shares ** (1 / temperature)
            np.testing.assert_allclose(drawn, expected / expected.sum(), atol=0.02)
        assert (draw(0.0) == 0).all()

    @pytest.mark.parametrize("steps", [8, 64])
    def test_halton_order_on_schedule_and_around_given_tokens(self, steps):
        """The given half is kept; the other fills along the sequence, as many as the schedule says."""
        order = halton_order((8, 8))
        start = jnp.full((2, 64), MASK).at[1, :32].set(3)
        seen, result = self.trajectory(start, steps, arccos, order=order)
        states = np.concatenate([seen, result[None]])
        assert (result < K).all() and (result[1, :32] == 3).all()
        for before, after in zip(states, states[1:], strict=False):
            for row in range(2):
                filled = before[row] != after[row]
                np.testing.assert_array_equal(before[row][filled], MASK)
                still_masked = after[row] == MASK
                if filled.any() and still_masked.any():
                    assert order[filled].max() < order[still_masked].min()
        left = (states == MASK).sum(-1)
        assert left[0].tolist() == [64, 32] and left[-1].tolist() == [0, 0]
        if steps == 8:
            expected = [np.round(np.arccos(i / 8) * 2 / np.pi * 64) for i in range(9)]
            assert left[:, 0].tolist() == expected

    @pytest.mark.parametrize("order", [None, halton_order((4, 6))])
    def test_a_hole_is_filled_from_what_surrounds_it(self, order):
        """Inpainting: a network that knows its neighbour's successor continues the given frame."""
        picture = (np.arange(24) % K)[None]
        hole = (np.arange(24) // 6 % 3 > 0) & (np.arange(24) % 6 > 1)

        def logits_fn(tokens, time):
            left = jnp.roll(tokens, 1, 1)
            known = jax.nn.one_hot((left + 1) % K, K) * 30.0
            # Unsure where the neighbour is masked, so that confidence waits for it.
            return jnp.where((left == MASK)[..., None], 0.0, known)

        result = masked.sample(
            row_keys(0, 1),
            logits_fn,
            jnp.where(hole, MASK, picture),
            mask_id=MASK,
            steps=24,
            schedule_fn=linear,
            choice_temperature=0.0,
            order=order,
        )
        np.testing.assert_array_equal(result[0, ~hole], picture[0, ~hole])
        assert (result < K).all()
        if order is None:
            np.testing.assert_array_equal(result, picture)

    def test_an_order_for_each_row(self):
        orders = np.stack([np.arange(9), np.arange(9)[::-1]])
        seen, _ = self.trajectory(jnp.full((2, 9), MASK), 3, linear, order=orders)
        assert (seen[1] != MASK).tolist() == [[True] * 3 + [False] * 6, [False] * 6 + [True] * 3]

    def test_time_is_the_share_of_steps_to_do(self):
        times = []

        def logits_fn(tokens, time):
            jax.debug.callback(lambda x: times.append(x.tolist()), time, ordered=True)
            return jnp.zeros((*tokens.shape, K))

        masked.sample(
            row_keys(0, 2), logits_fn, jnp.full((2, 4), MASK), mask_id=MASK, steps=4, schedule_fn=cosine
        )
        jax.effects_barrier()
        assert times == [[1.0, 1.0], [0.75, 0.75], [0.5, 0.5], [0.25, 0.25]]

    def test_filters_bound_what_is_drawn(self):
        logits = jnp.broadcast_to(jnp.log(jnp.array([0.1, 0.4, 0.2, 0.3])), (2, 500, 4))

        # Of the three likeliest, 0.4 and 0.3 of 0.9 hold more than 0.75; of all four they hold less.
        codes = masked.sample(
            row_keys(0, 2),
            lambda tokens, time: logits,
            jnp.full((2, 500), 4),
            mask_id=4,
            steps=2,
            schedule_fn=cosine,
            top_k=3,
            top_p=0.75,
        )
        assert np.unique(codes).tolist() == [1, 3]

    def test_a_guidance_ramp_reaches_the_sampler(self):
        """One step is at ratio 0, hence conditional, however large the scale; later steps are guided."""
        condition, null = jnp.log(jnp.array([[0.5, 0.3, 0.2]])), jnp.zeros((1, 3))

        def network(tokens, condition, time):
            return jnp.broadcast_to(condition[:, None], (*tokens.shape, 3))

        def shares(scale, steps):
            logits_fn = guided(network, condition, null, scale, RAMPS["linear"])
            options = {"mask_id": 3, "steps": steps, "schedule_fn": linear, "choice_temperature": 1e6}
            result = masked.sample(row_keys(0, 1), logits_fn, jnp.full((1, 4000), 3), **options)
            return np.bincount(result[0], minlength=3) / 4000

        np.testing.assert_allclose(shares(50.0, 1), [0.5, 0.3, 0.2], atol=0.03)
        # A thousand tokens at each of the ratios 0, 1/4, 1/2, 3/4: scales 1, 2, 3, 4.
        powers = np.array([0.5, 0.3, 0.2]) ** np.arange(1, 5)[:, None]
        expected = (powers / powers.sum(-1, keepdims=True)).mean(0)
        np.testing.assert_allclose(shares(5.0, 4), expected, atol=0.03)

    def test_bad_arguments(self):
        start = jnp.full((2, 4), MASK)
        options = {"mask_id": MASK, "schedule_fn": cosine}
        with pytest.raises(ValueError, match="one a row"):
            masked.sample(row_keys(0, 3), random_logits_fn(), start, steps=2, **options)
        with pytest.raises(ValueError, match="at least 1"):
            masked.sample(row_keys(0, 2), random_logits_fn(), start, steps=0, **options)
        with pytest.raises(ValueError, match="top_k"):
            masked.sample(row_keys(0, 2), random_logits_fn(), start, steps=2, top_k=K + 1, **options)
        with pytest.raises(ValueError, match="mask id 7"):
            wide = random_logits_fn(num_codes=K + 1)
            masked.sample(row_keys(0, 2), wide, start, steps=2, **options)


@pytest.mark.parametrize("order", [None, np.array([2, 0, 1])])
def test_a_perfect_network_gives_back_its_distribution(toy, order):
    """One token a step, in a random or any fixed order, draws each code from its exact conditional."""

    @jax.jit
    def draw(keys):
        return masked.sample(
            keys,
            lambda tokens, time: toy.logits(tokens),
            jnp.full((8192, 3), toy.special_id),
            mask_id=toy.special_id,
            steps=3,
            schedule_fn=linear,
            choice_temperature=1e6,
            order=order,
        )

    assert toy.distance(draw(row_keys(0, 8192))) < 0.05


class TestBound:
    def exact(self, logits_fn, tokens, num_codes):
        """The bound by enumeration of every n and every set of n positions, for one row."""
        num_tokens = len(tokens)
        total = 0.0
        for count in range(1, num_tokens + 1):
            sets = list(itertools.combinations(range(num_tokens), count))
            for masked_set in sets:
                hidden = np.array(tokens)
                hidden[list(masked_set)] = num_codes
                logits = logits_fn(jnp.asarray(hidden)[None], jnp.array([count / num_tokens]))[0]
                log_probs = np.asarray(jax.nn.log_softmax(logits), np.float64)
                missed = sum(-log_probs[i, tokens[i]] for i in masked_set)
                total += missed / count / len(sets)  # N / n, and n is each of 1..N with probability 1 / N.
        return total

    def true_nats(self, logits_fn, tokens, num_codes):
        """-log p(tokens) of the mixture over all orders."""
        probabilities = []
        for order in itertools.permutations(range(len(tokens))):
            hidden, log_p = np.full(len(tokens), num_codes), 0.0
            for done, i in enumerate(order):
                time = jnp.array([1 - done / len(tokens)])
                log_p += jax.nn.log_softmax(logits_fn(jnp.asarray(hidden)[None], time)[0])[i, tokens[i]]
                hidden[i] = tokens[i]
            probabilities.append(np.exp(log_p))
        return -np.log(np.mean(probabilities))

    def test_a_perfect_network_is_at_its_likelihood(self, toy):
        """All orders then agree, and the bound is tight: its expectation is -log p(x)."""
        index = 5
        tokens = jnp.tile(jnp.asarray(toy.states[index], jnp.int32), (6000, 1))
        estimates = masked.bound(
            jax.random.key(0), lambda tokens, time: toy.logits(tokens), tokens, mask_id=toy.special_id
        )
        assert estimates.shape == (6000,) and estimates.dtype == jnp.float32
        assert estimates.mean() == pytest.approx(-np.log(toy.joint[index]), abs=0.05)

    def test_expectation_of_an_inconsistent_network_by_enumeration(self):
        """A network that also reads the time, whose orders disagree: above the likelihood, and unbiased."""
        table = jnp.asarray(np.random.default_rng(1).standard_normal((3, 3, 3, 3, 2)) * 2)

        def logits_fn(tokens, time):
            seen = table[tokens[:, 0], tokens[:, 1], tokens[:, 2]]
            return seen * (0.5 + time[:, None, None])

        for tokens in ([0, 1, 1], [1, 0, 0]):
            expected = self.exact(logits_fn, tokens, 2)
            assert expected > self.true_nats(logits_fn, tokens, 2) + 0.01
            rows = jnp.tile(jnp.array(tokens, jnp.int32), (3000, 1))
            estimates = masked.bound(jax.random.key(3), logits_fn, rows, mask_id=2, draws=2)
            error = estimates.std() / np.sqrt(3000)
            assert abs(estimates.mean() - expected) < 4 * error < 0.05 * expected

    @pytest.mark.parametrize("rows, draws", [(12, 1), (4, 3), (1, 6)])
    def test_counts_are_spread_evenly(self, rows, draws):
        """Each of 1..6 is drawn equally often, and any row can get any of them."""
        counts = []

        def logits_fn(tokens, time):
            jax.debug.callback(lambda *x: counts.append([np.asarray(a) for a in x]), tokens, time)
            return jnp.zeros((*tokens.shape, K))

        value = masked.bound(
            jax.random.key(rows), logits_fn, jnp.zeros((rows, 6), jnp.int32), mask_id=MASK, draws=draws
        )
        jax.effects_barrier()
        np.testing.assert_allclose(value, 6 * np.log(K), rtol=1e-6)
        hidden = np.stack([(tokens == MASK).sum(-1) for tokens, _ in counts])
        np.testing.assert_allclose(hidden / 6, np.stack([time for _, time in counts]), rtol=1e-6)
        np.testing.assert_array_equal(np.bincount(hidden.ravel(), minlength=7)[1:], rows * draws // 6)
        if draws == 6:  # Draws of one row choose their sets apart: these are not nested.
            sets = sorted((set(np.flatnonzero(tokens[0] == MASK)) for tokens, _ in counts), key=len)
            assert not all(small <= large for small, large in itertools.pairwise(sets))

    def test_a_row_draws_each_count_equally_often(self):
        def count_of_first_row(key):
            def logits_fn(tokens, time):  # Exactly n nats a masked token, so the estimate is N * n.
                nats = time[:, None] * 6
                return jnp.stack([-nats, jnp.log1p(-jnp.exp(-nats))], -1) + jnp.zeros((2, 6, 1))

            tokens = jnp.zeros((2, 6), jnp.int32)
            return masked.bound(key, logits_fn, tokens, mask_id=2)[0] / 6

        counts = jax.jit(jax.vmap(count_of_first_row))(jax.random.split(jax.random.key(0), 6000))
        shares = np.bincount(np.round(counts).astype(int), minlength=7)[1:] / 6000
        np.testing.assert_allclose(shares, 1 / 6, atol=0.02)


def test_a_toy_distribution_is_learned_and_sampled_back():
    """An MLP trained with `corrupt` and `loss` gives back 4 tokens of 2 codes."""
    num_tokens, hidden = 4, 64
    # Strong dependence: copies of one bit, alternations, and a rare mixture.
    pictures = jnp.array([[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 1], [1, 0, 0, 0]])
    shares = jnp.array([0.4, 0.3, 0.2, 0.1])

    def init(key):
        first, second = jax.random.split(key)
        return {
            "in": jax.random.normal(first, (3 * num_tokens, hidden)) / 3,
            "out": jax.random.normal(second, (hidden, 2 * num_tokens)) / 8,
            "bias": jnp.zeros(hidden),
        }

    def network(params, tokens):
        x = jax.nn.one_hot(tokens, 3).reshape(tokens.shape[0], -1)
        x = jax.nn.gelu(x @ params["in"] + params["bias"])
        return (x @ params["out"]).reshape(-1, num_tokens, 2)

    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 800))

    @jax.jit
    def train(key):
        def step(carry, key):
            params, opt_state = carry
            data_key, mask_key = jax.random.split(key)
            tokens = pictures[jax.random.choice(data_key, 4, (256,), p=shares)]

            def loss_fn(params):
                corrupted, is_masked = masked.corrupt(mask_key, tokens, mask_id=2, schedule_fn=linear)
                logits = network(params, corrupted)
                return masked.loss(logits, tokens, is_masked, label_smoothing=0.0)

            updates, opt_state = optimizer.update(jax.grad(loss_fn)(params), opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        params = init(key)
        carry = (params, optimizer.init(params))
        return jax.lax.scan(step, carry, jax.random.split(key, 800))[0][0]

    params = train(jax.random.key(0))
    count = 8000
    result = masked.sample(
        row_keys(1, count),
        lambda tokens, time: network(params, tokens),
        jnp.full((count, num_tokens), 2),
        mask_id=2,
        steps=num_tokens,
        schedule_fn=linear,
        choice_temperature=1e6,  # Random order: each code is drawn from its exact conditional.
    )
    places = np.asarray(2 ** np.arange(num_tokens))
    sampled = np.bincount(np.asarray(result) @ places, minlength=16) / count
    true = np.zeros(16)
    true[np.asarray(pictures) @ places] = shares
    assert np.abs(sampled - true).sum() / 2 < 0.05
