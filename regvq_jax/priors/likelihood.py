"""Cross-entropies of tokens, for every prior's loss."""

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, tokens: jax.Array, *, label_smoothing: float = 0.0) -> jax.Array:
    """Cross-entropy of each token against (1 - label_smoothing) * one_hot + label_smoothing / K.

    Args:
        logits: float [B, N, K], unnormalised; computed in float32.
        tokens: int32 [B, N], the true tokens.
        label_smoothing: share of the target that is spread over all codes.

    Returns:
        float32 [B, N], in nats.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), -1)
    of_token = jnp.take_along_axis(log_probs, tokens[..., None], -1)[..., 0]
    return -(1 - label_smoothing) * of_token - label_smoothing * log_probs.mean(-1)


def mean_where(values: jax.Array, counts: jax.Array) -> jax.Array:
    """Mean of the values that count.

    Args:
        values: float [B, N]; what does not count may be NaN.
        counts: bool [B, N] or of a shape that broadcasts to it, True = counts.

    Returns:
        float [], 0 where nothing counts.
    """
    counts = jnp.broadcast_to(counts, values.shape)
    return jnp.where(counts, values, 0.0).sum() / jnp.maximum(counts.sum(), 1)
