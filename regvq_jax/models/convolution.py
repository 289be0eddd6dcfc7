"""Convolutions, in the forms that CPUs compute soonest."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Dtype = Any
Pairs = tuple[tuple[int, int], tuple[int, int]]
# What follows was measured with XLA:CPU in float32; other types, and other devices, have the plain forms.
WIDE = 128  # Channels on both sides from which on `_uneven` is sooner.
NARROW = 64  # Channels on both sides below which XLA's gradient at a kernel is sooner.
FEW_PLACES = 2  # Times the channels: on a smaller grid making the kernels costs more than they save.
STRIP_BYTES = 3 * 2**20  # Of the shifted copies in a strip of a kernel's gradient; two are at work.


class Conv(nn.Module):
    """A convolution, with the parameters of `nn.Conv`; float [B, H, W, C] -> [B, h, w, features].

    Attributes:
        features: channels of the output.
        kernel_size, strides: along height and width.
        padding: "SAME", or (before, after) along height and width.
        use_bias: whether a bias is added.
        upsample: first repeats each place in a 2x2 square; only for 3x3 kernels, "SAME", without strides.
        dtype: of the computation; parameters are float32.
        kernel_init: draws the kernel.
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: str | Pairs = "SAME"
    use_bias: bool = True
    upsample: bool = False
    dtype: Dtype = jnp.float32
    kernel_init: Callable = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (*self.kernel_size, x.shape[-1], self.features))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if self.upsample:
            y = convolve_upsampled(x, kernel)
        else:
            y = convolve(x, kernel, self.strides, self.padding)
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros_init(), (self.features,)).astype(self.dtype)
        return y


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int] = (1, 1),
    padding: str | Sequence[tuple[int, int]] = "SAME",
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, and its gradients, sooner on CPUs.

    Args:
        x: float [B, H, W, C].
        kernel: float [height, width, C, D].
        strides, padding: along height and width.

    Returns:
        float [B, h, w, D].
    """
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    padding = tuple(map(tuple, padding))
    return _convolve(x, kernel, tuple(strides), padding)


def convolve_upsampled(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 3x3 convolution of `x` with each place repeated in a 2x2 square.

    Args:
        x: float [B, H, W, C].
        kernel: float [3, 3, C, D].

    Returns:
        float [B, 2H, 2W, D].
    """

    def plain(x, kernel):
        return convolve(upsample_nearest(x), kernel)

    few_places = math.prod(x.shape[:3]) < FEW_PLACES * max(kernel.shape[2:])
    if few_places or x.dtype != jnp.float32:
        return plain(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=_convolve_squares, default=plain)


