"""How evenly the codes of a codebook are used."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def count_codes(codes: jax.Array, codebook_size: int, valid: jax.Array | None = None) -> jax.Array:
    """How often each code occurs.

    Args:
        codes: int [B, ...]; what is no code (a mask id, a padding of -1) is not counted.
        codebook_size: K.
        valid: bool [B] or the shape of `codes`, True = counts; everything counts by default.

    Returns:
        int32 [K].
    """
    counted = (codes >= 0) & (codes < codebook_size)
    if valid is not None:
        counted &= valid.reshape(valid.shape + (1,) * (codes.ndim - valid.ndim))
    # Index K is out of bounds, and dropped. (A negative index would count from the end.)
    indices = jnp.where(counted, codes, codebook_size).ravel()
    return jnp.zeros(codebook_size, jnp.int32).at[indices].add(1, mode="drop")


def usage(counts: np.ndarray) -> float:
    """The share of codes that occur at all.

    Args:
        counts: int [K].

    Returns:
        A number in [0, 1].
    """
    return float(np.mean(np.asarray(counts) > 0))


def perplexity(counts: np.ndarray) -> float:
    """exp of the entropy of the codes: K where all are used evenly, 1 where only one is.

    Args:
        counts: int [K].

    Returns:
        A number in [1, K], or 0 where nothing was counted.
    """
    counts = np.asarray(counts, np.float64)
    if counts.sum() == 0:
        return 0.0
    shares = counts[counts > 0] / counts.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


def dead_codes(counts: np.ndarray) -> np.ndarray:
    """The codes that never occur.

    Args:
        counts: int [K].

    Returns:
        int64 [number of them], ascending.
    """
    return np.flatnonzero(np.asarray(counts) == 0)


def codebook_report(counts: np.ndarray) -> dict[str, Any]:
    """The health of a codebook as JSON: the figures, the list of dead codes, and the counts themselves.

    Args:
        counts: int [K].

    Returns:
        {"codebook_size", "tokens", "usage", "perplexity", "dead_codes": list, "counts": list of K}.
    """
    counts = np.asarray(counts)
    return {
        "codebook_size": len(counts),
        "tokens": int(counts.sum()),
        "usage": usage(counts),
        "perplexity": perplexity(counts),
        "dead_codes": dead_codes(counts).tolist(),
        "counts": counts.tolist(),
    }
