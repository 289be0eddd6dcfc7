"""Filters by hand: what is kept, ties, the ends of the ranges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax.priors import filters

SHARES = np.array([0.1, 0.5, 0.05, 0.35])
LOGITS = jnp.log(SHARES) + 3.0


def kept(logits):
    return np.isfinite(np.asarray(logits, np.float32)).tolist()


@pytest.mark.parametrize(
    "k, expected",
    [(1, [0, 1, 0, 0]), (2, [0, 1, 0, 1]), (3, [1, 1, 0, 1]), (4, [1, 1, 1, 1]), (0, [1, 1, 1, 1])],
)
def test_top_k_by_hand(k, expected):
    filtered = filters.top_k(LOGITS, k)
    assert kept(filtered) == [bool(x) for x in expected]
    np.testing.assert_array_equal(filtered, np.where(expected, LOGITS, -np.inf))


@pytest.mark.parametrize(
    "p, expected",
    [
        (1e-6, [0, 1, 0, 0]),
        (0.49, [0, 1, 0, 0]),
        (0.51, [0, 1, 0, 1]),
        (0.84, [0, 1, 0, 1]),
        (0.86, [1, 1, 0, 1]),
        (0.96, [1, 1, 1, 1]),
        (1.0, [1, 1, 1, 1]),
    ],
)
def test_top_p_by_hand(p, expected):
    filtered = filters.top_p(LOGITS, p)
    np.testing.assert_array_equal(filtered, np.where(expected, LOGITS, -np.inf))


def test_top_p_of_the_tempered_distribution():
    # At temperature 1/2 the shares are as 0.01 : 0.25 : 0.0025 : 0.1225, 0.649 and 0.318 the largest.
    assert kept(filters.top_p(LOGITS, 0.6, temperature=0.5)) == [False, True, False, False]
    assert kept(filters.top_p(LOGITS, 0.7, temperature=0.5)) == [False, True, False, True]
    assert kept(filters.top_p(LOGITS, 0.9, temperature=0.0)) == [False, True, False, False]
    assert kept(filters.top_p(LOGITS, 0.9, temperature=1e6)) == [True] * 4


def test_equally_likely_codes_share_their_fate():
    tied = jnp.log(jnp.array([0.2, 0.3, 0.2, 0.3]))
    assert kept(filters.top_k(tied, 1)) == [False, True, False, True]
    assert kept(filters.top_k(tied, 3)) == [True] * 4
    assert kept(filters.top_p(tied, 0.1)) == [False, True, False, True]
    assert kept(filters.top_p(tied, 0.7)) == [True] * 4
    assert kept(filters.top_p(tied, 0.1, temperature=0.0)) == [False, True, False, True]


def test_each_row_by_itself_and_never_all_removed():
    logits = jnp.array([[0.0, 1.0, 2.0], [5.0, 4.0, 3.0], [-jnp.inf, -1e30, -jnp.inf], [1e30, 0.0, -1e30]])
    for filtered in (filters.top_k(logits, 1), filters.top_p(logits, 0.3), filters.top_p(logits, 0.999)):
        assert jnp.isfinite(filtered).any(-1).all()
        np.testing.assert_array_equal(filtered.argmax(-1), logits.argmax(-1))
        assert not jnp.isnan(filtered).any()
    assert filters.top_k(logits, 1).shape == logits.shape


def test_filters_follow_one_another():
    # Of the three likeliest (0.5, 0.35, 0.1 of 0.95) the first two hold 0.895.
    filtered = filters.top_p(filters.top_k(LOGITS, 3), 0.88)
    assert kept(filtered) == [False, True, False, True]
    assert kept(filters.top_p(LOGITS, 0.88)) == [True, True, False, True]


def test_bad_ranges():
    for k in (-1, 5):
        with pytest.raises(ValueError, match=r"0\.\.4"):
            filters.top_k(LOGITS, k)
    for p in (0.0, -0.5, 1.1):
        with pytest.raises(ValueError, match="top_p"):
            filters.top_p(LOGITS, p)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, SHARES),
        ({"temperature": 0.5}, SHARES**2),
        ({"temperature": 2.0, "k": 3}, np.sqrt(SHARES) * (SHARES > 0.06)),
        ({"p": 0.6}, SHARES * (SHARES > 0.2)),
        ({"temperature": 0.5, "p": 0.6}, SHARES == 0.5),
        ({"temperature": 0.0}, SHARES == 0.5),
        ({"temperature": 0.0, "k": 2, "p": 0.9}, SHARES == 0.5),
    ],
)
def test_draws_follow_what_is_left(options, expected):
    row_keys = jax.random.bits(jax.random.key(0), (20000, 2))
    codes = filters.draw(row_keys, jnp.broadcast_to(LOGITS, (20000, 4)), **options)
    assert codes.shape == (20000,) and codes.dtype == jnp.int32
    drawn = np.bincount(codes, minlength=4) / 20000
    np.testing.assert_allclose(drawn, expected / expected.sum(), atol=0.015)
    assert (drawn[expected == 0] == 0).all()


def test_bfloat16_logits_are_filtered_and_drawn_in_float32():
    # At 256 bfloat16 counts by twos: noise rounded to it would tie, and ties fall to the first code.
    logits = jnp.full((20000, 2), 256.0, jnp.bfloat16)
    row_keys = jax.random.bits(jax.random.key(1), (20000, 2))
    assert filters.draw(row_keys, logits, p=0.9).mean() == pytest.approx(0.5, abs=0.02)
    assert kept(filters.top_p(jnp.array([1.0, 2.0, 3.0], jnp.bfloat16), 0.5)) == [False, False, True]
