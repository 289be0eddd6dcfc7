"""Between uint8 on the host and [-1, 1] on the device, for numpy and (also traced) jax arrays."""

from typing import TypeVar

Array = TypeVar("Array")  # numpy.ndarray or jax.Array: only what both understand is used.


def to_unit_range(images: Array) -> Array:
    """Scales bytes to the range of the networks.

    Args:
        images: uint8 [..., H, W, C].

    Returns:
        float32, same shape, 0 -> -1 and 255 -> 1.
    """
    return images.astype("float32") / 127.5 - 1.0


def to_uint8(images: Array) -> Array:
    """Scales the range of the networks to bytes: rounded, clipped, the inverse of `to_unit_range`.

    Args:
        images: float [..., H, W, C], meant to be in [-1, 1].

    Returns:
        uint8, same shape.
    """
    return ((images.astype("float32") + 1.0) * 127.5).round().clip(0, 255).astype("uint8")
