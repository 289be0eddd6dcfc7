"""The noise of the sampled positions: its generator, its distribution, and its independence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax.quantize import noise

ROWS, CODES = 2048, 512


@pytest.fixture(scope="module")
def gumbel():
    keys = jax.random.bits(jax.random.key(1), (ROWS, 2), jnp.uint32)
    return np.asarray(jax.jit(noise.gumbel_noise)(keys, jnp.arange(CODES)), np.float64)


def test_twenty_rounds_are_the_published_threefry():
    """Known answers of Random123: counter and key of zeros; and jax.random's own, of the counter (i, 0)."""
    word = noise.threefry(*(jnp.zeros(1, jnp.uint32),) * 3, rounds=20)
    assert int(word[0]) == 0x6B200159
    key = jnp.array([0x13198A2E, 0x03707344], jnp.uint32)
    counter = jnp.arange(5, dtype=jnp.uint32)
    pairs = jnp.concatenate([counter, jnp.zeros(5, jnp.uint32)])
    expected = jax.extend.random.threefry_2x32(key, pairs)[:5]
    np.testing.assert_array_equal(noise.threefry(key[0], key[1], counter, rounds=20), expected)
    assert (noise.threefry(key[0], key[1], counter) != expected).all()


def test_the_marginal_is_gumbel(gumbel):
    """Kolmogorov-Smirnov at p = 0.001 over a million draws, and the tail's shares."""
    values = np.sort(gumbel.ravel())
    cdf = np.exp(-np.exp(-values))
    steps = np.arange(values.size + 1) / values.size
    distance = max(np.max(steps[1:] - cdf), np.max(cdf - steps[:-1]))
    assert distance < 1.95 / np.sqrt(values.size)
    for bound in (4.0, 6.0, 8.0):
        expected = values.size * -np.expm1(-np.exp(-bound))
        assert abs((values > bound).sum() - expected) < 4 * np.sqrt(expected)
    assert np.isfinite(values).all()


def test_the_extremes_are_finite():
    steps = np.array([0, 2**noise.BITS - 1], np.float32)
    ends = -np.log(-np.log((steps + np.float32(0.5)) * np.float32(2.0**-noise.BITS)))
    assert np.isfinite(ends).all() and ends[0] > -2.82 - 0.01 and ends[1] < 16.64


def correlation(a, b):
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


def test_neighbours_are_independent(gumbel):
    bound = 4 / np.sqrt(gumbel.size / 2)
    for shift in (1, 2, 128, CODES // 2):
        assert abs(correlation(gumbel[:, shift:], gumbel[:, :-shift])) < bound
    assert abs(correlation(gumbel[1:], gumbel[:-1])) < bound
    assert len(np.unique(gumbel[:, 0])) > 0.99 * ROWS


@pytest.mark.parametrize("word, bit", [(0, 0), (0, 31), (1, 0), (1, 31)])
def test_keys_that_differ_in_one_bit_are_independent(word, bit):
    keys = jax.random.bits(jax.random.key(2), (256, 2), jnp.uint32)
    flipped = keys.at[:, word].set(keys[:, word] ^ jnp.uint32(1 << bit))
    a, b = (np.asarray(noise.gumbel_noise(x, jnp.arange(CODES))) for x in (keys, flipped))
    assert abs(correlation(a, b)) < 4 / np.sqrt(a.size)


def test_codes_follow_the_softmax(gumbel):
    """Chi-square of the argmax over groups of 8 codes: 7 degrees of freedom, 24.3 at p = 0.001."""
    logits = np.array([1.5, 0.0, -1.0, 0.5, 2.0, 0.0, -0.5, 1.0])
    codes = (gumbel.reshape(-1, 8) + logits).argmax(-1)
    expected = codes.size * np.exp(logits) / np.exp(logits).sum()
    observed = np.bincount(codes, minlength=8)
    assert ((observed - expected) ** 2 / expected).sum() < 24.3


def test_draws_are_those_of_the_key():
    first, again, other = (noise.draw(jax.random.key(k), 4, 500, 0.4) for k in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert abs(first.mask.mean() - 0.4) < 0.05
    assert (first.row_keys != other.row_keys).any(-1).all()
    assert len(np.unique(np.asarray(first.row_keys).reshape(-1, 2), axis=0)) == 2000
