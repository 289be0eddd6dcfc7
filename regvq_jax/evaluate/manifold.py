"""Precision, recall, density, coverage, and nearest neighbours, in feature space."""

from collections.abc import Iterator

import numpy as np

_ROWS = 1024


def squared_distances(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Squared Euclidean distances, some rows at a time.

    Args:
        a, b: float [N, D], [M, D].

    Yields:
        (slice of rows of a, float64 [rows, M]).
    """
    b = np.asarray(b, np.float64)
    lengths = (b**2).sum(1)
    for start in range(0, len(a), _ROWS):
        rows = slice(start, start + _ROWS)
        x = np.asarray(a[rows], np.float64)
        yield rows, np.maximum((x**2).sum(1)[:, None] + lengths - 2 * x @ b.T, 0.0)


def nearest_radii(features: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each feature to its k-th nearest other one.

    Args:
        features: float [N, D], N > k.
        k: at least 1.

    Returns:
        float64 [N].
    """
    radii = np.empty(len(features))
    for rows, squared in squared_distances(features, features):
        # The nearest is the feature itself.
        np.fill_diagonal(squared[:, rows], 0.0)
        radii[rows] = np.partition(squared, k, axis=1)[:, k]
    return radii


def manifold_scores(
    real: np.ndarray, fake: np.ndarray, *, k: int = 3, k_density: int = 5
) -> dict[str, float]:
    """How much of either set lies in the other's neighbourhoods.

    Precision is the share of fakes inside a real one's ball to its k-th neighbour, recall the share of
    reals inside a fake one's (Kynkaanniemi et al. 2019); density counts the real balls around each fake over
    k, coverage the share of real balls with a fake in them (Naeem et al. 2020).

    Args:
        real: float [N, D].
        fake: float [M, D].
        k: neighbours of precision and recall; 3 as in its paper and ADM's evaluator.
        k_density: of density and coverage; 5 as in theirs.

    Returns:
        "precision", "recall", "coverage" in [0, 1], "density" about 1 for equal sets.
    """
    real_radii, real_wide = nearest_radii(real, k), nearest_radii(real, k_density)
    fake_radii = nearest_radii(fake, k)
    in_real = np.zeros(len(fake), bool)
    balls = 0
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for rows, squared in squared_distances(real, fake):
        in_real |= (squared <= real_radii[rows, None]).any(0)
        inside = squared < real_wide[rows, None]
        balls += int(inside.sum())
        covered[rows] = inside.any(1)
        recalled[rows] = (squared <= fake_radii).any(1)
    return {
        "precision": float(in_real.mean()),
        "recall": float(recalled.mean()),
        "density": balls / (k_density * len(fake)),
        "coverage": float(covered.mean()),
    }


def nearest_neighbours(queries: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of `others` to each query.

    Args:
        queries, others: float [N, D], [M, D].

    Returns:
        (int64 [N] indices, float64 [N] distances).
    """
    indices, distances = np.empty(len(queries), np.int64), np.empty(len(queries))
    for rows, squared in squared_distances(queries, others):
        indices[rows] = squared.argmin(1)
        distances[rows] = np.sqrt(squared.min(1))
    return indices, distances
