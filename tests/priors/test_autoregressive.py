"""The autoregressive prior: the loss by hand, and the sampler's promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax.priors import autoregressive
from regvq_jax.priors.guidance import guided_step, interleave, linear

K = 7
START = UNKNOWN = K


def row_keys(seed, rows):
    return jax.random.split(jax.random.key(seed), rows)


def write_and_read(logits_fn):
    """A step whose cache is the tokens fed so far, unknown ones K; logits_fn: [B, N] -> [B, N, K]."""

    def step_fn(cache, token, position):
        # The token of position - 1; at 0 the start id falls out of the cache.
        cache = cache.at[:, position - 1].set(token, mode="drop", wrap_negative_indices=False)
        return cache, logits_fn(cache)[:, position]

    return step_fn


def random_logits_fn(seed=0):
    """Logits that depend on the whole row and on the place."""
    table = jnp.asarray(np.random.default_rng(seed).standard_normal((K + 1, K)), jnp.float32)

    def logits_fn(tokens):
        place = jnp.arange(tokens.shape[1])[:, None]
        weighted = table[tokens] * (1 + place)
        return 2 * jnp.cos(weighted.sum(1, keepdims=True) + place)

    return logits_fn


@jax.jit
def draw(keys, tokens):
    return autoregressive.sample(
        keys,
        write_and_read(random_logits_fn()),
        jnp.full_like(tokens, K),
        tokens,
        start_id=START,
        unknown_id=UNKNOWN,
    )


def test_shift_right():
    shifted = autoregressive.shift_right(jnp.array([[3, 1, 2], [0, 0, 4]], jnp.int32), 9)
    assert shifted.tolist() == [[9, 3, 1], [9, 0, 0]] and shifted.dtype == jnp.int32
    assert autoregressive.shift_right(jnp.array([[3]]), 9).tolist() == [[9]]


class TestLoss:
    LOGITS = jnp.log(jnp.array([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]])) + 2.0
    TOKENS = jnp.array([[0, 2]])

    def test_by_hand(self):
        value = autoregressive.loss(self.LOGITS, self.TOKENS)
        assert value == pytest.approx((np.log(2) + np.log(10)) / 2, rel=1e-6)
        assert value.shape == () and value.dtype == jnp.float32

    def test_label_smoothing_by_hand(self):
        value = autoregressive.loss(self.LOGITS, self.TOKENS, label_smoothing=0.3)
        first = 0.8 * np.log(0.5) + 0.2 * np.log(0.25)
        second = 0.1 * np.log(0.1) + 0.1 * np.log(0.8) + 0.8 * np.log(0.1)
        assert value == pytest.approx(-(first + second) / 2, rel=1e-6)

    def test_rows_that_do_not_count(self):
        logits = jnp.concatenate([self.LOGITS, jnp.full_like(self.LOGITS, jnp.nan)])
        tokens = jnp.tile(self.TOKENS, (2, 1))
        value = autoregressive.loss(logits, tokens, row_mask=jnp.array([True, False]))
        assert value == autoregressive.loss(self.LOGITS, self.TOKENS)
        assert autoregressive.loss(logits, tokens, row_mask=jnp.zeros(2, bool)) == 0

    def test_gradient_of_bfloat16_logits(self):
        logits = jnp.zeros((1, 2, 4), jnp.bfloat16)
        gradient = jax.grad(autoregressive.loss)(logits, self.TOKENS)
        assert gradient.dtype == jnp.bfloat16
        expected = (0.25 - np.eye(4)[[0, 2]]) / 2
        np.testing.assert_allclose(gradient[0].astype(jnp.float32), expected, atol=1e-3)


def test_log_likelihood_is_that_of_the_joint(toy):
    """All 27 rows at once, through `shift_right` and a causal view of the perfect network."""
    tokens = jnp.asarray(toy.states, jnp.int32)
    fed = autoregressive.shift_right(tokens, toy.special_id)

    def logits_at(position):  # What stands before `position` is known, the rest is not.
        before = jnp.where(jnp.arange(3) < position, jnp.roll(fed, -1, 1), toy.special_id)
        return toy.logits(before)[:, position]

    logits = jnp.stack([logits_at(i) for i in range(3)], 1)
    value = autoregressive.log_likelihood(logits, tokens)
    assert value.shape == (27,) and value.dtype == jnp.float32
    np.testing.assert_allclose(value, np.log(toy.joint), rtol=1e-4, atol=1e-4)


class TestSample:
    def test_a_perfect_network_gives_back_its_distribution(self, toy):
        @jax.jit
        def draw_toy(keys, tokens):
            options = {"start_id": toy.special_id, "unknown_id": toy.special_id}
            step_fn = write_and_read(toy.logits)
            return autoregressive.sample(keys, step_fn, jnp.full_like(tokens, 3), tokens, **options)

        tokens = draw_toy(row_keys(0, 8192), jnp.full((8192, 3), toy.special_id))
        assert toy.distance(tokens) < 0.05
        # A given first token: the rest follows the conditional.
        given = draw_toy(row_keys(1, 8192), jnp.full((8192, 3), toy.special_id).at[:, 0].set(1))
        assert (given[:, 0] == 1).all()
        conditional = np.where(toy.states[:, 0] == 1, toy.joint, 0.0)
        drawn = np.bincount(np.asarray(given) @ [9, 3, 1], minlength=27) / 8192
        assert np.abs(drawn - conditional / conditional.sum()).sum() / 2 < 0.05

    def test_each_position_once_in_order_and_given_ones_are_kept_and_fed(self):
        fed = []

        def step_fn(cache, token, position):
            record = lambda *x: fed.append([np.asarray(a).tolist() for a in x])
            jax.debug.callback(record, position, token, cache, ordered=True)
            # Certain of position + 1 for the first row, position + 2 for the second.
            return cache + 1, 50.0 * jax.nn.one_hot((position + jnp.array([1, 2])) % K, K)

        tokens = jnp.array([[UNKNOWN] * 4, [5, UNKNOWN, 5, UNKNOWN]], jnp.int32)
        result = autoregressive.sample(
            row_keys(0, 2), step_fn, jnp.int32(0), tokens, start_id=9, unknown_id=UNKNOWN
        )
        jax.effects_barrier()
        assert result.tolist() == [[1, 2, 3, 4], [5, 3, 5, 5]] and result.dtype == jnp.int32
        assert fed == [[0, [9, 9], 0], [1, [1, 5], 1], [2, [2, 3], 2], [3, [3, 5], 3]]

    def test_same_key_same_sample_and_a_row_is_the_same_alone_and_in_a_batch(self):
        start = jnp.full((4, 12), UNKNOWN).at[2, :5].set(1)
        keys = row_keys(0, 4)
        batch = draw(keys, start)
        np.testing.assert_array_equal(draw(keys, start), batch)
        np.testing.assert_array_equal(draw(keys[::-1], start[::-1])[::-1], batch)
        for i in range(4):
            np.testing.assert_array_equal(draw(keys[i : i + 1], start[i : i + 1])[0], batch[i])
        assert (batch[0] != batch[1]).any() and (batch < K).all()
        assert (draw(row_keys(1, 4), start) != batch).any()

    @pytest.mark.parametrize("num_tokens", [1, 3, 6, 12])
    def test_a_growing_cache_has_the_room_it_was_given_and_changes_nothing(self, num_tokens, monkeypatch):
        monkeypatch.setattr(autoregressive, "SCAN_TOKENS", 1)
        rooms = []

        def grow(cache, places):
            return jnp.pad(cache, ((0, 0), (0, places)), constant_values=K)

        def step_fn(cache, token, position):
            rooms.append(cache.shape[1])
            logits_fn = lambda cache: random_logits_fn()(grow(cache, num_tokens - cache.shape[1]))
            return write_and_read(logits_fn)(cache, token, position)

        start = jnp.full((2, num_tokens), UNKNOWN).at[1, 0].set(2)
        grown = autoregressive.sample(
            row_keys(0, 2),
            step_fn,
            start[:, :0],
            start,
            start_id=START,
            unknown_id=UNKNOWN,
            grow_fn=grow,
        )
        np.testing.assert_array_equal(grown, draw(row_keys(0, 2), start))
        assert sorted(set(rooms)) == {1: [1], 3: [1, 2, 3], 6: [1, 3, 4, 6], 12: [3, 6, 9, 12]}[num_tokens]

    @pytest.mark.parametrize(("num_tokens", "lengths"), [(64, [64]), (100, [100]), (192, [64, 64, 64])])
    def test_short_sequences_have_one_loop(self, num_tokens, lengths):
        grown = []

        def grow(cache, places):
            grown.append(places)
            return cache

        step_fn = lambda cache, token, position: (cache, jnp.zeros((1, K)))
        start = jnp.full((1, num_tokens), UNKNOWN)
        options = {"start_id": START, "unknown_id": UNKNOWN, "grow_fn": grow}
        autoregressive.sample(row_keys(0, 1), step_fn, (), start, **options)
        assert grown == lengths

    def test_positions_draw_different_noise(self):
        tokens = autoregressive.sample(
            row_keys(0, 1),
            lambda cache, token, position: (cache, jnp.zeros((1, 1000))),
            (),
            jnp.full((1, 50), 1000),
            start_id=1000,
            unknown_id=1000,
        )
        assert len(np.unique(tokens)) > 40

    def test_one_compile_whatever_is_given_and_memory_of_one_position(self):
        traces = []
        num_tokens, num_codes = 64, 512

        @jax.jit
        def complete(keys, tokens, temperature):
            traces.append(1)

            def step_fn(cache, token, position):
                cache = jax.lax.dynamic_update_index_in_dim(cache, token, position, 1)
                return cache, jnp.zeros((2, num_codes))

            options = {"start_id": num_codes, "unknown_id": num_codes, "temperature": temperature}
            return autoregressive.sample(keys, step_fn, jnp.zeros_like(tokens), tokens, **options)

        tokens = np.full((2, num_tokens), num_codes, np.int32)
        for given in (0, 1, num_tokens // 2, num_tokens):
            tokens[:, :given] = 3
            result = complete(row_keys(0, 2), tokens, 0.5 + given)
            assert (result[:, :given] == 3).all() and (result < num_codes).all()
        assert len(traces) == 1

        memory = complete.lower(row_keys(0, 2), tokens, 1.0).compile().memory_analysis()
        all_logits = 4 * 2 * num_tokens * num_codes
        assert memory.temp_size_in_bytes < all_logits / 4

    def test_temperature_zero_and_filters(self):
        logits = jnp.log(jnp.array([0.1, 0.4, 0.2, 0.3]))

        def drawn(**options):
            codes = autoregressive.sample(
                row_keys(0, 100),
                lambda cache, token, position: (cache, jnp.broadcast_to(logits, (100, 4))),
                (),
                jnp.full((100, 8), 4),
                start_id=4,
                unknown_id=4,
                **options,
            )
            return np.unique(codes).tolist()

        assert drawn(temperature=0.0) == [1]
        # Of the three likeliest, 0.4 and 0.3 of 0.9 hold more than 0.75; of all four they hold less.
        assert drawn(top_k=3, top_p=0.75) == [1, 3]

    def test_guidance_with_a_ramp_begins_conditional(self):
        """Scale 1 + 40 * i / 4: the first token follows the condition, the last the guided distribution."""
        shares = jnp.array([0.4, 0.35, 0.25])
        rows = 4000

        def step_fn(cache, token, position):
            return cache, cache

        cache = interleave(jnp.tile(jnp.log(shares), (rows, 1)), jnp.zeros((rows, 3)))
        result = np.asarray(
            autoregressive.sample(
                row_keys(0, rows),
                guided_step(step_fn, 41.0, 4, linear),
                cache,
                jnp.full((rows, 4), 3),
                start_id=3,
                unknown_id=3,
            )
        )
        for position, scale in enumerate([1, 11, 21, 31]):
            expected = np.asarray(shares) ** scale
            drawn = np.bincount(result[:, position], minlength=3) / rows
            np.testing.assert_allclose(drawn, expected / expected.sum(), atol=0.03)

    def test_bad_arguments(self):
        step_fn = write_and_read(random_logits_fn())
        start = jnp.full((2, 4), UNKNOWN)
        options = {"start_id": START, "unknown_id": UNKNOWN}
        with pytest.raises(ValueError, match="one a row"):
            autoregressive.sample(row_keys(0, 3), step_fn, start, start, **options)
        with pytest.raises(ValueError, match=r"top_k must lie in 0\.\.7"):
            autoregressive.sample(row_keys(0, 2), step_fn, start, start, top_k=K + 1, **options)
        with pytest.raises(ValueError, match="unknown id 6"):
            autoregressive.sample(row_keys(0, 2), step_fn, start, start, start_id=K, unknown_id=K - 1)
