"""The patch discriminator."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from regvq_jax.models.convolution import Conv
from regvq_jax.models.layers import Dtype, group_norm


class PatchDiscriminator(nn.Module):
    """PatchGAN: judges each overlapping patch as real or reconstructed.

    GroupNorm stands where the original has BatchNorm, so that a logit depends on its own image only,
    whatever the batch, its mixture of real and fake, and the number of devices.

    Attributes:
        channels: width of the first layer; doubles with each layer up to 8 times.
        num_layers: strided layers; 3 sees 70-pixel patches.
        dtype: of the computation.
    """

    channels: int = 64
    num_layers: int = 3
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """float [B, H, W, 3] in [-1, 1] -> float32 [B, h, w, 1], positive = real."""
        init = nn.initializers.normal(0.02)
        x = Conv(self.channels, (4, 4), (2, 2), kernel_init=init, dtype=self.dtype)(images)
        x = nn.leaky_relu(x, 0.2)
        for layer in range(1, self.num_layers + 1):
            width = self.channels * min(2**layer, 8)
            stride = 2 if layer < self.num_layers else 1
            x = Conv(width, (4, 4), (stride, stride), kernel_init=init, dtype=self.dtype)(x)
            x = nn.leaky_relu(group_norm(width, self.dtype)(x), 0.2)
        return Conv(1, (4, 4), kernel_init=init, dtype=jnp.float32)(x)
