"""What every evaluator returns."""

from typing import Any, NamedTuple

import numpy as np


class Evaluation(NamedTuple):
    """The result of one evaluation.

    Attributes:
        metrics: numbers by tag.
        images: pictures by file name without its ending, uint8 [H, W, 3].
        records: what else is worth keeping of the newest evaluation, by file name without its ending; JSON.
    """

    metrics: dict[str, float]
    images: dict[str, np.ndarray]
    records: dict[str, Any] = {}
