"""LPIPS, the perceptual distance that was fitted to human judgements (Zhang et al., CVPR 2018)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from regvq_jax.losses.perceptual import normalize


def lpips(keys: Sequence[jax.Array], queries: Sequence[jax.Array], heads: Sequence[jax.Array]) -> jax.Array:
    """LPIPS v0.1: weighted squared distance of unit-length features, mean over places, summed over taps.

    Args:
        keys: for each tap, features of the original, float [B, h, w, C].
        queries: for each tap, features of the reconstruction, of the same shape.
        heads: for each tap, the weight >= 0 of each channel, float [C]
            (`interop.perceptual_weights.load_lpips`).

    Returns:
        float32 [B], >= 0 and 0 between equal images.
    """
    distances = [
        jnp.mean(jnp.sum((normalize(key) - normalize(query)) ** 2 * head, -1), (1, 2))
        for key, query, head in zip(keys, queries, heads, strict=True)
    ]
    return sum(distances)
