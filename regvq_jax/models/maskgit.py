"""The encoder and decoder of MaskGIT's tokenizer: no attention, few biases, average pooling."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from regvq_jax.errors import UserError
from regvq_jax.models.convolution import Conv
from regvq_jax.models.layers import Dtype, ResBlock, apply_block, group_norm


class MaskGITEncoder(nn.Module):
    """Images to latent features (the encoder of MaskGIT's VQ-GAN).

    It differs from the released network in one place: where a block changes the width, the 1x1 convolution
    of its skip reads the block's input; there it reads the block's own output.

    Attributes:
        channels, multipliers, latent_channels, norm_groups, remat, dtype: as in `encoder.Encoder`.
        num_res_blocks: residual blocks a level and, once more, at the bottleneck.
        attention_levels, middle_attention: must stay empty and false: there is no attention here.
    """

    channels: int = 128
    multipliers: Sequence[int] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attention_levels: Sequence[int] = ()
    middle_attention: bool = False
    latent_channels: int = 256
    norm_groups: int = 0
    remat: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """float [B, H, W, 3] in [-1, 1] -> float [B, h, w, latent_channels]."""
        _refuse_attention(self)
        x = Conv(self.channels, use_bias=False, dtype=self.dtype, name="conv_in")(images)
        for level, multiplier in enumerate(self.multipliers):
            x = _residuals(self, x, self.channels * multiplier)
            if level < len(self.multipliers) - 1:
                x = nn.avg_pool(x, (2, 2), (2, 2))
        x = _residuals(self, x, x.shape[-1])
        x = group_norm(x.shape[-1], self.dtype, "norm_out", self.norm_groups, swish=True)(x)
        return nn.Dense(self.latent_channels, dtype=self.dtype, name="conv_out")(x)


class MaskGITDecoder(nn.Module):
    """Code vectors to the features that one last convolution turns into images (MaskGIT's decoder).

    Attributes: as in `MaskGITEncoder`. The last convolution is a module of its own, as in `decoder.Decoder`.
    """

    channels: int = 128
    multipliers: Sequence[int] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attention_levels: Sequence[int] = ()
    middle_attention: bool = False
    norm_groups: int = 0
    remat: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, quantized: jax.Array) -> jax.Array:
        """float [B, h, w, D] -> float [B, H, W, channels * multipliers[0]]."""
        _refuse_attention(self)
        width = self.channels * self.multipliers[-1]
        x = Conv(width, dtype=self.dtype, name="conv_in")(quantized)
        x = _residuals(self, x, width)
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            x = _residuals(self, x, self.channels * multiplier)
            if level > 0:
                x = Conv(x.shape[-1], upsample=True, dtype=self.dtype)(x)
        return group_norm(x.shape[-1], self.dtype, "norm_out", self.norm_groups, swish=True)(x)


def _residuals(parent: MaskGITEncoder | MaskGITDecoder, x: jax.Array, channels: int) -> jax.Array:
    for _ in range(parent.num_res_blocks):
        block = ResBlock(channels, parent.dtype, parent.norm_groups, use_bias=False)
        x = apply_block(block, x, parent.remat)
    return x


def _refuse_attention(module: MaskGITEncoder | MaskGITDecoder) -> None:
    if module.attention_levels or module.middle_attention:
        raise UserError(
            'config.model.architecture="maskgit" has no attention; set config.model.attention_levels=() and '
            "config.model.middle_attention=False."
        )
