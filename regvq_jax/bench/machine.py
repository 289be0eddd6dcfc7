"""What this machine can do at best, measured: FLOPs and bytes a second of JAX's default device."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

ROUNDS, CHAIN = 5, 4
# Of a square product's sides, and of an array in bytes; a CPU would take minutes for an accelerator's.
SIDES = {"cpu": (1024, 2048)}
ACCELERATOR_SIDES = (4096, 8192)
ARRAY_BYTES = {"cpu": 2**27}
ACCELERATOR_BYTES = 2**30


def matmul_peak(dtype: Any) -> float:
    """The most FLOPs a second that products of large square matrices reach, 2 for a multiply-add.

    Args:
        dtype: of the matrices. The precision is JAX's default: of float32, TF32 on NVIDIA's GPUs.

    Returns:
        The best of several runs and sizes, measured once in a process.
    """
    return _matmul_peak(jnp.dtype(dtype).name)


@functools.cache
def memory_bandwidth() -> float:
    """The most bytes a second that a large array is read, scaled, added to and written with (a triad).

    Reads of two arrays and the writing of one count, as in STREAM. Measured once in a process.
    """
    size = ARRAY_BYTES.get(jax.default_backend(), ACCELERATOR_BYTES) // 4
    first, second = jnp.ones(size), jnp.ones(size)
    # Into the memory of an argument: of new memory a CPU would measure the system's giving it.
    triad = jax.jit(lambda a, b: 0.5 * a + b, donate_argnums=0)
    best = float("inf")
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        first = jax.block_until_ready(triad(first, second))
        best = min(best, time.perf_counter() - began)
    return 3 * 4 * size / best


@functools.cache
def _matmul_peak(dtype: str) -> float:
    sides = SIDES.get(jax.default_backend(), ACCELERATOR_SIDES)
    return max(2 * CHAIN * side**3 / _fastest(_chain, _matrix(side, dtype)) for side in sides)


def _matrix(side: int, dtype: str) -> jax.Array:
    return jax.random.normal(jax.random.key(0), (side, side)).astype(dtype) * side**-0.5


@jax.jit
def _chain(matrix: jax.Array) -> jax.Array:
    """Products one after the other, so that starting them costs little."""
    result = matrix
    for _ in range(CHAIN):
        result = result @ matrix
    return result


def _fastest(fn: Callable, *args: jax.Array) -> float:
    jax.block_until_ready(fn(*args))
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        jax.block_until_ready(fn(*args))
        seconds.append(time.perf_counter() - began)
    return min(seconds)
