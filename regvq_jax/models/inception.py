"""InceptionV3 as FID knows it: the TensorFlow graph of 2015-12-05, with its oddities."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

INPUT_SIZE = 299
NUM_FEATURES, NUM_CLASSES = 2048, 1008
# (x, name, width, kernel, stride, padding) -> x. Names are those of the PyTorch ports, less the last ".conv".
Conv = Callable[..., jax.Array]


class InceptionV3(nn.Module):
    """The network of FID, KID and Inception Score, in inference.

    It differs from the classifier that torchvision knows: 1,008 classes; average pools leave the padding out
    of their mean; the last block has a max-pool where the others have an average. Batch normalisation
    (epsilon 0.001) is folded into the convolutions by `interop.inception_weights`. Multiplications are
    float32 also where the device would rather round (TF32, bfloat16), since that would change the figures.
    """

    @nn.compact
    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        """The features that distances compare, and the logits of the 1,008 classes.

        Args:
            images: float32 [B, 299, 299, 3], scaled as `evaluate.protocols` has it.

        Returns:
            {"features": float32 [B, 2048], "logits": float32 [B, 1008] without the bias of the last layer,
            as Inception Score wants them}.
        """

        def conv(x, name, width, kernel=1, stride=1, padding=0):
            kernel, padding = (k if isinstance(k, tuple) else (k, k) for k in (kernel, padding))
            layer = nn.Conv(
                width,
                kernel,
                stride,
                [(p, p) for p in padding],
                precision=jax.lax.Precision.HIGHEST,
                conv_general_dilated=_convolve,
                name=name,
            )
            return nn.relu(layer(x))

        x = conv(images, "Conv2d_1a_3x3", 32, 3, stride=2)
        x = conv(x, "Conv2d_2a_3x3", 32, 3)
        x = conv(x, "Conv2d_2b_3x3", 64, 3, padding=1)
        x = nn.max_pool(x, (3, 3), (2, 2))
        x = conv(x, "Conv2d_3b_1x1", 80)
        x = conv(x, "Conv2d_4a_3x3", 192, 3)
        x = nn.max_pool(x, (3, 3), (2, 2))
        for name, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = _block_35(conv, x, name, pooled)
        x = _shrink_35(conv, x, "Mixed_6a")
        for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
            x = _block_17(conv, x, name, width)
        x = _shrink_17(conv, x, "Mixed_7a")
        x = _block_8(conv, x, "Mixed_7b", _average)
        x = _block_8(conv, x, "Mixed_7c", lambda x: nn.max_pool(x, (3, 3), (1, 1), "SAME"))
        features = jnp.mean(x, (1, 2))
        classes = nn.Dense(NUM_CLASSES, use_bias=False, precision=jax.lax.Precision.HIGHEST, name="fc")
        return {"features": features, "logits": classes(features)}


def _convolve(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Sequence[tuple[int, int]], **options
) -> jax.Array:
    """The same numbers as `jax.lax.conv_general_dilated`, sooner on CPUs.

    XLA's convolution there is 1.2 to 5 times as slow where nothing is padded. So it gets a column that
    changes none of those wanted; and what looks at one pixel is a product of matrices.
    """
    height, width = kernel.shape[:2]
    if (height, width) == (1, 1):
        return jnp.einsum("bhwi,io->bhwo", x, kernel[0, 0], precision=options["precision"])
    if any(map(any, padding)):
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)
    y = jax.lax.conv_general_dilated(x, kernel, strides, [(0, 0), (0, 1)], **options)
    return y[:, :, : (x.shape[2] - width) // strides[1] + 1]


def _average(x: jax.Array) -> jax.Array:
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def _chain(conv: Conv, x: jax.Array, name: str, layers: Sequence[tuple]) -> jax.Array:
    """Convolutions `name_1`, `name_2`, ... in a row; layers are (width, kernel, padding, stride)."""
    for index, (width, *rest) in enumerate(layers, 1):
        kernel, padding, stride = (*rest, *(1, 0, 1)[len(rest) :])
        x = conv(x, f"{name}_{index}", width, kernel, stride, padding)
    return x


def _concatenate(*branches: jax.Array) -> jax.Array:
    return jnp.concatenate(branches, -1)


def _block_35(conv: Conv, x: jax.Array, name: str, pooled: int) -> jax.Array:
    return _concatenate(
        conv(x, f"{name}.branch1x1", 64),
        _chain(conv, x, f"{name}.branch5x5", [(48,), (64, 5, 2)]),
        _chain(conv, x, f"{name}.branch3x3dbl", [(64,), (96, 3, 1), (96, 3, 1)]),
        conv(_average(x), f"{name}.branch_pool", pooled),
    )


def _shrink_35(conv: Conv, x: jax.Array, name: str) -> jax.Array:
    return _concatenate(
        conv(x, f"{name}.branch3x3", 384, 3, stride=2),
        _chain(conv, x, f"{name}.branch3x3dbl", [(64,), (96, 3, 1), (96, 3, 0, 2)]),
        nn.max_pool(x, (3, 3), (2, 2)),
    )


def _block_17(conv: Conv, x: jax.Array, name: str, width: int) -> jax.Array:
    wide, tall = ((1, 7), (0, 3)), ((7, 1), (3, 0))
    double = [(width,), (width, *tall), (width, *wide), (width, *tall), (192, *wide)]
    return _concatenate(
        conv(x, f"{name}.branch1x1", 192),
        _chain(conv, x, f"{name}.branch7x7", [(width,), (width, *wide), (192, *tall)]),
        _chain(conv, x, f"{name}.branch7x7dbl", double),
        conv(_average(x), f"{name}.branch_pool", 192),
    )


def _shrink_17(conv: Conv, x: jax.Array, name: str) -> jax.Array:
    seven = [(192,), (192, (1, 7), (0, 3)), (192, (7, 1), (3, 0)), (192, 3, 0, 2)]
    return _concatenate(
        _chain(conv, x, f"{name}.branch3x3", [(192,), (320, 3, 0, 2)]),
        _chain(conv, x, f"{name}.branch7x7x3", seven),
        nn.max_pool(x, (3, 3), (2, 2)),
    )


def _block_8(conv: Conv, x: jax.Array, name: str, pool_fn: Callable[[jax.Array], jax.Array]) -> jax.Array:
    def both_ways(y, name):
        return [conv(y, f"{name}_{i}", 384, k, padding=p) for i, k, p in _ACROSS[name.rsplit(".")[-1]]]

    three = conv(x, f"{name}.branch3x3_1", 384)
    double = _chain(conv, x, f"{name}.branch3x3dbl", [(448,), (384, 3, 1)])
    return _concatenate(
        conv(x, f"{name}.branch1x1", 320),
        *both_ways(three, f"{name}.branch3x3"),
        *both_ways(double, f"{name}.branch3x3dbl"),
        conv(pool_fn(x), f"{name}.branch_pool", 192),
    )


# The two convolutions that a branch of the last blocks ends in, side by side.
_ACROSS = {
    "branch3x3": (("2a", (1, 3), (0, 1)), ("2b", (3, 1), (1, 0))),
    "branch3x3dbl": (("3a", (1, 3), (0, 1)), ("3b", (3, 1), (1, 0))),
}
