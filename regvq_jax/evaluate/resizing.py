"""The resizing that feature networks see their images through; each FID protocol has its own.

Every one of them is a linear map of rows and one of columns: two small matrices, made once in float64.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

# (size before, size after) -> float64 [after, before].
MatrixFn = Callable[[int, int], np.ndarray]


def tf1_bilinear(before: int, after: int) -> np.ndarray:
    """Bilinear as TensorFlow 1 did it: pixel i is taken from i x before / after, no half pixels, no filter.

    Args:
        before: size of the image.
        after: size wanted.

    Returns:
        float64 [after, before]; rows sum to 1.
    """
    # The scale is a float32 there, which moves places a little.
    places = np.arange(after, dtype=np.float32) * np.float32(before / after)
    return _between_neighbours(places.astype(np.float64), before)


def half_pixel_bilinear(before: int, after: int) -> np.ndarray:
    """Bilinear of torch's `interpolate(align_corners=False)`: pixels have centres, no filter when shrinking.

    Args, Returns: as `tf1_bilinear`.
    """
    places = (np.arange(after) + 0.5) * (before / after) - 0.5
    return _between_neighbours(np.maximum(places, 0.0), before)


def pillow_bicubic(before: int, after: int) -> np.ndarray:
    """Bicubic as Pillow does it: a = -0.5, and a wider filter when shrinking, so that nothing aliases.

    Args, Returns: as `tf1_bilinear`.
    """
    scale = before / after
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    matrix = np.zeros((after, before))
    for row in range(after):
        centre = (row + 0.5) * scale
        first = max(int(centre - support + 0.5), 0)
        last = min(int(centre + support + 0.5), before)
        weights = _cubic((np.arange(first, last) + 0.5 - centre) / stretch)
        matrix[row, first:last] = weights / weights.sum()
    return matrix


def resize(images: jax.Array, size: int, matrix_fn: MatrixFn) -> jax.Array:
    """Images at another size.

    Args:
        images: [B, H, W, C] of any dtype.
        size: side of the result.
        matrix_fn: one of the above.

    Returns:
        float32 [B, size, size, C] in the units of `images`.
    """
    height, width = images.shape[1:3]
    rows, columns = (jnp.asarray(matrix_fn(side, size), jnp.float32) for side in (height, width))
    exact = jax.lax.Precision.HIGHEST
    narrow = jnp.einsum("bhwc,xw->bhxc", images.astype(jnp.float32), columns, precision=exact)
    return jnp.einsum("bhxc,yh->byxc", narrow, rows, precision=exact)


def _between_neighbours(places: np.ndarray, before: int) -> np.ndarray:
    lower = np.minimum(np.floor(places).astype(int), before - 1)
    upper = np.minimum(lower + 1, before - 1)
    share = places - lower
    matrix = np.zeros((len(places), before))
    rows = np.arange(len(places))
    np.add.at(matrix, (rows, lower), 1 - share)
    np.add.at(matrix, (rows, upper), share)
    return matrix


def _cubic(x: np.ndarray) -> np.ndarray:
    x, a = np.abs(x), -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
