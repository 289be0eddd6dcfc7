"""Quantizers whose codes are the points of a fixed grid: FSQ and LFQ."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from regvq_jax.quantize.contract import QuantizeOutput, histogram, squared_errors, unsampled


def fsq(features: jax.Array, levels: Sequence[int]) -> QuantizeOutput:
    """Finite scalar quantization: squash each dimension, round it to one of a few levels.

    Code 0 has every dimension at its lowest level; the first dimension counts fastest. Rounding passes the
    gradient on unchanged. (Mentzer et al. 2023.)

    Args:
        features: float [B, h, w, D].
        levels: for each of the D dimensions how many levels, each at least 2; K is their product.

    Returns:
        A `QuantizeOutput` in float32 with code vectors in [-1, 1]; nothing is sampled, and there is no
        soft assignment, so that no regularizer of the posterior has a gradient.
    """
    features = features.astype(jnp.float32)
    sizes = jnp.asarray(levels, jnp.float32)
    # tanh scaled so that rounding reaches exactly `sizes` values. An even number of levels has no level at
    # zero: half a step of shift, undone after rounding.
    half_width = (sizes - 1) * (1 + 1e-3) / 2
    offset = jnp.where(sizes % 2 == 0, 0.5, 0.0)
    bounded = jnp.tanh(features + jnp.arctanh(offset / half_width)) * half_width - offset
    rounded = bounded + jax.lax.stop_gradient(jnp.round(bounded) - bounded)
    digits = jnp.round(jax.lax.stop_gradient(rounded)) + sizes // 2
    strides = jnp.cumprod(jnp.asarray((1, *levels[:-1]), jnp.int32))
    codes = jnp.sum(digits.astype(jnp.int32) * strides, -1)
    return unsampled(rounded / (sizes // 2), codes, histogram(codes, math.prod(levels)))


def fsq_vectors(codes: jax.Array, levels: Sequence[int]) -> jax.Array:
    """The code vectors of `fsq`: int32 [...] in [0, K) -> float32 [..., D]."""
    sizes = jnp.asarray(levels, jnp.int32)
    strides = jnp.cumprod(jnp.asarray((1, *levels[:-1]), jnp.int32))
    digits = codes[..., None] // strides % sizes
    return (digits - sizes // 2).astype(jnp.float32) / (sizes // 2)


def lfq(features: jax.Array, *, temperature: float | jax.Array = 1.0) -> QuantizeOutput:
    """Lookup-free quantization: the sign of each dimension is a bit of the code (MAGVIT-v2).

    The soft assignment is softmax(-||f - e||^2 / temperature) over all 2^D corners e of the cube. It is a
    product of independent bits, so that its entropy is a sum over bits and its mean over positions is one
    product of two halves; no [positions, K] array exists.

    Args:
        features: float [B, h, w, D]; K = 2^D, the first dimension is the lowest bit.
        temperature: of the soft assignment.

    Returns:
        A `QuantizeOutput` in float32 with code vectors of -1 and 1. The gradient of `quantized` is that of
        the features, the gradient of both posteriors that of the soft assignment.
    """
    features = features.astype(jnp.float32)
    batch, height, width, bits = features.shape
    is_set = features > 0
    codes = jnp.sum(is_set * 2 ** jnp.arange(bits), -1).astype(jnp.int32)
    vectors = jnp.where(is_set, 1.0, -1.0)

    bit_logits = 4.0 * features / temperature
    log_set, log_clear = jax.nn.log_sigmoid(bit_logits), jax.nn.log_sigmoid(-bit_logits)
    set_share, clear_share = jnp.exp(log_set), jnp.exp(log_clear)
    entropy = -jnp.sum(set_share * log_set + clear_share * log_clear, -1)

    flat = set_share.reshape(batch, height * width, bits)
    low, high = _corner_shares(flat[..., : bits // 2]), _corner_shares(flat[..., bits // 2 :])
    soft_posterior = jnp.einsum("bph,bpl->bhl", high, low).reshape(batch, -1) / (height * width)
    # Parenthesised: the difference is exactly zero, and the values stay those of the histogram.
    posterior = histogram(codes, 2**bits) + (soft_posterior - jax.lax.stop_gradient(soft_posterior))
    quantized = vectors + (features - jax.lax.stop_gradient(features))
    out = unsampled(quantized, codes, posterior)
    return out._replace(soft_posterior=soft_posterior, entropy=entropy, **squared_errors(features, vectors))


def lfq_vectors(codes: jax.Array, bits: int) -> jax.Array:
    """The code vectors of `lfq`: int32 [...] in [0, 2^bits) -> float32 [..., bits] of -1 and 1."""
    return 2.0 * (codes[..., None] >> jnp.arange(bits) & 1).astype(jnp.float32) - 1.0


def _corner_shares(set_share):
    """Probabilities of independent bits, [..., n], to those of their 2^n combinations, [..., 2^n]."""
    shares = jnp.ones((*set_share.shape[:-1], 1), jnp.float32)
    for bit in range(set_share.shape[-1]):
        p = set_share[..., bit : bit + 1]
        # Higher bits vary slowest, as in the codes.
        shares = jnp.concatenate([shares * (1 - p), shares * p], -1)
    return shares
