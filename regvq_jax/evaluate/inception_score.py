"""Inception Score (Salimans et al. 2016), streamed."""

from typing import NamedTuple

import numpy as np


class ClassSums(NamedTuple):
    """Sums over the images of each split.

    Attributes:
        counts: float64 [S].
        probabilities: float64 [S, C].
        negative_entropies: float64 [S], sums of p log p.
    """

    counts: np.ndarray
    probabilities: np.ndarray
    negative_entropies: np.ndarray


def empty_sums(splits: int, classes: int) -> ClassSums:
    """Of no images."""
    return ClassSums(np.zeros(splits), np.zeros((splits, classes)), np.zeros(splits))


def split_of_images(count: int, splits: int = 10, seed: int = 2020) -> np.ndarray:
    """Which split each image belongs to, as torch-fidelity shuffles and cuts them.

    Args:
        count: number of images.
        splits: S.
        seed: of the shuffling.

    Returns:
        int64 [count].
    """
    order = np.random.RandomState(seed).permutation(count)
    edges = [count * i // splits for i in range(splits + 1)]
    split = np.empty(count, np.int64)
    for index, (start, stop) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        split[order[start:stop]] = index
    return split


def add(sums: ClassSums, logits: np.ndarray, splits: np.ndarray) -> ClassSums:
    """The sums with more images.

    Args:
        sums: so far.
        logits: float [B, C].
        splits: int [B].
    """
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    p = np.exp(log_p)
    counts, probabilities, entropies = (x.copy() for x in sums)
    np.add.at(counts, splits, 1.0)
    np.add.at(probabilities, splits, p)
    np.add.at(entropies, splits, (p * log_p).sum(1))
    return ClassSums(counts, probabilities, entropies)


def inception_score(sums: ClassSums) -> tuple[float, float]:
    """exp of the mean KL between an image's classes and those of its split.

    Returns:
        (mean over the splits that have images, their standard deviation).
    """
    filled = sums.counts > 0
    counts = sums.counts[filled]
    marginal = sums.probabilities[filled] / counts[:, None]
    log_marginal = np.log(np.maximum(marginal, np.finfo(np.float64).tiny))
    kl = sums.negative_entropies[filled] / counts - (marginal * log_marginal).sum(1)
    return float(np.exp(kl).mean()), float(np.exp(kl).std())
