"""Pixel losses."""

import jax
import jax.numpy as jnp


def l1_loss(images: jax.Array, reconstructions: jax.Array) -> jax.Array:
    """Mean absolute difference, the paper's L_rec.

    Args:
        images: float [B, H, W, 3].
        reconstructions: float [B, H, W, 3].

    Returns:
        float32 [], in the units of the images.
    """
    difference = images.astype(jnp.float32) - reconstructions.astype(jnp.float32)
    return jnp.mean(jnp.abs(difference))


def l2_loss(images: jax.Array, reconstructions: jax.Array) -> jax.Array:
    """Mean squared difference.

    Args:
        images: float [B, H, W, 3].
        reconstructions: float [B, H, W, 3].

    Returns:
        float32 [], in the units of the images squared.
    """
    difference = images.astype(jnp.float32) - reconstructions.astype(jnp.float32)
    return jnp.mean(jnp.square(difference))
