"""Products of activations and kernels whose gradients the compiler makes quickly."""

from collections.abc import Sequence
from functools import partial

import jax

Dimensions = tuple[tuple[Sequence[int], Sequence[int]], tuple[Sequence[int], Sequence[int]]]


def kernel_product(
    x: jax.Array, kernel: jax.Array, dimension_numbers: Dimensions, precision=None, **options
) -> jax.Array:
    """`jax.lax.dot_general` of the last axes of x with the first of a kernel, for flax's `dot_general_cls`.

    For the gradient of the kernel, XLA for CPUs transposes whichever array it happens to, in the worst case
    the wide one together with all that makes it, and takes up to five times as long as the product itself.
    Here the narrow one is transposed. Elsewhere it is `jax.lax.dot_general`.

    Args:
        x: float [..., K], K one or more axes.
        kernel: float [K, M], M one or more axes.
        dimension_numbers: ((last axes of x, first axes of the kernel), ((), ())).
        precision: as of `jax.lax.dot_general`.
        **options: of `jax.lax.dot_general`; none is used by flax.

    Returns:
        float [..., M].
    """
    (contracted, _), batch = dimension_numbers
    axes = len(contracted)
    usual = not options and not any(batch) and sorted(contracted) == list(range(x.ndim - axes, x.ndim))
    if not usual or jax.default_backend() != "cpu":
        return jax.lax.dot_general(x, kernel, dimension_numbers, precision, **options)
    return _product(axes, precision, x, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(axes, precision, x, kernel):
    last, first = range(x.ndim - axes, x.ndim), range(axes)
    return _dot(x, last, kernel, first, precision)


def _forward(axes, precision, x, kernel):
    return _product(axes, precision, x, kernel), (x, kernel)


def _backward(axes, precision, residuals, grad):
    x, kernel = residuals
    rows = x.ndim - axes
    of_x = _dot(grad, range(rows, grad.ndim), kernel, range(axes, kernel.ndim), precision)
    if x.size <= grad.size:
        return of_x, _dot(x, range(rows), grad, range(rows), precision)
    # Without the barrier it is made into the product above.
    transposed = jax.lax.optimization_barrier(_dot(grad, range(rows), x, range(rows), precision))
    first = grad.ndim - rows
    return of_x, transposed.transpose(*range(first, transposed.ndim), *range(first))


_product.defvjp(_forward, _backward)


def _dot(a, axes_of_a, b, axes_of_b, precision):
    return jax.lax.dot_general(a, b, ((tuple(axes_of_a), tuple(axes_of_b)), ((), ())), precision)
