"""Attention on one CPU: a few heads at a time, so that their scores stay in its caches."""

import itertools

import jax
import jax.numpy as jnp

# Of a block of scores: 2 MiB in float32.
BLOCK_ELEMENTS = 2**19
# Blocks whose operations do not wait for one another: cores that one block leaves idle take another.
BLOCKS_AT_ONCE = 8
# Of causal attention: queries in more parts leave out more keys, but make smaller products.
CAUSAL_PARTS = 4


def attention_by_heads(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    causal_from: int | None = None,
) -> jax.Array:
    """What `jax.nn.dot_product_attention` computes, in a loop over heads and with a gradient of its own.

    XLA for CPUs makes one program of products and softmax that takes several times as long as its parts. Here
    a block's scores are made again for the gradient, transposed, since products that contract over rows are
    slow there too. Of causal attention, keys that a part of the queries cannot see are left out: with four
    parts, three of eight. It would gather what devices hold apart: one device only.

    Args:
        query: float32 [B, Q, heads, head_dim].
        key, value: float32 [B, S, heads, head_dim].
        mask: bool [B or 1, heads or 1, Q or 1, S], True = the query sees the key; None = all.
        causal_from: promises of the mask, where Q = S, that queries from this place on see nothing behind
            themselves, and those before it nothing from it on; None promises nothing.

    Returns:
        float32 [B, Q, heads, head_dim].
    """
    if mask is None:
        mask = jnp.ones((1, 1, 1, 1), bool)
    if causal_from is None:
        return _attend(query, key, value, mask)
    length = query.shape[1]
    count = min(CAUSAL_PARTS, length)
    bounds = [length * i // count for i in range(count + 1)]
    parts = []
    for start, stop in itertools.pairwise(bounds):
        seen = max(stop, causal_from)
        own = mask[:, :, start:stop, :seen]
        parts.append(_attend(query[:, start:stop], key[:, :seen], value[:, :seen], own))
    return jnp.concatenate(parts, 1)


@jax.custom_vjp
def _attend(query, key, value, mask):
    return _forward(query, key, value, mask)[0]


def _forward(query, key, value, mask):
    heads_first = [x.swapaxes(1, 2) for x in (query, key, value)]
    out, peak, total = _over_blocks(_forward_block, mask, *heads_first)
    return out.swapaxes(1, 2), (*heads_first, mask, out, peak, total)


def _backward(residuals, grad):
    query, key, value, mask, out, peak, total = residuals
    # One row's sum divides its gradient: less work than dividing all of its probabilities.
    grad = grad.swapaxes(1, 2) / total[..., None]
    own = (grad * out).sum(-1)
    grads = _over_blocks(_backward_block, mask.swapaxes(2, 3), query, key, value, peak, grad, own)
    return *(x.swapaxes(1, 2) for x in grads), None


_attend.defvjp(_forward, _backward)


def _forward_block(mask, query, key, value):
    scores = _scores(mask, _scaled(query), key)
    peak = scores.max(-1)
    weights = jnp.exp(scores - peak[..., None])
    total = weights.sum(-1)
    return jnp.matmul(weights, value) / total[..., None], peak, total


def _backward_block(mask, query, key, value, peak, grad, own):
    """With keys in rows and queries in columns; all are gradients of what `_forward_block` is given."""
    query = _scaled(query)
    weights = jnp.exp(_scores(mask, key, query) - peak[..., None, :])
    of_value = jnp.matmul(weights, grad)
    of_weights = jnp.matmul(value, grad.swapaxes(-1, -2)) - own[..., None, :]
    of_scores = jnp.where(mask, weights * of_weights, 0.0)
    of_query = jnp.matmul(key.swapaxes(-1, -2), of_scores).swapaxes(-1, -2)
    return _scaled(of_query), jnp.matmul(of_scores, query), of_value


def _scaled(query):
    return query * (query.shape[-1] ** -0.5)


def _scores(mask, rows, columns):
    scores = jnp.matmul(rows, columns.swapaxes(-1, -2))
    return jnp.where(mask, scores, -0.7 * jnp.finfo(scores.dtype).max)


def _over_blocks(fn, mask, *arrays):
    """Results [B, heads, ...] of `fn(mask, *blocks)`, each block of some rows or of some heads of one row."""
    rows, heads = arrays[0].shape[:2]
    elements = arrays[0].shape[2] * arrays[1].shape[2]
    few_heads = _divisor(heads, BLOCK_ELEMENTS // elements)
    few_rows = _divisor(rows, BLOCK_ELEMENTS // (elements * heads))
    across = heads // few_heads
    blocks = rows // few_rows * across
    # Fewer where one head alone is larger than a block should be.
    size = few_rows * few_heads * elements
    at_once = _divisor(blocks, min(BLOCKS_AT_ONCE, BLOCKS_AT_ONCE * BLOCK_ELEMENTS // size))

    def split(x):
        x = x.reshape(-1, few_rows, across, few_heads, *x.shape[2:]).swapaxes(1, 2)
        return x.reshape(-1, at_once, few_rows, few_heads, *x.shape[4:])

    def own_mask(block):
        own = mask
        for axis, place, size in ((0, block // across, few_rows), (1, block % across, few_heads)):
            if mask.shape[axis] > 1:
                own = jax.lax.dynamic_slice_in_dim(own, place * size, size, axis)
        return own

    def some_blocks(inputs):
        first, *arrays = inputs
        results = [fn(own_mask(first + i), *(x[i] for x in arrays)) for i in range(at_once)]
        return jax.tree.map(lambda *x: jnp.stack(x), *results)

    def join(x):
        x = x.reshape(-1, across, few_rows, few_heads, *x.shape[4:]).swapaxes(1, 2)
        return x.reshape(rows, heads, *x.shape[4:])

    results = jax.lax.map(some_blocks, (jnp.arange(0, blocks, at_once), *map(split, arrays)))
    return jax.tree.map(join, results)


def _divisor(number, most):
    """The largest divisor that is not above `most`, at least 1."""
    return max(n for n in range(1, number + 1) if number % n == 0 and n <= max(most, 1))
