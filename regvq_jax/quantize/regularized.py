"""Stochastic mask regularization: Reg-VQ's quantizer, its two ends, and its form for large codebooks."""

import jax
import jax.numpy as jnp

from regvq_jax.quantize.assign import assign
from regvq_jax.quantize.contract import QuantizeOutput, squared_errors
from regvq_jax.quantize.logits import Affine, dot_affine
from regvq_jax.quantize.noise import draw


def regularized(
    key: jax.Array,
    logits: jax.Array,
    codebook: jax.Array,
    *,
    mask_ratio: float = 0.4,
    temperature: float | jax.Array = 1.0,
) -> QuantizeOutput:
    """Samples a random share of the positions and takes the best match at the rest (Reg-VQ, Algorithm 1).

    Each position is in the stochastic mask with probability `mask_ratio`. There the code is
    argmax(logits + Gumbel noise), so that codes follow softmax(logits); elsewhere it is argmax(logits).
    The backward pass is that of the softmax of the same (noisy or clean) logits divided by `temperature`.

    Args:
        key: a random key; the same key gives the same codes.
        logits: float [B, h, w, K], unnormalised log-probabilities of the codes; computed in float32.
        codebook: float [K, D].
        mask_ratio: probability in [0, 1] that a position is sampled; 0 is `deterministic`, 1 is `gumbel`.
        temperature: of the soft backward pass only, > 0; a schedule's number, which gets no gradient.

    Returns:
        A `QuantizeOutput` in float32; `entropy` and `soft_posterior` are those of softmax(logits).

    Raises:
        ValueError: `mask_ratio` is outside [0, 1].
    """
    return regularized_in_tiles(
        key, logits, Affine(), codebook, mask_ratio=mask_ratio, temperature=temperature
    )


def deterministic(
    logits: jax.Array, codebook: jax.Array, *, temperature: float | jax.Array = 1.0
) -> QuantizeOutput:
    """Takes the best-matching code everywhere: argmax forward, softmax backward.

    This is also how a trained tokenizer encodes. Args and result as in `regularized`.
    """
    return regularized_in_tiles(None, logits, Affine(), codebook, mask_ratio=0.0, temperature=temperature)


def gumbel(
    key: jax.Array, logits: jax.Array, codebook: jax.Array, *, temperature: float | jax.Array = 1.0
) -> QuantizeOutput:
    """Samples everywhere: the hard Gumbel-softmax of Gumbel-VQ. Args and result as in `regularized`."""
    return regularized(key, logits, codebook, mask_ratio=1.0, temperature=temperature)


def ibq(
    features: jax.Array,
    codebook: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    entropy_temperature: float = 0.01,
    tile_size: int = 0,
) -> QuantizeOutput:
    """`deterministic` on inner products with every code, with the errors of `nearest` (IBQ, SEED-Voken).

    The softmax over the whole codebook gives every code a gradient at every step.

    Args:
        features: float [B, h, w, D].
        codebook: float [K, D].
        temperature: of the soft backward pass only.
        entropy_temperature: of `entropy` and `soft_posterior`. Theirs is low: a flat softmax uses all codes
            evenly whatever its argmax does, and the entropy loss would be content with few codes.
        tile_size: see `regularized_in_tiles`.

    Returns:
        A `QuantizeOutput` in float32.
    """
    out = regularized_in_tiles(
        None,
        features,
        dot_affine(codebook),
        codebook,
        mask_ratio=0.0,
        temperature=temperature,
        entropy_temperature=entropy_temperature,
        tile_size=tile_size,
    )
    return out._replace(**squared_errors(features, jnp.asarray(codebook)[out.codes]))


def regularized_in_tiles(
    key: jax.Array | None,
    features: jax.Array,
    affine: Affine,
    codebook: jax.Array,
    *,
    mask_ratio: float = 0.4,
    temperature: float | jax.Array = 1.0,
    entropy_temperature: float = 1.0,
    tile_size: int = 0,
) -> QuantizeOutput:
    """`regularized` that makes the logits itself, a few positions of every image at a time.

    A large codebook's logits, noise, soft and hard assignments are float32 [B, h, w, K] each. Here they
    exist for one tile, and the backward pass makes them again (see `assign`), so that memory grows with
    B * tile_size * K and time by one more product. The random draws belong to the position: the result is
    that of one tile whatever the tile.

    Args:
        key: a random key; None where `mask_ratio` is 0.
        features: float [B, h, w, C].
        affine: makes logits of features, as `dot_affine` and `distance_affine` do with a codebook.
        codebook: float [K, D].
        mask_ratio, temperature: as in `regularized`.
        entropy_temperature: `entropy` and `soft_posterior` are those of softmax(logits / it).
        tile_size: positions of each image that are held at once, a divisor of h * w; 0 = all of them.

    Returns:
        As `regularized`.

    Raises:
        ValueError: `mask_ratio` is outside [0, 1], or `tile_size` does not divide h * w.
    """
    if not 0 <= mask_ratio <= 1:
        raise ValueError(f"mask_ratio must be in [0, 1], got {mask_ratio}")
    batch, height, width, channels = features.shape
    positions = height * width
    tile_size = tile_size or positions
    if positions % tile_size:
        raise ValueError(f"tile_size {tile_size} does not divide the {positions} positions of an image")
    draws = None if mask_ratio == 0 else draw(key, batch, positions, mask_ratio)
    codebook = jnp.asarray(codebook, jnp.float32)
    out = assign(
        jnp.asarray(features, jnp.float32).reshape(batch, positions, channels),
        affine,
        codebook,
        draws,
        jnp.asarray(temperature, jnp.float32),
        entropy_temperature,
        tile_size,
    )
    grid = (batch, height, width)
    codes, best_codes = out.codes.reshape(grid), out.best_codes.reshape(grid)
    difference = jax.lax.stop_gradient(codebook[codes] - codebook[best_codes])
    return QuantizeOutput(
        quantized=out.quantized.reshape(*grid, -1),
        codes=codes,
        best_codes=best_codes,
        posterior=out.posterior,
        stochastic_mask=jnp.zeros(grid, bool) if draws is None else draws.mask.reshape(grid),
        perturbation=jnp.sum(difference**2, -1),
        soft_posterior=out.soft_posterior,
        entropy=out.entropy.reshape(grid),
        codebook_error=jnp.zeros(grid, jnp.float32),
        commitment_error=jnp.zeros(grid, jnp.float32),
    )
