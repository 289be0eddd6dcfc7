"""Distances between the feature maps of two images."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def normalize(features: jax.Array) -> jax.Array:
    """Scales each feature vector to unit length, in float32; a zero vector stays zero with zero gradient.

    Args:
        features: float [..., C].

    Returns:
        float32 [..., C].
    """
    features = features.astype(jnp.float32)
    # rsqrt of a sum kept off zero: the square root alone has an infinite gradient at zero.
    return features * jax.lax.rsqrt(jnp.sum(features**2, -1, keepdims=True) + 1e-10)


def feature_distance(keys: Sequence[jax.Array], queries: Sequence[jax.Array]) -> jax.Array:
    """Squared distance between unit-length features: mean over places, summed over channels and taps.

    This is LPIPS with every linear weight at 1.

    Args:
        keys: for each tap, features of the original, float [B, h, w, C].
        queries: for each tap, features of the reconstruction, of the same shape.

    Returns:
        float32 [].
    """
    distances = [
        jnp.mean(jnp.sum((normalize(key) - normalize(query)) ** 2, -1))
        for key, query in zip(keys, queries, strict=True)
    ]
    return sum(distances)
