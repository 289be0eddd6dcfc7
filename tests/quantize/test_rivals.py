"""The rivals' own formulas, by hand or by brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax import quantize

KEY = jax.random.key(0)


def test_distance_logits_rank_as_distances():
    features, codebook = jax.random.normal(KEY, (7, 3)), jax.random.normal(jax.random.key(1), (5, 3))
    distances = ((features[:, None] - codebook) ** 2).sum(-1)
    logits = quantize.distance_logits(features, codebook)
    np.testing.assert_allclose(
        jax.nn.softmax(logits, -1), jax.nn.softmax(-distances, -1), rtol=1e-4, atol=1e-6
    )


def test_nearest_by_hand():
    """One feature (1, 0) between the codes (0, 0) and (3, 0): the first; each half of the loss is 0.5."""
    features, codebook = jnp.array([[[[1.0, 0.0]]]]), jnp.array([[0.0, 0.0], [3.0, 0.0]])
    out = quantize.nearest(features, codebook)
    assert out.codes.item() == 0
    assert out.codebook_error.item() == out.commitment_error.item() == 0.5

    def value(term):
        return lambda f, c: term(quantize.nearest(f, c)).sum()

    to_features, to_codebook = jax.grad(value(lambda o: o.codebook_error), (0, 1))(features, codebook)
    assert not to_features.any()
    np.testing.assert_allclose(to_codebook, [[-1.0, 0.0], [0.0, 0.0]])
    to_features, to_codebook = jax.grad(value(lambda o: o.commitment_error), (0, 1))(features, codebook)
    np.testing.assert_allclose(to_features.ravel(), [1.0, 0.0])
    assert not to_codebook.any()
    straight = jax.grad(value(lambda o: o.quantized * jnp.array([2.0, -3.0])), (0, 1))(features, codebook)
    np.testing.assert_allclose(straight[0].ravel(), [2.0, -3.0])
    assert not straight[1].any()


def test_moving_codebook_by_hand():
    counts, codebook = quantize.init_moving_counts(2, 2), jnp.array([[1.0], [5.0]])
    features, codes = jnp.array([[2.0], [4.0]]), jnp.array([0, 0])
    counts, codebook = quantize.update_moving_codebook(KEY, counts, codebook, features, codes, decay=0.5)
    # Counts 0.5 * 1 + 0.5 * 2 and 0.5; sums would be 0.5 * 1 + 0.5 * 6 and 2.5.
    np.testing.assert_allclose(counts, [1.5, 0.5])
    np.testing.assert_allclose(codebook, [[3.5 / 1.5], [5.0]], rtol=1e-6)
    for _ in range(300):  # A code that is never used again stays where it is.
        counts, codebook = quantize.update_moving_codebook(KEY, counts, codebook, features, codes, decay=0.5)
    np.testing.assert_array_equal(codebook[1], [5.0])


def test_codes_in_even_use_are_not_restarted():
    counts, codebook = quantize.init_moving_counts(8, 64), jax.random.normal(KEY, (8, 2))
    features, first = jnp.full((64, 2), 50.0), codebook
    for step in range(30):
        codes = jax.random.randint(jax.random.fold_in(KEY, step), (64,), 0, 8)
        key = jax.random.fold_in(KEY, 100 + step)
        counts, codebook = quantize.update_moving_codebook(
            key, counts, codebook, features, codes, decay=0.9, restart_below=0.03
        )
    assert (codebook < 50).all() and (codebook > first).all()  # On their way, and no jump to a feature.


def test_a_dead_code_starts_anew_from_a_feature_and_lives():
    counts, codebook = quantize.init_moving_counts(3, 50), jnp.zeros((3, 2))
    features = jax.random.normal(KEY, (50, 2)) + 10.0
    codes = jnp.zeros(50, jnp.int32)
    for step in range(40):
        counts, codebook = quantize.update_moving_codebook(
            jax.random.fold_in(KEY, step), counts, codebook, features, codes, decay=0.8, restart_below=0.1
        )
    assert (codebook > 5).all()  # Nothing is left at the origin.
    codes = quantize.nearest(features.reshape(1, 5, 10, 2), codebook).codes
    assert len(np.unique(codes)) > 1


def test_fsq_reaches_every_level_and_its_codes_are_their_digits():
    levels = (4, 3, 2)
    grid = jnp.linspace(-6, 6, 25)
    features = jnp.stack(jnp.meshgrid(grid, grid, grid), -1).reshape(1, 125, 125, 3)
    out = quantize.fsq(features, levels)
    assert sorted(np.unique(out.codes)) == list(range(24))
    for dim, expected in enumerate([[-1, -0.5, 0, 0.5], [-1, 0, 1], [-1, 0]]):
        np.testing.assert_allclose(np.unique(out.quantized[..., dim]), expected, atol=1e-6)
    low = quantize.fsq(jnp.full((1, 1, 1, 3), -9.0), levels)
    assert low.codes.item() == 0
    # The first dimension counts fastest.
    assert quantize.fsq(jnp.array([9.0, -9.0, -9.0]).reshape(1, 1, 1, 3), levels).codes.item() == 3
    assert quantize.fsq(jnp.array([-9.0, 9.0, -9.0]).reshape(1, 1, 1, 3), levels).codes.item() == 2 * 4


def test_fsq_passes_rounding_and_keeps_the_squashing():
    def value(x):
        return quantize.fsq(x.reshape(1, 1, 1, 1), (5,)).quantized.sum()

    half_width = 2 * 1.001
    for x in (0.0, 0.3, 2.0):
        expected = half_width * (1 - np.tanh(x) ** 2) / 2
        np.testing.assert_allclose(jax.grad(value)(jnp.float32(x)), expected, rtol=1e-5)


@pytest.mark.parametrize("bits", [1, 4, 5])
def test_lfq_against_all_corners(bits):
    features = jax.random.normal(KEY, (2, 3, 2, bits))
    temperature = 1.7
    out = quantize.lfq(features, temperature=temperature)
    corners = quantize.lfq_vectors(jnp.arange(2**bits), bits)
    assert len(np.unique(corners, axis=0)) == 2**bits
    distances = ((features[..., None, :] - corners) ** 2).sum(-1)
    np.testing.assert_array_equal(out.codes, distances.argmin(-1))
    shares = jax.nn.softmax(-distances / temperature, -1)
    np.testing.assert_allclose(out.soft_posterior, shares.mean((1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(out.entropy, -(shares * jnp.log(shares)).sum(-1), rtol=1e-3, atol=1e-5)


def test_entropies_by_hand():
    entropy = jnp.array([[[0.0, np.log(4.0)]]])
    np.testing.assert_allclose(quantize.gumbel_kl(entropy, 4), np.log(4.0) / 2, rtol=1e-6)
    # Two images that use one code each: together two codes of four, H(E[q]) = log 2.
    soft_posterior = jnp.array([[1.0, 0, 0, 0], [0, 1.0, 0, 0]])
    loss = quantize.entropy_loss(entropy, soft_posterior, diversity_weight=2.0)
    np.testing.assert_allclose(loss, np.log(4.0) / 2 - 2 * np.log(2.0), rtol=1e-6)
    gradient = jax.grad(lambda p: quantize.entropy_loss(entropy, p))(soft_posterior)
    assert np.isfinite(gradient).all()


def test_the_entropy_loss_of_ibq_sees_its_codes_and_not_a_flat_softmax():
    """Four features that all take code 0 by a little: at temperature 1 their softmax uses both evenly."""
    features = jnp.array([[0.1, 0.0], [0.2, 0.0], [0.1, 0.1], [0.3, 0.1]]).reshape(1, 2, 2, 2)
    codebook = jnp.array([[1.0, 0.0], [0.0, -1.0]])
    out, flat = (quantize.ibq(features, codebook, entropy_temperature=t) for t in (0.01, 1.0))
    assert not out.codes.any() and not flat.codes.any()
    np.testing.assert_allclose(out.soft_posterior, [[1.0, 0.0]], atol=1e-4)
    spreads = [-quantize.entropy_loss(jnp.zeros(1), x.soft_posterior) for x in (out, flat)]
    np.testing.assert_allclose(spreads, [0.0, np.log(2.0)], atol=1e-2)
    # Backward it is the softmax at temperature 1 in either case.
    to_features, flat_to_features = (
        jax.grad(lambda f, t: quantize.ibq(f, codebook, entropy_temperature=t).quantized.sum())(features, t)
        for t in (0.01, 1.0)
    )
    np.testing.assert_array_equal(to_features, flat_to_features)


def test_gradients_of_the_entropies_by_hand():
    """Of E[H]: 1 / positions; of -w H(E[q]): w (1 + log share) / images; Gumbel-VQ's: -1 / positions."""
    entropy = jnp.full((2, 1, 2), 0.3)
    soft_posterior = jnp.array([[0.5, 0.3, 0.2], [0.1, 0.7, 0.2]])
    to_entropy, to_shares = jax.grad(
        lambda h, p: quantize.entropy_loss(h, p, diversity_weight=2.0), argnums=(0, 1)
    )(entropy, soft_posterior)
    np.testing.assert_allclose(to_entropy, np.full((2, 1, 2), 0.25), rtol=1e-6)
    expected = 2.0 * (1 + np.log([0.3, 0.5, 0.2])) / 2
    np.testing.assert_allclose(to_shares, np.broadcast_to(expected, (2, 3)), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(lambda h: quantize.gumbel_kl(h, 3))(entropy), -to_entropy, rtol=1e-6)


