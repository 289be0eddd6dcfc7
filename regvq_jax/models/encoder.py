"""The convolutional encoder."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from regvq_jax.models.convolution import Conv
from regvq_jax.models.layers import AttentionBlock, Downsample, Dtype, ResBlock, apply_block, group_norm


class Encoder(nn.Module):
    """Images to latent features (the taming-transformers encoder).

    Attributes:
        channels: width at full resolution.
        multipliers: width of each level as a multiple of `channels`; each level but the last halves the grid.
        num_res_blocks: residual blocks a level.
        attention_levels: indices of the levels with self-attention after each block.
        middle_attention: whether the bottleneck has self-attention.
        latent_channels: channels of the output.
        norm_groups: groups of every normalisation; 0 = by the width, see `layers.num_groups`.
        remat: recompute the inside of each block in the backward pass: less memory, more time, same gradient.
        dtype: of the computation; parameters are float32.
    """

    channels: int = 128
    multipliers: Sequence[int] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attention_levels: Sequence[int] = (4,)
    middle_attention: bool = True
    latent_channels: int = 256
    norm_groups: int = 0
    remat: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """float [B, H, W, 3] in [-1, 1] -> float [B, h, w, latent_channels]."""
        x = Conv(self.channels, dtype=self.dtype, name="conv_in")(images)
        for level, multiplier in enumerate(self.multipliers):
            for _ in range(self.num_res_blocks):
                x = self._residual(x, self.channels * multiplier)
                if level in self.attention_levels:
                    x = self._attention(x)
            if level < len(self.multipliers) - 1:
                x = Downsample(self.dtype)(x)
        x = self._residual(x, x.shape[-1])
        if self.middle_attention:
            x = self._attention(x)
            x = self._residual(x, x.shape[-1])
        x = group_norm(x.shape[-1], self.dtype, "norm_out", self.norm_groups, swish=True)(x)
        return Conv(self.latent_channels, dtype=self.dtype, name="conv_out")(x)

    def _residual(self, x: jax.Array, channels: int) -> jax.Array:
        return apply_block(ResBlock(channels, self.dtype, self.norm_groups), x, self.remat)

    def _attention(self, x: jax.Array) -> jax.Array:
        return apply_block(AttentionBlock(self.dtype, self.norm_groups), x, self.remat)
