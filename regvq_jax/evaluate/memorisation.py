"""Are samples copies? The nearest training images in feature space, beside those that no training saw."""

from typing import NamedTuple

import numpy as np

from regvq_jax.evaluate.manifold import nearest_neighbours


class Neighbours(NamedTuple):
    """What samples have near them.

    Attributes:
        metrics: "train_distance" and "heldout_distance", median distance of a sample to the nearest one of
            equally many training and held-out images; "closer_to_train", the share of samples whose nearest
            is a training image: 0.5 where the prior knows both alike, 1 where it copies.
        samples: int64 [N], the samples by distance to their nearest training image, the nearest first.
        train: int64 [N], that image of each, a row of the training features.
        distances: float64 [N].
    """

    metrics: dict[str, float]
    samples: np.ndarray
    train: np.ndarray
    distances: np.ndarray


def find_neighbours(samples: np.ndarray, train: np.ndarray, heldout: np.ndarray) -> Neighbours:
    """Compares samples with training and held-out images.

    Args:
        samples: float [N, D] features.
        train: float [T, D]; the pairs are sought among all of them, the figures among as many as `heldout`.
        heldout: float [H, D].
    """
    nearest, distances = nearest_neighbours(samples, train)
    # From more images the nearest is nearer: equally many, evenly spread.
    count = min(len(train), len(heldout))
    seen, unseen = (
        nearest_neighbours(samples, x[np.arange(count) * len(x) // count])[1] for x in (train, heldout)
    )
    metrics = {
        "train_distance": float(np.median(seen)),
        "heldout_distance": float(np.median(unseen)),
        "closer_to_train": float(np.mean(seen < unseen) + 0.5 * np.mean(seen == unseen)),
    }
    order = np.argsort(distances, kind="stable")
    return Neighbours(metrics, order, nearest[order], distances[order])
