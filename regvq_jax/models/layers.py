"""Blocks of the convolutional encoder and decoder (the taming-transformers layout, NHWC)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Dtype = Any


def group_norm(channels: int, dtype: Dtype, name: str | None = None) -> nn.GroupNorm:
    """GroupNorm with 32 groups, fewer where `channels` < 128 so that a group keeps 4 channels."""
    groups = max(1, min(32, channels // 4))
    return nn.GroupNorm(num_groups=groups, epsilon=1e-6, dtype=dtype, name=name)


class ResBlock(nn.Module):
    """norm, swish, 3x3 convolution, twice, plus a skip; float [B, H, W, C] -> [B, H, W, channels]."""

    channels: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = nn.swish(group_norm(x.shape[-1], self.dtype, "norm_1")(x))
        h = nn.Conv(self.channels, (3, 3), dtype=self.dtype, name="conv_1")(h)
        h = nn.swish(group_norm(self.channels, self.dtype, "norm_2")(h))
        h = nn.Conv(self.channels, (3, 3), dtype=self.dtype, name="conv_2")(h)
        if x.shape[-1] != self.channels:
            x = nn.Dense(self.channels, dtype=self.dtype, name="skip")(x)
        return x + h


class AttentionBlock(nn.Module):
    """Single-head self-attention over all places, plus a skip; float [B, H, W, C] -> the same shape."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        h = group_norm(channels, self.dtype, "norm")(x).reshape(batch, height * width, 1, channels)
        query, key, value = (
            nn.Dense(channels, dtype=self.dtype, name=name)(h) for name in ("query", "key", "value")
        )
        h = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
        return x + nn.Dense(channels, dtype=self.dtype, name="out")(h)


class Downsample(nn.Module):
    """3x3 convolution with stride 2, padded at the far edges only; [B, H, W, C] -> [B, H/2, W/2, C]."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        far_edges = ((0, 1), (0, 1))
        return nn.Conv(x.shape[-1], (3, 3), (2, 2), padding=far_edges, dtype=self.dtype)(x)


class Upsample(nn.Module):
    """Nearest-neighbour doubling and a 3x3 convolution; [B, H, W, C] -> [B, 2H, 2W, C]."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        return nn.Conv(x.shape[-1], (3, 3), dtype=self.dtype)(x)
