"""The convolutional parts of ImageNet classifiers, as feature extractors."""

from collections.abc import Iterator
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from regvq_jax.errors import UserError
from regvq_jax.models import convolution
from regvq_jax.models.layers import Dtype


class Conv(NamedTuple):
    """A convolution and its ReLU; `tap` marks those whose output is a feature."""

    width: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    tap: bool = False


class Pool(NamedTuple):
    """A max-pool of stride 2 without padding; a rest at the far edges that fills no window is dropped."""

    window: int = 2


# The VGG taps are those of LPIPS and of the paper: relu1_2, relu2_2, relu3_3, relu4_3, relu5_3. What
# follows the last tap is left out. AlexNet is Krizhevsky's one-tower variant, as LPIPS takes it.
LAYERS = {
    "vgg16": (
        *(Conv(64), Conv(64, tap=True), Pool()),
        *(Conv(128), Conv(128, tap=True), Pool()),
        *(Conv(256), Conv(256), Conv(256, tap=True), Pool()),
        *(Conv(512), Conv(512), Conv(512, tap=True), Pool()),
        *(Conv(512), Conv(512), Conv(512, tap=True)),
    ),
    "vgg19": (
        *(Conv(64), Conv(64, tap=True), Pool()),
        *(Conv(128), Conv(128, tap=True), Pool()),
        *(Conv(256), Conv(256), Conv(256, tap=True), Conv(256), Pool()),
        *(Conv(512), Conv(512), Conv(512, tap=True), Conv(512), Pool()),
        *(Conv(512), Conv(512), Conv(512, tap=True)),
    ),
    "alexnet": (
        *(Conv(64, kernel=11, stride=4, padding=2, tap=True), Pool(3)),
        *(Conv(192, kernel=5, padding=2, tap=True), Pool(3)),
        *(Conv(384, tap=True), Conv(256, tap=True), Conv(256, tap=True)),
    ),
}

# LPIPS's scaling of images in [-1, 1]; the same as ImageNet's mean (0.485, 0.456, 0.406) and standard
# deviation (0.229, 0.224, 0.225) of images in [0, 1], which torchvision's weights expect.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


class ImageNetFeatures(nn.Module):
    """The ReLU taps of VGG16, VGG19 or AlexNet, with torchvision's paddings and names of layers.

    The parameters of `features.N` in torchvision's file are `features_N` here: `kernel` [h, w, in, out] and
    `bias` [out]. They come from `interop.perceptual_weights` and are not trained.

    Attributes:
        network: "vgg16", "vgg19" or "alexnet".
        dtype: of the computation.
    """

    network: str
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> list[jax.Array]:
        """float [B, H, W, 3] in [-1, 1] -> five taps, float [B, h, w, C], the finest first.

        Raises:
            UserError: the images are too small for the last tap.
        """
        height, width = images.shape[1:3]
        smallest = smallest_image(self.network)
        if min(height, width) < smallest:
            raise UserError(
                f"Images of {height}x{width} pixels are too small for the features of {self.network}; "
                f"give it at least {smallest}x{smallest}, or choose other features."
            )
        x = ((images - jnp.array(SHIFT)) / jnp.array(SCALE)).astype(self.dtype)
        taps = []
        for index, layer in _torchvision_layers(self.network):
            if isinstance(layer, Pool):
                x = nn.max_pool(x, (layer.window, layer.window), (2, 2))
                continue
            x = convolution.Conv(
                layer.width,
                (layer.kernel, layer.kernel),
                (layer.stride, layer.stride),
                ((layer.padding, layer.padding),) * 2,
                dtype=self.dtype,
                name=f"features_{index}",
            )(x)
            x = nn.relu(x)
            if layer.tap:
                taps.append(x)
        return taps


def conv_indices(network: str) -> list[int]:
    """The N of each convolution `features.N` in torchvision's list of layers, in order."""
    return [index for index, layer in _torchvision_layers(network) if isinstance(layer, Conv)]


def smallest_image(network: str) -> int:
    """The least height and width, in pixels, that leave one place to the last tap."""
    size = 1
    for layer in reversed(LAYERS[network]):
        if isinstance(layer, Pool):
            size = (size - 1) * 2 + layer.window
        else:
            size = (size - 1) * layer.stride + layer.kernel - 2 * layer.padding
    return size


def _torchvision_layers(network: str) -> Iterator[tuple[int, Conv | Pool]]:
    index = 0
    for layer in LAYERS[network]:
        yield index, layer
        index += 2 if isinstance(layer, Conv) else 1  # There, a ReLU is a layer of its own.
