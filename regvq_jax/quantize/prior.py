"""Prior distribution regularization (paper equation 1)."""

import jax
import jax.numpy as jnp

# The gradient of p log(K p) is unbounded at p = 0. Below this floor the logarithm stays constant, which
# bounds the pull on an unused code at log(K * floor) and leaves the value unchanged for every share that
# fewer than 10^8 tokens can produce.
PROBABILITY_FLOOR = 1e-8


def prior_kl(posterior: jax.Array, *, scope: str = "batch") -> jax.Array:
    """KL(posterior || uniform) = sum_k p_k log(K p_k) of the averaged posterior (paper equation 1).

    Under jit on a sharded batch the mean over images is the mean over the global batch.

    Args:
        posterior: float [B, K], mean assignment of each image, rows summing to 1.
        scope: "batch" takes the KL of the mean over images; "image" takes each image's own KL, then the
            mean. One image of N < K tokens cannot go below log(K / N).

    Returns:
        float32 [], in nats, between 0 (uniform) and log K (collapsed on one code); finite with a finite
        gradient also where codes are unused.

    Raises:
        ValueError: `scope` is neither "batch" nor "image".
    """
    if scope not in ("batch", "image"):
        raise ValueError(f'scope must be "batch" or "image", got {scope!r}')
    posterior = posterior.astype(jnp.float32)
    shares = posterior.mean(0) if scope == "batch" else posterior
    num_codes = posterior.shape[-1]
    log_ratio = jnp.log(num_codes * jnp.maximum(shares, PROBABILITY_FLOOR))
    return jnp.mean(jnp.sum(shares * log_ratio, -1))
