"""Mask schedules: how much is still masked when a share `ratio` of the decoding is done."""

import jax
import jax.numpy as jnp


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


def arccos(ratio: jax.Array) -> jax.Array:
    """arccos(ratio) / (pi / 2): most is revealed at both ends; Args and Returns as in `cosine`."""
    return _fraction(jnp.arccos(_float32(ratio)) * (2 / jnp.pi))


SCHEDULES = {"cosine": cosine, "linear": linear, "square": square, "arccos": arccos}


def _float32(ratio):
    return jnp.asarray(ratio, jnp.float32)


def _fraction(values):
    return jnp.clip(values, 0.0, 1.0)  # cos(pi / 2) is -4e-8 in float32.
