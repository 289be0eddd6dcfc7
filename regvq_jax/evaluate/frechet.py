"""The Frechet distance between two sets of features, taken as Gaussians (FID, Heusel et al. 2017)."""

import numpy as np

from regvq_jax.evaluate.feature_statistics import FeatureStatistics


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """|mean_a - mean_b|^2 + tr(A) + tr(B) - 2 tr((A B)^1/2) of the covariances A and B.

    The last trace is the sum of the singular values of A^1/2 B^1/2, whose squares are the eigenvalues of
    A^1/2 B A^1/2. Both roots come from symmetric eigenvalues, of which those that are nothing but rounding
    are left out: a covariance of fewer features than dimensions has many, and a square root turns 1e-16
    into 1e-8, a thousand times over.

    Args:
        a, b: of features of the same network.

    Returns:
        The distance, at least 0.
    """
    difference = a.mean - b.mean
    root_a, root_b = _root_factor(a.covariance), _root_factor(b.covariance)
    trace_of_root = np.linalg.svd(root_a.T @ root_b, compute_uv=False).sum()
    distance = difference @ difference + np.trace(a.covariance) + np.trace(b.covariance) - 2 * trace_of_root
    return float(max(distance, 0.0))


def _root_factor(covariance: np.ndarray) -> np.ndarray:
    """F float64 [D, rank] with F F^T the covariance: F^T G and A^1/2 B^1/2 have the same singular values."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > max(values[-1], 0.0) * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])
