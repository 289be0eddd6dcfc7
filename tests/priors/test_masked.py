"""The masked prior: corruption counts, the loss by hand, and the sampler's promises."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from regvq_jax.priors import masked
from regvq_jax.priors.schedules import cosine, linear

K = 7
MASK = K


def row_keys(seed, rows):
    return jax.random.split(jax.random.key(seed), rows)


def random_logits_fn(seed=0, num_codes=K):
    """Logits that depend on the whole row, so that a changed token changes everything after it."""
    table = np.random.default_rng(seed).standard_normal((MASK + 1, num_codes))
    table = jnp.asarray(table, jnp.float32)

    def tokens_to_logits(tokens):
        embedded = table[tokens]
        return embedded + jnp.cos(3 * embedded.sum(1, keepdims=True))

    return tokens_to_logits


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
        tokens_to_logits = random_logits_fn()

        def recording(tokens):
            jax.debug.callback(lambda x: seen.append(np.asarray(x)), tokens, ordered=True)
            return tokens_to_logits(tokens)

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
            lambda tokens: jnp.asarray(logits),
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

        def tokens_to_logits(tokens):
            jax.debug.callback(lambda x: order.append(np.asarray(x[0])), tokens, ordered=True)
            return sharpness[..., None] * jax.nn.one_hot(jnp.zeros_like(tokens), K)

        masked.sample(
            row_keys(0, 1),
            tokens_to_logits,
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
                lambda tokens: jnp.broadcast_to(jnp.log(shares), (*tokens.shape, 3)),
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

    def test_bad_arguments(self):
        start = jnp.full((2, 4), MASK)
        options = {"mask_id": MASK, "schedule_fn": cosine}
        with pytest.raises(ValueError, match="one a row"):
            masked.sample(row_keys(0, 3), random_logits_fn(), start, steps=2, **options)
        with pytest.raises(ValueError, match="at least 1"):
            masked.sample(row_keys(0, 2), random_logits_fn(), start, steps=0, **options)
        with pytest.raises(ValueError, match="mask id 7"):
            wide = random_logits_fn(num_codes=K + 1)
            masked.sample(row_keys(0, 2), wide, start, steps=2, **options)


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
        lambda tokens: network(params, tokens),
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
