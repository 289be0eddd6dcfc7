"""Kernel distances of features: KID (Binkowski et al. 2018) and CMMD (Jayasumana et al. 2024)."""

import numpy as np

from regvq_jax.evaluate.manifold import squared_distances

CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0


def kernel_distance(
    a: np.ndarray, b: np.ndarray, *, subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> tuple[float, float]:
    """KID: the unbiased squared MMD with kernel (x.y / D + 1)^3, over random subsets.

    Args:
        a, b: float [N, D], [M, D].
        subsets: how many.
        subset_size: features of each side in one, at least 2, at most N and M.
        seed: of the subsets, which are drawn as torch-fidelity draws them.

    Returns:
        (mean over the subsets, their standard deviation).
    """
    # RandomState, not a Generator: with its seed the subsets are those of torch-fidelity.
    random = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        # In this order.
        x = a[random.choice(len(a), subset_size, replace=False)].astype(np.float64)
        y = b[random.choice(len(b), subset_size, replace=False)].astype(np.float64)
        values.append(_unbiased_mmd(_cubic(x, x), _cubic(y, y), _cubic(x, y)))
    return float(np.mean(values)), float(np.std(values))


def cmmd(a: np.ndarray, b: np.ndarray) -> float:
    """CMMD: 1000 times the squared MMD (with the diagonal) of unit-length CLIP embeddings, Gaussian kernel.

    Args:
        a, b: float [N, D], [M, D], image embeddings of CLIP; of any length, they are normalised.

    Returns:
        The distance; sigma is 10.
    """
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (np.float64(a), np.float64(b)))

    def mean_kernel(x, y):
        total = sum(np.exp(-part / (2 * CMMD_SIGMA**2)).sum() for _, part in squared_distances(x, y))
        return total / (len(x) * len(y))

    return float(CMMD_SCALE * (mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b)))


def _cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def _unbiased_mmd(xx: np.ndarray, yy: np.ndarray, xy: np.ndarray) -> float:
    size = len(xx)
    within = (xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)) / (size * (size - 1))
    return within - 2 * xy.mean()
