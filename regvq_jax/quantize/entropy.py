"""Regularizers of the soft assignments: Gumbel-VQ's and those of the lookup-free quantizers."""

import jax
import jax.numpy as jnp


def gumbel_kl(entropy: jax.Array, num_codes: int) -> jax.Array:
    """Mean over positions of KL(q_i || uniform) = log K - H(q_i), the regularizer of Gumbel-VQ.

    Another thing than the paper's `prior_kl`, the KL of the averaged posterior: this one is 0 only where
    every single position is undecided.

    Args:
        entropy: float [B, h, w], H(q_i) in nats; `QuantizeOutput.entropy`.
        num_codes: K.

    Returns:
        float32 [], in nats, between 0 and log K.
    """
    return jnp.log(num_codes) - jnp.mean(entropy.astype(jnp.float32))


def entropy_loss(
    entropy: jax.Array, soft_posterior: jax.Array, *, diversity_weight: float = 1.0
) -> jax.Array:
    """E[H(q_i)] - diversity_weight * H(E[q_i]): decided positions, evenly used codes (MAGVIT-v2, IBQ).

    Args:
        entropy: float [B, h, w], H(q_i) in nats; `QuantizeOutput.entropy`.
        soft_posterior: float [B, K], mean of q_i over each image; the mean over images is taken here.
        diversity_weight: of the second term.

    Returns:
        float32 [], in nats, at least -diversity_weight * log K.
    """
    shares = jnp.mean(soft_posterior.astype(jnp.float32), 0)
    # xlogy(0, 0) = 0, but its gradient there is infinite: keep the logarithm off zero.
    spread = -jnp.sum(shares * jnp.log(jnp.maximum(shares, jnp.finfo(jnp.float32).tiny)))
    return jnp.mean(entropy.astype(jnp.float32)) - diversity_weight * spread
