"""Classifier-free guidance around any conditional network."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def guided(
    network_fn: Callable[[jax.Array, Any], jax.Array],
    condition: Any,
    null_condition: Any,
    scale: float | jax.Array,
) -> Callable[[jax.Array], jax.Array]:
    """Makes `tokens_to_logits` with logits = null + scale * (conditional - null).

    Both logits come from one call of the network on 2B rows. Where `scale` is the Python number 1,
    the network is called on the B conditional rows alone.

    Args:
        network_fn: (tokens int32 [R, N], condition) -> float [R, N, K].
        condition: any pytree of arrays [B, ...], such as (text, drop_condition) or an encoded
            memory.
        null_condition: the same structure and shapes for no condition.
        scale: guidance strength, a number or float [B]; 0 = unconditional, 1 = conditional, above 1
            = guided.

    Returns:
        tokens int32 [B, N] -> float32 [B, N, K].
    """
    if isinstance(scale, int | float) and scale == 1:
        return lambda tokens: network_fn(tokens, condition).astype(jnp.float32)

    scale = jnp.asarray(scale, jnp.float32).reshape(-1, 1, 1)

    def interleave(first, second):
        # Each row next to its null twin, so that a batch split over devices stays where it is.
        return jnp.stack([first, second], 1).reshape(-1, *first.shape[1:])

    pairs = jax.tree.map(interleave, condition, null_condition)

    def tokens_to_logits(tokens: jax.Array) -> jax.Array:
        logits = network_fn(jnp.repeat(tokens, 2, axis=0), pairs).astype(jnp.float32)
        conditional, null = logits[0::2], logits[1::2]
        return null + scale * (conditional - null)

    return tokens_to_logits
