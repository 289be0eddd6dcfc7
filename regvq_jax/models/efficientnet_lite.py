"""EfficientNet-Lite0, an ImageNet classifier that stays as it was trained: images to features and logits."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

IMAGE_SIZE = 224


class Block(NamedTuple):
    """An inverted bottleneck: widen by `expansion`, filter each channel by itself, project to `width`."""

    width: int
    kernel: int
    stride: int = 1
    expansion: int = 6


STEM, HEAD, CLASSES = 32, 1280, 1000
BLOCKS = (
    *(Block(16, 3, expansion=1), Block(24, 3, 2), Block(24, 3), Block(40, 5, 2), Block(40, 5)),
    *(Block(80, 3, 2), Block(80, 3), Block(80, 3), Block(112, 5), Block(112, 5), Block(112, 5)),
    *(Block(192, 5, 2), Block(192, 5), Block(192, 5), Block(192, 5), Block(320, 3)),
)


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0, in float32, its norms being part of the convolutions.

    The parameters come from `interop.efficientnet_weights` and are not trained. Products have float32's
    precision on every device, so that distances of two runs can be compared.
    """

    @nn.compact
    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        """Classifies images.

        Args:
            images: float32 [B, 224, 224, 3], (x - 127) / 128 of RGB in 0..255.

        Returns:
            "features": float32 [B, 1280], the head's activations averaged over the image, in [0, 6];
            "logits": float32 [B, 1000].

        Raises:
            ValueError: images of another size.
        """
        if images.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 3):
            raise ValueError(f"EfficientNet-Lite0 takes images of 224x224x3, not {images.shape[1:]}")
        with jax.default_matmul_precision("float32"):
            x = nn.relu6(nn.Conv(STEM, (3, 3), 2, "SAME", name="stem")(images.astype(jnp.float32)))
            for index, block in enumerate(BLOCKS):
                x = Bottleneck(block, name=f"block_{index}")(x)
            x = nn.relu6(nn.Dense(HEAD, name="head")(x))
            features = x.mean((1, 2))
            return {"features": features, "logits": nn.Dense(CLASSES, name="classifier")(features)}


class Bottleneck(nn.Module):
    """One `Block`, beside a skip where its output has the shape of its input."""

    block: Block

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float [B, H, W, C] -> float [B, ceil(H / stride), ceil(W / stride), width]."""
        width, kernel, stride, expansion = self.block
        # A dense layer over the channels is a 1x1 convolution.
        h = x if expansion == 1 else nn.relu6(nn.Dense(expansion * x.shape[-1], name="expand")(x))
        h = nn.relu6(DepthwiseConv(kernel, stride, name="depthwise")(h))
        h = nn.Dense(width, name="project")(h)
        return h + x if h.shape == x.shape else h


class DepthwiseConv(nn.Module):
    """Filters each channel by itself, padded as TensorFlow's SAME: what is odd of it is at the far edges."""

    kernel: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float [B, H, W, C] -> float [B, ceil(H / stride), ceil(W / stride), C]."""
        size, step = self.kernel, self.stride
        channels = x.shape[-1]
        weight = self.param("kernel", nn.initializers.lecun_normal(), (size, size, 1, channels))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        rows, columns = (-(-length // step) for length in x.shape[1:3])
        padding = jax.lax.padtype_to_pads(x.shape[1:3], (size, size), (step, step), "SAME")
        x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
        # XLA's convolution of many groups takes 3 to 14 times as long on a CPU.
        for i in range(size):
            for j in range(size):
                part = x[:, i : i + (rows - 1) * step + 1 : step, j : j + (columns - 1) * step + 1 : step]
                bias = bias + part * weight[i, j, 0]
        return bias
