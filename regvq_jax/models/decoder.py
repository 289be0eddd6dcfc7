"""The convolutional decoder."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from regvq_jax.models.convolution import Conv
from regvq_jax.models.layers import AttentionBlock, Dtype, ResBlock, Upsample, apply_block, group_norm


class Decoder(nn.Module):
    """Code vectors to the features that one last convolution turns into images.

    That last convolution is a module of its own (`ImageTokenizer.to_images`), because the adaptive GAN
    weight compares two gradients at exactly that layer. Attributes as in `Encoder`; a level has one
    residual block more than there, as in taming-transformers.
    """

    channels: int = 128
    multipliers: Sequence[int] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attention_levels: Sequence[int] = (4,)
    middle_attention: bool = True
    norm_groups: int = 0
    remat: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, quantized: jax.Array) -> jax.Array:
        """float [B, h, w, D] -> float [B, H, W, channels * multipliers[0]]."""
        width = self.channels * self.multipliers[-1]
        x = Conv(width, dtype=self.dtype, name="conv_in")(quantized)
        x = self._residual(x, width)
        if self.middle_attention:
            x = self._attention(x)
            x = self._residual(x, width)
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for _ in range(self.num_res_blocks + 1):
                x = self._residual(x, self.channels * multiplier)
                if level in self.attention_levels:
                    x = self._attention(x)
            if level > 0:
                x = Upsample(self.dtype)(x)
        return group_norm(x.shape[-1], self.dtype, "norm_out", self.norm_groups, swish=True)(x)

    def _residual(self, x: jax.Array, channels: int) -> jax.Array:
        return apply_block(ResBlock(channels, self.dtype, self.norm_groups), x, self.remat)

    def _attention(self, x: jax.Array) -> jax.Array:
        return apply_block(AttentionBlock(self.dtype, self.norm_groups), x, self.remat)
