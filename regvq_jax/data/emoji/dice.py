"""Random draws for scenes: few, fixed by a seed, and cheap."""

from collections.abc import Sequence

import numpy as np


class Dice:
    """A fixed stream of draws; one call for all of them, since numpy's are slow one by one."""

    def __init__(self, seed: Sequence[int]) -> None:
        """Draws them: at most 32 may be asked for."""
        self._draws = iter(np.random.default_rng(seed).random(32).tolist())

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A float from low to high."""
        return low + (high - low) * next(self._draws)

    def below(self, bound: int) -> int:
        """An integer from 0 to bound - 1."""
        return int(next(self._draws) * bound)

    def distinct(self, bound: int, count: int) -> list[int]:
        """Different integers from 0 to bound - 1, in random order."""
        drawn: list[int] = []
        for taken in range(count):
            number = self.below(bound - taken)
            for earlier in sorted(drawn):
                number += number >= earlier
            drawn.append(number)
        return drawn
