"""Feature extractors for the perceptual and the contrastive loss."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from regvq_jax.models.layers import Dtype


class RandomFeatures(nn.Module):
    """A convolutional pyramid whose weights are drawn once and never trained.

    It stands in for VGG where no trained weights can be had. Random filters see edges, colours and their
    arrangement, which is enough to sharpen a reconstruction, but they know nothing of what a picture
    shows: distances in it are not LPIPS and are not comparable with it.

    Attributes:
        channels: width of each tap; each tap but the first has half the resolution of the one before.
        dtype: of the computation.
    """

    channels: Sequence[int] = (16, 32, 64)
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> list[jax.Array]:
        """float [B, H, W, 3] in [-1, 1] -> a list of float [B, H/2^i, W/2^i, channels[i]]."""
        taps = []
        x = images
        for level, width in enumerate(self.channels):
            if level > 0:
                x = nn.avg_pool(x, (2, 2), (2, 2))
            init = nn.initializers.orthogonal(scale=2**0.5)
            x = nn.Conv(width, (3, 3), use_bias=False, kernel_init=init, dtype=self.dtype)(x)
            taps.append(x)
            x = nn.relu(x)
        return taps
