"""Large codebooks: tiles give the plain form's result and hold less."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax import quantize

KEY = jax.random.key(3)
FEATURES = jax.random.normal(jax.random.key(1), (2, 4, 6, 5))
CODEBOOK = jax.random.normal(jax.random.key(2), (32, 5)) * 0.5


def value_and_grads(tile_size, mask_ratio):
    def value(features, codebook):
        out = quantize.regularized_in_tiles(
            KEY,
            features,
            quantize.dot_affine(codebook),
            codebook,
            mask_ratio=mask_ratio,
            temperature=0.7,
            tile_size=tile_size,
        )
        regularizers = quantize.prior_kl(out.posterior)
        regularizers += quantize.entropy_loss(out.entropy, out.soft_posterior)
        return regularizers + jnp.sum(out.quantized**2), out

    return jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))(FEATURES, CODEBOOK)


@pytest.mark.parametrize("mask_ratio", [0.0, 0.4, 1.0])
def test_any_tile_gives_the_plain_result(mask_ratio):
    (_, plain), plain_grads = value_and_grads(0, mask_ratio)
    for tile_size in (1, 8):
        (_, tiled), grads = value_and_grads(tile_size, mask_ratio)
        np.testing.assert_array_equal(tiled.codes, plain.codes)
        np.testing.assert_array_equal(tiled.stochastic_mask, plain.stochastic_mask)
        for a, b in zip((tiled, grads), (plain, plain_grads), strict=True):
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), a, b)


def test_the_plain_functions_are_the_same_thing():
    logits = quantize.dot_logits(FEATURES, CODEBOOK)
    tiled = quantize.regularized_in_tiles(
        KEY, FEATURES, quantize.dot_affine(CODEBOOK), CODEBOOK, mask_ratio=0.4, tile_size=8
    )
    plain = quantize.regularized(KEY, logits, CODEBOOK, mask_ratio=0.4)
    np.testing.assert_array_equal(tiled.codes, plain.codes)
    sampled = quantize.gumbel(KEY, logits, CODEBOOK)
    assert sampled.stochastic_mask.all()
    np.testing.assert_array_equal(sampled.best_codes, plain.best_codes)


def test_nearest_in_tiles():
    plain, tiled = (quantize.nearest(FEATURES, CODEBOOK, tile_size=size) for size in (0, 6))
    jax.tree.map(np.testing.assert_array_equal, plain, tiled)
    distances = ((FEATURES[..., None, :] - CODEBOOK) ** 2).sum(-1)
    np.testing.assert_array_equal(plain.codes, distances.argmin(-1))


def test_tiles_hold_less_than_one_array_of_all_logits():
    positions, num_codes, dim = 256, 4096, 8
    features = jax.ShapeDtypeStruct((2, 16, 8, dim), jnp.float32)
    codebook = jax.ShapeDtypeStruct((num_codes, dim), jnp.float32)

    def temporary_bytes(tile_size):
        def value(features, codebook):
            out = quantize.regularized_in_tiles(
                KEY,
                features,
                quantize.dot_affine(codebook),
                codebook,
                tile_size=tile_size,
            )
            return quantize.prior_kl(out.posterior) + jnp.sum(out.quantized**2)

        compiled = jax.jit(jax.grad(value, (0, 1))).lower(features, codebook).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    one_array = positions * num_codes * 4
    assert temporary_bytes(0) > 2 * one_array
    assert temporary_bytes(8) < one_array


@pytest.mark.parametrize("bad", [dict(mask_ratio=1.5), dict(mask_ratio=-0.1), dict(tile_size=5)])
def test_what_cannot_be(bad):
    with pytest.raises(ValueError, match="mask_ratio|tile_size"):
        quantize.regularized_in_tiles(KEY, FEATURES, quantize.Affine(), jnp.eye(5), **bad)
