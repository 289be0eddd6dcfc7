"""Mean and covariance of features that are never held all at once, in float64, exact in any split."""

import os
import zipfile
import zlib
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from regvq_jax.errors import UserError
from regvq_jax.files import report_write_errors

# What numpy raises on a file that is no archive of arrays, or was cut off or damaged.
NPZ_DAMAGE = (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


class FeatureStatistics(NamedTuple):
    """What a Frechet distance needs to know of a set of features, numpy or on the devices.

    Attributes:
        count: number of features, float64 [] or a number; 0 = not known (imported statistics).
        mean: float64 [D].
        m2: float64 [D, D], sum of outer products of the deviations from the mean; where the count is not
            known, the covariance itself.
    """

    count: float
    mean: np.ndarray
    m2: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """float64 [D, D], unbiased (divided by count - 1)."""
        return self.m2 / (self.count - 1) if self.count else self.m2


def empty_statistics(size: int) -> FeatureStatistics:
    """Of no features of `size` dimensions."""
    return FeatureStatistics(np.zeros(()), np.zeros(size), np.zeros((size, size)))


def merge(a: FeatureStatistics, b: FeatureStatistics) -> FeatureStatistics:
    """Of both sets together (Chan, Golub and LeVeque, 1979); also traced."""
    count = a.count + b.count
    share = b.count / (count + (count == 0))
    difference = b.mean - a.mean
    outer = difference[:, None] * difference[None, :]
    return FeatureStatistics(count, a.mean + difference * share, a.m2 + b.m2 + outer * (a.count * share))


@partial(jax.jit, donate_argnums=0)
def _update(statistics: FeatureStatistics, features: jax.Array, valid: jax.Array) -> FeatureStatistics:
    features = features.astype(jnp.float64)
    count = jnp.sum(valid, dtype=jnp.float64)
    mean = jnp.sum(jnp.where(valid[:, None], features, 0.0), 0) / jnp.maximum(count, 1.0)
    deviations = jnp.where(valid[:, None], features - mean, 0.0)
    # On CPUs XLA would fold the transposition into the product, which takes nearly twice the time.
    transposed = jax.lax.optimization_barrier(deviations.T)
    m2 = jnp.matmul(transposed, deviations, precision=jax.lax.Precision.HIGHEST)
    return merge(statistics, FeatureStatistics(count, mean, m2))


def update(statistics: FeatureStatistics, features: jax.Array, valid: jax.Array) -> FeatureStatistics:
    """The statistics with one more batch, computed where it lies: over all devices that it is split over.

    Args:
        statistics: so far; not to be used again.
        features: float [B, D], a global array or one of numpy.
        valid: bool [B], True = counts.

    Returns:
        Arrays on the devices, float64; `jax.device_get` brings them to the host.
    """
    with jax.enable_x64(True):
        return _update(statistics, features, valid)


def save_statistics(path: str | os.PathLike, statistics: FeatureStatistics, about: Mapping[str, str]) -> None:
    """Writes statistics as .npz with `mu` and `sigma`, as pytorch-fid reads them, and what they are of.

    Args:
        path: ends in .npz.
        statistics: of at least two features.
        about: the protocol and all else that has to be equal where they are used.

    Raises:
        UserError: no space or no permission.
    """
    with report_write_errors(path):
        np.savez(
            path,
            mu=statistics.mean,
            sigma=statistics.covariance,
            count=int(statistics.count),
            **{f"about_{name}": value for name, value in about.items()},
        )


def load_statistics(path: str | os.PathLike) -> tuple[FeatureStatistics, dict[str, str]]:
    """Reads reference statistics: of `save_statistics`, of pytorch-fid (`mu`, `sigma`) or of ADM's evaluator.

    Args:
        path: an .npz file.

    Returns:
        The statistics, and what they say they are of; {} for foreign ones.

    Raises:
        UserError: the file is missing, is no such file, holds images, or holds numbers that are not finite.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files if name != "arr_0"}
            names = content.files
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    except NPZ_DAMAGE as error:
        raise UserError(f"{path} is no .npz file of statistics ({error}).") from error
    if "mu" not in arrays or "sigma" not in arrays:
        raise UserError(
            f"{path} has {', '.join(names) or 'nothing'}, but statistics are mu [D] and sigma [D, D], as "
            "pytorch-fid and ADM's evaluator write them."
        )
    mean, covariance = (np.asarray(arrays[name], np.float64) for name in ("mu", "sigma"))
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
        raise UserError(f"{path}: mu is {mean.shape}, sigma {covariance.shape}; they must be [D] and [D, D].")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{path} has numbers that are not finite: make the statistics again.")
    count = int(arrays.get("count", 0))
    about = {
        name.removeprefix("about_"): str(value)
        for name, value in arrays.items()
        if name.startswith("about_")
    }
    return FeatureStatistics(count, mean, covariance * max(count - 1, 1)), about
