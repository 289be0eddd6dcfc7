"""Code logits from features: what a codebook makes of a feature vector without a learned projection."""

import jax
import jax.numpy as jnp


def dot_logits(features: jax.Array, codebook: jax.Array) -> jax.Array:
    """Inner products with every code, as in IBQ.

    Args:
        features: float [..., D].
        codebook: float [K, D].

    Returns:
        float32 [..., K].
    """
    # They decide an argmax: no TF32 or bfloat16 passes, which accelerators take by default.
    return jnp.matmul(
        features.astype(jnp.float32), codebook.astype(jnp.float32).T, precision=jax.lax.Precision.HIGHEST
    )


def distance_logits(features: jax.Array, codebook: jax.Array) -> jax.Array:
    """Negative squared distances to every code, up to a constant of each feature.

    -||f - e||^2 + ||f||^2 = 2 f.e - ||e||^2: its argmax is the nearest code, and the constant that is left
    out changes neither argmax nor softmax.

    Args:
        features: float [..., D].
        codebook: float [K, D].

    Returns:
        float32 [..., K].
    """
    codebook = codebook.astype(jnp.float32)
    return 2.0 * dot_logits(features, codebook) - jnp.sum(codebook**2, -1)