def upsample_nearest(x: jax.Array) -> jax.Array:
    """Each place repeated in a 2x2 square; [B, H, W, C] -> [B, 2H, 2W, C]."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def _convolve_squares(x, kernel):
    """`convolve_upsampled` with 16 products a place instead of 36.

    Of the nine pixels under the kernel many are copies of one place. So each pixel of a square is seen by a
    kernel of its own, of 2x2 sums of weights.
    """
    batch, height, width, _ = x.shape
    features = kernel.shape[-1]

    def halves(k):
        # Of the places p - 1 and p: as pixel 2p - 1 sees them, and as pixel 2p does.
        return jnp.stack([jnp.stack([k[0] + k[1], k[2]]), jnp.stack([k[0], k[1] + k[2]])])

    # [pixel column, place column, pixel row, place row, C, D]
    squares = halves(jnp.moveaxis(halves(kernel), 2, 0))
    squares = squares.transpose(3, 1, 4, 2, 0, 5).reshape(2, 2, -1, 4 * features)
    y = convolve(x, squares, (1, 1), ((1, 1), (1, 1)))
    y = y.reshape(batch, height + 1, width + 1, 2, 2, features).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(batch, 2 * height + 2, 2 * width + 2, features)[:, 1:-1, 1:-1]


def _plain(x, kernel, strides, padding):
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _uneven(x, kernel, strides, padding):
    """`_plain` with a column of zeros more, without which XLA:CPU takes a library that is slower here."""
    if min(kernel.shape[2:]) < WIDE or x.dtype != jnp.float32:
        return _plain(x, kernel, strides, padding)
    width = (x.shape[2] + sum(padding[1]) - kernel.shape[1]) // strides[1] + 1
    rows, (left, right) = padding
    return _plain(x, kernel, strides, (rows, (left, right + 1)))[:, :, :width]


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x, kernel, strides, padding):
    forms = {"cpu": _uneven, "default": _plain}
    forms = {name: partial(form, strides=strides, padding=padding) for name, form in forms.items()}
    return jax.lax.platform_dependent(x, kernel, **forms)


def _convolve_forward(x, kernel, strides, padding):
    return _convolve(x, kernel, strides, padding), (x, kernel)


def _convolve_backward(strides, padding, saved, dy):
    x, kernel = saved
    dx = _input_gradient(dy, kernel, x.shape[1:3], strides, padding)
    return dx, _kernel_gradient(x, dy, kernel.shape[:2], strides, padding)


_convolve.defvjp(_convolve_forward, _convolve_backward)


# The three are linear in each argument, and each the gradient of the others.
@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _input_gradient(dy, kernel, size, strides, padding):
    x = jax.ShapeDtypeStruct((dy.shape[0], *size, kernel.shape[2]), dy.dtype)

    def plain(dy, kernel):
        return jax.linear_transpose(lambda x: _plain(x, kernel, strides, padding), x)(dy)[0]

    if strides != (1, 1) or dy.dtype != jnp.float32:
        return plain(dy, kernel)
    few_places = math.prod(dy.shape[:3]) <= kernel.shape[3]
    form = _input_gradient_by_products if few_places else _input_gradient_by_convolution
    form = partial(form, padding=_mirrored(kernel.shape[:2], padding))
    return jax.lax.platform_dependent(dy, kernel, cpu=form, default=plain)


def _input_gradient_by_convolution(dy, kernel, padding):
    return _uneven(dy, jnp.swapaxes(kernel[::-1, ::-1], 2, 3), (1, 1), padding)


def _input_gradient_by_products(dy, kernel, padding):
    """Sums what each weight sends where. The kernel, here the largest array, is not transposed."""
    height, width = kernel.shape[:2]
    # [height, width, C, B, h, w]
    sent = jax.lax.dot_general(kernel, dy, (((3,), (3,)), ((), ())))
    sent = jnp.pad(sent, (*((0, 0),) * 4, *padding))
    rows, columns = sent.shape[4] - height + 1, sent.shape[5] - width + 1

    def part(i, j):
        first_row, first_column = height - 1 - i, width - 1 - j
        return sent[i, j, :, :, first_row : first_row + rows, first_column : first_column + columns]

    dx = sum(part(i, j) for i in range(height) for j in range(width))
    return dx.transpose(1, 2, 3, 0)


def _mirrored(size, padding):
    """The padding with which a mirrored kernel undoes the shifts of a kernel."""
    ends = zip(size, padding, strict=True)
    return tuple((taps - 1 - before, taps - 1 - after) for taps, (before, after) in ends)


def _input_gradient_forward(dy, kernel, size, strides, padding):
    return _input_gradient(dy, kernel, size, strides, padding), (dy, kernel)


def _input_gradient_backward(size, strides, padding, saved, x):
    dy, kernel = saved
    return _convolve(x, kernel, strides, padding), _kernel_gradient(x, dy, kernel.shape[:2], strides, padding)


_input_gradient.defvjp(_input_gradient_forward, _input_gradient_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _kernel_gradient(x, dy, size, strides, padding):
    kernel = jax.ShapeDtypeStruct((*size, x.shape[-1], dy.shape[-1]), x.dtype)

    def plain(x, dy):
        return jax.linear_transpose(lambda k: _plain(x, k, strides, padding), kernel)(dy)[0]

    narrow = max(x.shape[-1], dy.shape[-1]) < NARROW
    # Strips of a batch that lies on several devices would be summed over them one by one.
    if narrow or x.dtype != jnp.float32 or jax.device_count() > 1:
        return plain(x, dy)
    products = partial(_kernel_gradient_by_products, size=size, strides=strides, padding=padding)
    return jax.lax.platform_dependent(x, dy, cpu=products, default=plain)


def _kernel_gradient_forward(x, dy, size, strides, padding):
    return _kernel_gradient(x, dy, size, strides, padding), (x, dy)


def _kernel_gradient_backward(size, strides, padding, saved, kernel):
    x, dy = saved
    dx = _input_gradient(dy, kernel, x.shape[1:3], strides, padding)
    return dx, _convolve(x, kernel, strides, padding)


_kernel_gradient.defvjp(_kernel_gradient_forward, _kernel_gradient_backward)


def _kernel_gradient_by_products(x, dy, size, strides, padding):
    """The gradient at the kernel as products of matrices, where XLA:CPU's own takes 2 to 10 times as long.

    The weight of tap (i, j) pairs pixels of `x` with places of `dy` that are shifted by (i, j). The shifted
    copies of one of them stand side by side as further channels, and one product holds all pairs. Shifts of
    rows may be of the one array and shifts of columns of the other, which makes the fewest copies.
    """
    channels, features = x.shape[-1], dy.shape[-1]
    few_places = math.prod(dy.shape[:3]) <= features
    if strides != (1, 1) or few_places or 2 * channels <= features:
        shift_x = (True, True)
    elif 2 * features <= channels:
        shift_x = (False, False)
    else:
        shift_x = (False, True)
    rows, columns = ((dy if shift_x[axis] else x).shape[axis + 1] for axis in range(2))
    x_taps, dy_taps = ([size[a] if shift_x[a] == of_x else 1 for a in range(2)] for of_x in (True, False))
    mirrored = _mirrored(size, padding)
    x_pads, dy_pads = (
        [pads[a] if shift_x[a] == of_x else (0, 0) for a in range(2)]
        for pads, of_x in ((padding, True), (mirrored, False))
    )
    x = jnp.pad(x, ((0, 0), *x_pads, (0, 0)))
    dy = jnp.pad(dy, ((0, 0), *dy_pads, (0, 0)))

    def product(first, n):
        """Of `n` rows from `first` on."""
        x_rows = strides[0] * (n - 1) + x_taps[0]
        x_strip = jax.lax.dynamic_slice_in_dim(x, strides[0] * first, x_rows, axis=1)
        dy_strip = jax.lax.dynamic_slice_in_dim(dy, first, n + dy_taps[0] - 1, axis=1)
        left = _shifted(x_strip, x_taps, (n, columns), strides)
        right = _shifted(dy_strip, dy_taps, (n, columns), (1, 1))
        return jnp.dot(left.T, right)

    # In strips that stay in the cache. A loop makes sure that they use the same memory; two strips a round,
    # of which one is copied while the other is multiplied.
    row_bytes = 4 * x.shape[0] * columns * (math.prod(x_taps) * channels + math.prod(dy_taps) * features)
    n = max(1, min(rows, STRIP_BYTES // row_bytes))
    rounds, rest = divmod(rows, 2 * n)
    result = jnp.zeros((math.prod(x_taps) * channels, math.prod(dy_taps) * features), x.dtype)
    for first in range(rows - rest, rows, n):
        result += product(first, min(n, rows - first))
    if rounds:
        add = lambda total, first: (total + (product(first, n) + product(first + n, n)), None)
        result = jax.lax.scan(add, result, jnp.arange(0, rows - rest, 2 * n))[0]
    result = result.reshape(*x_taps, channels, *dy_taps, features)[..., ::-1, ::-1, :]
    return result.transpose(0, 3, 1, 4, 2, 5).reshape(*size, channels, features)


def _shifted(x, taps, places, strides):
    """Copies of `x` from (0, 0), (0, 1), ... on, side by side: [B, H, W, C] -> [B h w, taps C]."""
    height, width = (stride * (n - 1) + 1 for stride, n in zip(strides, places, strict=True))
    copies = [
        x[:, i : i + height : strides[0], j : j + width : strides[1]]
        for i in range(taps[0])
        for j in range(taps[1])
    ]
    return jnp.concatenate(copies, -1).reshape(-1, len(copies) * x.shape[-1])
