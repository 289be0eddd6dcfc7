"""Random keys as a function of (seed, name, step): a resumed run draws what an unbroken one draws."""

import zlib

import jax


def fold_in_name(key: jax.Array, name: str) -> jax.Array:
    """A key for `name`: the same on every machine and every Python, unlike `hash`."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)


def step_key(seed: int, name: str, step: jax.Array | int) -> jax.Array:
    """The key of one named draw at one step.

    Args:
        seed: the config's seed.
        name: what is drawn, e.g. "quantizer".
        step: int or int32 [], may be traced.

    Returns:
        A typed key [].
    """
    return jax.random.fold_in(fold_in_name(jax.random.key(seed), name), step)
