"""Code logits from features: affine maps, and which code has the largest."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Codes whose largest logit is found together; see `best_code`.
BLOCK = 128


class Affine(NamedTuple):
    """What makes logits of features: features @ kernel + bias.

    Attributes:
        kernel: float [C, K]; None takes the features for logits.
        bias: float [K], or None.
    """

    kernel: jax.Array | None = None
    bias: jax.Array | None = None


def dot_affine(codebook: jax.Array) -> Affine:
    """Inner products with every code, as in IBQ; codebook float [K, D]."""
    return Affine(codebook.astype(jnp.float32).T)


def distance_affine(codebook: jax.Array) -> Affine:
    """Negative squared distances to every code, up to a constant of each feature; codebook float [K, D].

    -||f - e||^2 + ||f||^2 = 2 f.e - ||e||^2: its argmax is the nearest code, and the constant that is left
    out changes neither argmax nor softmax.
    """
    codebook = codebook.astype(jnp.float32)
    return Affine(2.0 * codebook.T, -jnp.sum(codebook**2, -1))


def affine_logits(features: jax.Array, affine: Affine) -> jax.Array:
    """Logits float32 [..., K] of features float [..., C]."""
    logits = features.astype(jnp.float32)
    if affine.kernel is not None:
        # They decide an argmax: no TF32 or bfloat16 passes, which accelerators take by default.
        logits = jnp.matmul(logits, affine.kernel, precision=jax.lax.Precision.HIGHEST)
    return logits if affine.bias is None else logits + affine.bias


def dot_logits(features: jax.Array, codebook: jax.Array) -> jax.Array:
    """Inner products with every code, as in IBQ.

    Args:
        features: float [..., D].
        codebook: float [K, D].

    Returns:
        float32 [..., K].
    """
    return affine_logits(features, dot_affine(codebook))


def distance_logits(features: jax.Array, codebook: jax.Array) -> jax.Array:
    """Negative squared distances to every code, up to a constant of each feature (`distance_affine`).

    Args:
        features: float [..., D].
        codebook: float [K, D].

    Returns:
        float32 [..., K].
    """
    return affine_logits(features, distance_affine(codebook))


def best_code(
    logits: jax.Array, change_fn: Callable[[jax.Array, jax.Array], jax.Array] | None = None
) -> tuple[jax.Array, jax.Array]:
    """The largest logit of each position, and the first code that has it.

    An argmax over all codes carries an index along and costs as much as making the logits does, on a CPU;
    here it goes over the largest of each block, and then over one block.

    Args:
        logits: float [..., K].
        change_fn: (logits [..., n], codes int32 [..., n]) -> logits to take instead, elementwise; changed
            logits are never held.

    Returns:
        (codes int32 [...], logits float [...]).
    """
    num_codes = logits.shape[-1]
    size = math.gcd(num_codes, BLOCK)
    change_fn = change_fn or (lambda logits, codes: logits)

    def in_blocks(x):
        return x.reshape(*logits.shape[:-1], num_codes // size, size)

    block = jnp.argmax(jnp.max(in_blocks(change_fn(logits, jnp.arange(num_codes))), -1), -1)
    inside = jnp.take_along_axis(in_blocks(logits), block[..., None, None], -2)[..., 0, :]
    first = size * block[..., None]
    inside = change_fn(inside, first + jnp.arange(size))
    codes = first[..., 0] + jnp.argmax(inside, -1)
    return codes.astype(jnp.int32), jnp.max(inside, -1)
