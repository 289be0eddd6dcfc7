"""How far results are off those of a rival."""

import numpy as np


def relative_error(values: np.ndarray, reference: np.ndarray) -> float:
    """The largest difference of two arrays, as a share of the reference's largest element."""
    return float(np.abs(values - reference).max() / np.abs(reference).max())
