"""Blocks of the convolutional encoder and decoder (the taming-transformers layout, NHWC)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from regvq_jax.errors import UserError
from regvq_jax.models.convolution import Conv
from regvq_jax.models.normalization import GroupNorm
from regvq_jax.sharding import split_batch

Dtype = Any
# By the names that configs and files give them.
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def num_groups(channels: int, norm_groups: int) -> int:
    """Groups of a normalisation over `channels`: `norm_groups`, or 32 with at least 4 channels each.

    Args:
        channels: that are normalised.
        norm_groups: the same for every width, as in taming-transformers and diffusers; 0 = the second rule.

    Raises:
        UserError: `norm_groups` does not divide `channels`.
    """
    if norm_groups == 0:
        return max(1, min(32, channels // 4))
    if channels % norm_groups:
        raise UserError(
            f"config.model.norm_groups={norm_groups} does not divide a layer of {channels} channels; choose "
            "a divisor of config.model.channels, or 0 for a number that follows the width."
        )
    return norm_groups


def group_norm(
    channels: int, dtype: Dtype, name: str | None = None, norm_groups: int = 0, swish: bool = False
) -> GroupNorm:
    """GroupNorm with `num_groups(channels, norm_groups)` groups, and swish behind it if wanted."""
    groups = num_groups(channels, norm_groups)
    return GroupNorm(num_groups=groups, epsilon=1e-6, swish=swish, dtype=dtype, name=name)


def apply_block(block: nn.Module, x: jax.Array, remat: bool) -> jax.Array:
    """`block(x)`; with `remat` the backward pass computes what is inside once more instead of keeping it.

    The block is made by the caller, so that its parameters have the same names either way.
    """
    x = split_batch(x)
    return nn.remat(lambda block, x: block(x))(block, x) if remat else block(x)


class ResBlock(nn.Module):
    """norm, swish, 3x3 convolution, twice, plus a skip; float [B, H, W, C] -> [B, H, W, channels].

    Attributes:
        channels: of the output.
        dtype: of the computation.
        norm_groups: see `num_groups`.
        use_bias: of the convolutions.
    """

    channels: int
    dtype: Dtype = jnp.float32
    norm_groups: int = 0
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shared = dict(use_bias=self.use_bias, dtype=self.dtype)
        h = group_norm(x.shape[-1], self.dtype, "norm_1", self.norm_groups, swish=True)(x)
        h = Conv(self.channels, name="conv_1", **shared)(h)
        h = group_norm(self.channels, self.dtype, "norm_2", self.norm_groups, swish=True)(h)
        h = Conv(self.channels, name="conv_2", **shared)(h)
        if x.shape[-1] != self.channels:
            x = nn.Dense(self.channels, name="skip", **shared)(x)
        return x + h


class AttentionBlock(nn.Module):
    """Single-head self-attention over all places, plus a skip; float [B, H, W, C] -> the same shape."""

    dtype: Dtype = jnp.float32
    norm_groups: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        h = group_norm(channels, self.dtype, "norm", self.norm_groups)(x)
        h = h.reshape(batch, height * width, 1, channels)
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
        return Conv(x.shape[-1], strides=(2, 2), padding=far_edges, dtype=self.dtype)(x)


class Upsample(nn.Module):
    """Nearest-neighbour doubling and a 3x3 convolution; [B, H, W, C] -> [B, 2H, 2W, C]."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return Conv(x.shape[-1], upsample=True, dtype=self.dtype)(x)
