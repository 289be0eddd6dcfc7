"""Classifier-free guidance around any conditional network."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def constant(ratio: jax.Array) -> jax.Array:
    """The full scale at all times.

    Args:
        ratio: float of any shape, in [0, 1]: the share of the sampling that is done.

    Returns:
        float32 of the same shape, in [0, 1]: how far the scale has come from 1 to its full value.
    """
    return jnp.ones(jnp.shape(ratio), jnp.float32)


def linear(ratio: jax.Array) -> jax.Array:
    """ratio: from 1 to the full scale; Args and Returns as in `constant`."""
    return jnp.asarray(ratio, jnp.float32)


def cosine(ratio: jax.Array) -> jax.Array:
    """(1 - cos(pi * ratio)) / 2: slow at both ends; Args and Returns as in `constant`."""
    return (1 - jnp.cos(jnp.pi * jnp.asarray(ratio, jnp.float32))) / 2


RAMPS = {"constant": constant, "linear": linear, "cosine": cosine}


def interleave(condition: Any, null_condition: Any) -> Any:
    """Puts each row next to its null twin, so that a batch split over devices stays where it is.

    Args:
        condition: any pytree of arrays [B, ...].
        null_condition: the same structure and shapes.

    Returns:
        The same structure of arrays [2B, ...]: rows 0, 2, ... from the first, 1, 3, ... from the second.
    """

    def pair(first, second):
        return jnp.stack([first, second], 1).reshape(-1, *first.shape[1:])

    return jax.tree.map(pair, condition, null_condition)


def guided(
    network_fn: Callable[[jax.Array, Any, jax.Array], jax.Array],
    condition: Any,
    null_condition: Any,
    scale: float | jax.Array,
    ramp_fn: Callable[[jax.Array], jax.Array] = constant,
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Makes the `logits_fn` of a sampler, with logits = null + scale * (conditional - null).

    Both logits come from one call of the network on 2B rows. Where `scale` is the Python number 1,
    the network is called on the B conditional rows alone.

    Args:
        network_fn: (tokens int32 [R, N], condition, time float32 [R]) -> float [R, N, K].
        condition: any pytree of arrays [B, ...], such as (text, drop_condition) or an encoded
            memory.
        null_condition: the same structure and shapes for no condition.
        scale: guidance strength, a number or float [B]; 0 = unconditional, 1 = conditional, above 1
            = guided.
        ramp_fn: how the strength grows from 1 to `scale` while the time falls from 1 to 0: one of `RAMPS`.

    Returns:
        (tokens int32 [B, N], time float32 [B]) -> float32 [B, N, K].
    """
    if isinstance(scale, int | float) and scale == 1:
        return lambda tokens, time: network_fn(tokens, condition, time).astype(jnp.float32)
    pairs = interleave(condition, null_condition)

    def logits_fn(tokens: jax.Array, time: jax.Array) -> jax.Array:
        logits = network_fn(jnp.repeat(tokens, 2, axis=0), pairs, jnp.repeat(time, 2))
        return _extrapolate(logits, _strength(scale, ramp_fn(1 - time)))

    return logits_fn


def guided_step(
    step_fn: Callable[[Any, jax.Array, jax.Array], tuple[Any, jax.Array]],
    scale: float | jax.Array,
    num_positions: int,
    ramp_fn: Callable[[jax.Array], jax.Array] = constant,
) -> Callable[[Any, jax.Array, jax.Array], tuple[Any, jax.Array]]:
    """Makes the `step_fn` of `autoregressive.sample` for B rows out of one for 2B rows.

    Each row and its null twin are fed the same token. Without guidance use `step_fn` itself.

    Args:
        step_fn: (cache, token int32 [2B], position int32 []) -> (cache, logits float [2B, K]), with a
            cache whose rows are conditional and null in turn, as from `interleave`.
        scale: as in `guided`.
        num_positions: N, of the whole sequence.
        ramp_fn: as in `guided`, over the ratio position / N.

    Returns:
        (cache, token int32 [B], position int32 []) -> (cache, logits float32 [B, K]).
    """

    def step(cache: Any, token: jax.Array, position: jax.Array) -> tuple[Any, jax.Array]:
        cache, logits = step_fn(cache, jnp.repeat(token, 2), position)
        return cache, _extrapolate(logits, _strength(scale, ramp_fn(position / num_positions)))

    return step


def _strength(scale, share):
    return 1 + (jnp.asarray(scale, jnp.float32) - 1) * share


def _extrapolate(logits, strength):
    """logits [2B, ...] and strength [] or [B] to float32 [B, ...]."""
    logits = logits.astype(jnp.float32)
    conditional, null = logits[0::2], logits[1::2]
    return null + strength.reshape(-1, *[1] * (logits.ndim - 1)) * (conditional - null)
