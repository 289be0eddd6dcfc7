"""Schedules of masking: how much is masked when a share `ratio` of the decoding is done, and the order."""

import jax
import jax.numpy as jnp
import numpy as np


def cosine(ratio: jax.Array) -> jax.Array:
    """cos(pi / 2 * ratio): little is revealed at first, much at the end.

    Args:
        ratio: float of any shape, in [0, 1].

    Returns:
        float32 of the same shape: 1 at ratio 0, 0 at ratio 1, falling between.
    """
    return _fraction(jnp.cos(jnp.pi / 2 * _float32(ratio)))


def linear(ratio: jax.Array) -> jax.Array:
    """1 - ratio; Args and Returns as in `cosine`."""
    return _fraction(1 - _float32(ratio))


def square(ratio: jax.Array) -> jax.Array:
    """1 - ratio^2; Args and Returns as in `cosine`."""
    return _fraction(1 - _float32(ratio) ** 2)


def exp(ratio: jax.Array) -> jax.Array:
    """1 - 256^(ratio - 1), scaled to begin at 1: nearly all is revealed in the last steps.

    MaskGIT's exponential schedule for 256 tokens, which itself begins at 255 / 256; for any number of
    tokens here, so that training and decoding share it. Args and Returns as in `cosine`.
    """
    return _fraction((1 - 256 ** (_float32(ratio) - 1)) * (256 / 255))


def arccos(ratio: jax.Array) -> jax.Array:
    """arccos(ratio) / (pi / 2): most is revealed at both ends; Args and Returns as in `cosine`.

    The schedule that Halton-MaskGIT decodes with.
    """
    return _fraction(jnp.arccos(_float32(ratio)) * (2 / jnp.pi))


SCHEDULES = {"cosine": cosine, "linear": linear, "square": square, "exp": exp, "arccos": arccos}


def halton_order(grid: tuple[int, int]) -> np.ndarray:
    """The order in which a 2-D Halton sequence visits the cells of a grid (Besnier et al. 2025).

    Point i = 1, 2, ... lies at (i mirrored in base 2, i mirrored in base 3) in the unit square; a cell's
    rank is that of the first point in it. Cells that are decoded together lie far apart, so that they tell
    little of each other: what parallel decoding assumes.

    Args:
        grid: (h, w).

    Returns:
        int32 [h * w], in row-major order: the rank of each cell, 0 first.
    """
    height, width = grid
    # So many points fill each rectangle of 2^-r by 3^-c exactly once, hence each cell at least once.
    points = np.arange(1, _power_above(2, 2 * height) * _power_above(3, 2 * width) + 1)
    cells = _mirrored(points, 2, height) * width + _mirrored(points, 3, width)
    first_point = np.unique(cells, return_index=True)[1]
    return np.argsort(np.argsort(first_point)).astype(np.int32)


def _float32(ratio):
    return jnp.asarray(ratio, jnp.float32)


def _fraction(values):
    return jnp.clip(values, 0.0, 1.0)  # cos(pi / 2) is -4e-8 in float32.


def _power_above(base, value):
    power = 1
    while power < value:
        power *= base
    return power


def _mirrored(points, base, cells):
    """floor(cells * x), x = each point's digits mirrored at the radix point; exact, in integers."""
    digits, scale = np.zeros_like(points), 1
    while points.any():
        digits, points, scale = digits * base + points % base, points // base, scale * base
    return digits * cells // scale