def test_gumbel_kl_is_not_the_prior_kl():
    """Decided positions that share all codes evenly: the prior is content, Gumbel-VQ's KL is not."""
    logits = 50.0 * jnp.eye(4).reshape(1, 2, 2, 4)
    out = quantize.deterministic(logits, jnp.eye(4))
    np.testing.assert_allclose(quantize.prior_kl(out.posterior), 0.0, atol=1e-6)
    np.testing.assert_allclose(quantize.gumbel_kl(out.entropy, 4), np.log(4.0), rtol=1e-5)


def test_each_residual_level_codes_what_is_left():
    codebook = jnp.array([[0.0], [1.0], [4.0], [-0.5]])
    features = jnp.array([4.6]).reshape(1, 1, 1, 1)
    out = quantize.residual(
        lambda x, level: quantize.nearest(x, codebook), features, 3, straight_through=True
    )
    # 4.6 - 4 = 0.6, - 1 = -0.4, + 0.5 = 0.1.
    np.testing.assert_array_equal(out.codes.ravel(), [2, 1, 3])
    np.testing.assert_allclose(out.quantized.ravel(), [4.5], rtol=1e-6)
    np.testing.assert_allclose(out.commitment_error.item(), 0.6**2 + 0.4**2 + 0.1**2, rtol=1e-4)
    np.testing.assert_allclose(out.posterior.sum(), 1.0, rtol=1e-6)
