"""The autoregressive prior: each token is predicted from the ones before it."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from regvq_jax.priors import filters
from regvq_jax.priors.likelihood import cross_entropy, mean_where

# Loops of a sampler with a growing cache: with four, steps read a quarter more of it than is filled.
SCANS = 4
# Tokens that a loop draws at least: each holds the whole network, and takes its time to compile.
SCAN_TOKENS = 64


def shift_right(tokens: jax.Array, start_id: int) -> jax.Array:
    """The network's input: position i holds the token of position i - 1, the first `start_id`.

    Args:
        tokens: int32 [B, N].
        start_id: the id that means the start.

    Returns:
        int32 [B, N].
    """
    return jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=start_id)


def loss(
    logits: jax.Array,
    tokens: jax.Array,
    *,
    label_smoothing: float = 0.0,
    row_mask: jax.Array | None = None,
) -> jax.Array:
    """Mean cross-entropy of a token.

    Args:
        logits: float [B, N, K], of the network on `shift_right(tokens)`.
        tokens: int32 [B, N].
        label_smoothing: as in `likelihood.cross_entropy`.
        row_mask: bool [B], True = a real row; the others (a padded last batch) do not count.

    Returns:
        float32 [], in nats; 0 where nothing counts.
    """
    values = cross_entropy(logits, tokens, label_smoothing=label_smoothing)
    return values.mean() if row_mask is None else mean_where(values, row_mask[:, None])


def log_likelihood(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """log p(tokens) = sum_i log p(token_i | tokens before i), exact.

    Args:
        logits: float [B, N, K], of the network on `shift_right(tokens)`.
        tokens: int32 [B, N].

    Returns:
        float32 [B], in nats.
    """
    return -cross_entropy(logits, tokens).sum(-1)


def sample(
    keys: jax.Array,
    step_fn: Callable[[Any, jax.Array, jax.Array], tuple[Any, jax.Array]],
    cache: Any,
    tokens: jax.Array,
    *,
    start_id: int,
    unknown_id: int,
    grow_fn: Callable[[Any, int], Any] | None = None,
    temperature: float | jax.Array = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> jax.Array:
    """Draws the unknown tokens one after the other; given ones are kept and fed to the network.

    A few `lax.scan` over the positions, whatever is given: half an image is completed by the same
    compiled program that draws a whole one, and beside the cache and the tokens it holds the logits
    of one position. Between them the cache grows, since a step reads all of it, filled or not. A token is
    told only what stands before it: given tokens after it do not shape it.

    Noise is drawn from each row's own key and the position: a key gives the same sample alone and in any
    batch, up to the rounding of the network.

    Args:
        keys: a key array [B] (`jax.random.key` type), one a row.
        step_fn: (cache, token int32 [B], position int32 []) -> (cache, logits float [B, K]), K <=
            `unknown_id`. The token is that of position - 1 (`start_id` at 0), the logits are for
            `position`. See `guidance.guided_step`.
        cache: the first step's cache, any pytree; a step keeps its shapes and dtypes.
        tokens: int32 [B, N], `unknown_id` where a code is wanted, given codes elsewhere.
        start_id: the id that means the start.
        unknown_id: the id that means unknown.
        grow_fn: (cache, n) -> the cache with room for n more tokens, of which it has none at first; None = it
            has room for all.
        temperature, top_k, top_p: as in `filters.draw`; the last two are Python numbers.

    Returns:
        int32 [B, N] without `unknown_id`.

    Raises:
        ValueError: `keys` is not [B], the logits could yield `unknown_id`, or a filter is out of range.
    """
    rows, num_tokens = tokens.shape
    if keys.shape != (rows,):
        raise ValueError(f"keys must be [{rows}], one a row, got {keys.shape}")

    def fill(carry, inputs):
        cache, token = carry
        position, given, row_keys = inputs
        cache, logits = step_fn(cache, token, position)
        if logits.shape[-1] > unknown_id:
            raise ValueError(f"logits over {logits.shape[-1]} codes include the unknown id {unknown_id}")
        code = filters.draw(row_keys, logits, temperature=temperature, k=top_k, p=top_p)
        token = jnp.where(given == unknown_id, code, given)
        return (cache, token), token

    tokens = tokens.astype(jnp.int32)
    token, drawn = jnp.full_like(tokens[:, 0], start_id), []
    row_keys = jax.vmap(lambda key: jax.random.bits(key, (num_tokens, 2)))(keys)
    scans = max(1, min(SCANS, num_tokens // SCAN_TOKENS)) if grow_fn else 1
    bounds = [num_tokens * i // scans for i in range(scans + 1)]
    for start, stop in itertools.pairwise(bounds):
        if grow_fn:
            cache = grow_fn(cache, stop - start)
        positions = jnp.arange(start, stop, dtype=jnp.int32)
        inputs = (positions, tokens[:, start:stop].T, row_keys[:, start:stop].swapaxes(0, 1))
        (cache, token), some = jax.lax.scan(fill, (cache, token), inputs)
        drawn.append(some)
    return jnp.concatenate(drawn).T
