"""Group normalisation in two passes over memory, forward and backward."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Dtype = Any


class GroupNorm(nn.Module):
    """Group normalisation, with the parameters of `nn.GroupNorm`; float [B, H, W, C] -> the same shape.

    Attributes:
        num_groups: of neighbouring channels; divides C.
        epsilon: added to the variance.
        swish: whether x * sigmoid(x) follows.
        dtype: of the result; statistics and parameters are float32.
    """

    num_groups: int
    epsilon: float = 1e-6
    swish: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],))
        y = normalize_groups(x, scale, bias, self.num_groups, self.epsilon, self.swish)
        return y.astype(self.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def normalize_groups(
    x: jax.Array, scale: jax.Array, bias: jax.Array, num_groups: int, epsilon: float, swish: bool
) -> jax.Array:
    """Each group of an image's channels less its mean, over its deviation; scaled, shifted, and swish.

    In between, a group's statistics become one factor and one summand for each channel: nothing else is as
    large as `x`. The backward pass keeps `x` alone.

    Args:
        x: float [B, H, W, C].
        scale, bias: float32 [C].
        num_groups: divides C.
        epsilon: added to the variance.
        swish: whether x * sigmoid(x) follows.

    Returns:
        [B, H, W, C], of the type of `x`.
    """
    return _forward(x, scale, bias, num_groups, epsilon, swish)[0]


def _forward(x, scale, bias, num_groups, epsilon, swish):
    mean, inverse = _statistics(x, num_groups, epsilon)
    factor, summand = _affine(mean, inverse, scale, bias)
    y = x.astype(jnp.float32) * factor + summand
    y = nn.swish(y) if swish else y
    return y.astype(x.dtype), (x, scale, bias, mean, inverse)


def _backward(num_groups, epsilon, swish, saved, dy):
    x, scale, bias, mean, inverse = saved
    factor, summand = _affine(mean, inverse, scale, bias)
    wide, dy = x.astype(jnp.float32), dy.astype(jnp.float32)
    if swish:
        y = wide * factor + summand
        gate = nn.sigmoid(y)
        dy = dy * gate * (1 + y * (1 - gate))
    # Of each image and channel; what is normalised is inverse * (x - mean).
    total = jnp.sum(dy, (1, 2), keepdims=True)
    product = inverse * (jnp.sum(dy * wide, (1, 2), keepdims=True) - mean * total)
    dscale, dbias = (jnp.sum(x, (0, 1, 2)) for x in (product, total))
    count = x.shape[1] * x.shape[2]
    slope = -jnp.square(inverse) * _over_groups(scale * product, num_groups) / count
    offset = -inverse * _over_groups(scale * total, num_groups) / count - slope * mean
    dx = factor * dy + slope * wide + offset
    return dx.astype(x.dtype), dscale, dbias


normalize_groups.defvjp(_forward, _backward)


def _statistics(x, num_groups, epsilon):
    """Mean and 1 / deviation of each channel's group, float32 [B, 1, 1, C]."""
    x = x.astype(jnp.float32)
    mean, square = (_over_groups(jnp.mean(y, (1, 2), keepdims=True), num_groups) for y in (x, x * x))
    return mean, jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0.0) + epsilon)


def _affine(mean, inverse, scale, bias):
    factor = inverse * scale
    return factor, bias - mean * factor


def _over_groups(x, num_groups):
    """The mean over each group of channels, for each channel: [B, 1, 1, C] -> the same shape."""
    groups = x.reshape(*x.shape[:-1], num_groups, -1)
    return jnp.broadcast_to(jnp.mean(groups, -1, keepdims=True), groups.shape).reshape(x.shape)
