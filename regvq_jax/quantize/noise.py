"""Where positions are sampled, and with what noise: draws that are cheap enough to be made again."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# The fewest rounds of Threefry-2x32 that pass all of BigCrush (Salmon et al. 2011, table 2); `jax.random`
# takes 20. Each code of each sampled position costs one block, forward and backward.
ROUNDS = 13
ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
PARITY = 0x1BD11BDA
# The bits of a float32 in (0, 1) that are all exact, of its distance from 1, too.
BITS = 23


class Draws(NamedTuple):
    """What is random of each position of each image; the noise follows from it.

    Attributes:
        mask: bool [B, N], True = sampled.
        row_keys: uint32 [B, N, 2], the key of the noise over the codes.
    """

    mask: jax.Array
    row_keys: jax.Array


def draw(key: jax.Array, batch: int, positions: int, mask_ratio: float) -> Draws:
    """The draws of a batch.

    Args:
        key: a random key.
        batch, positions: B, and N of each image.
        mask_ratio: probability that a position is sampled.
    """
    mask_key, row_key = jax.random.split(key)
    mask = jax.random.bernoulli(mask_key, mask_ratio, (batch, positions))
    return Draws(mask, jax.random.bits(row_key, (batch, positions, 2), jnp.uint32))


def gumbel_noise(row_keys: jax.Array, codes: jax.Array) -> jax.Array:
    """Standard Gumbel noise, a function of row key and code alone.

    Plain arithmetic on each element, which a compiler fuses with what is done to the logits: it need not be
    written to memory, and the backward pass makes it again.

    Args:
        row_keys: uint32 [..., 2].
        codes: int [..., n] that broadcasts against row_keys [..., 1].

    Returns:
        float32 [..., n], in [-2.82, 16.64].
    """
    codes = jnp.broadcast_to(codes, (*row_keys.shape[:-1], codes.shape[-1])).astype(jnp.uint32)
    bits = threefry(row_keys[..., :1], row_keys[..., 1:], codes)
    # Signed: processors have no instruction for the other. The middle of each of 2^23 steps, never 0 nor 1.
    steps = (bits >> (32 - BITS)).astype(jnp.int32).astype(jnp.float32)
    return -jnp.log(-jnp.log((steps + 0.5) * 2.0**-BITS))


def threefry(key0: jax.Array, key1: jax.Array, counter: jax.Array, rounds: int = ROUNDS) -> jax.Array:
    """The first word of Threefry-2x32 of (counter, 0) (Salmon et al. 2011, "as easy as 1, 2, 3").

    Args:
        key0, key1: uint32, that broadcast to the counter.
        counter: uint32 [...].
        rounds: at most 20.

    Returns:
        uint32 [...].
    """
    keys = (key0, key1, key0 ^ key1 ^ jnp.uint32(PARITY))
    left, right = counter + keys[0], jnp.broadcast_to(keys[1], counter.shape)
    for index in range(rounds):
        left = left + right
        by = ROTATIONS[index % 8]
        right = (right << by | right >> (32 - by)) ^ left
        if index % 4 == 3:
            injection = index // 4 + 1
            left = left + keys[injection % 3]
            right = right + keys[(injection + 1) % 3] + jnp.uint32(injection)
    return left
