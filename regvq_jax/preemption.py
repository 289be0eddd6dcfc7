"""When the system asks a run to end: save, leave with exit code 42, and be started again."""

import signal
from typing import ClassVar, Self

import jax
import numpy as np
from jax.experimental import multihost_utils


class Preempted(Exception):
    """The system asked the run to end; everything is saved, and the same command goes on."""


class PreemptionSignal:
    """Notes SIGTERM, so that work can stop where it can go on later.

    Of several processes each gets the signal at another moment, or one alone gets it, and all must stop at
    the same place: there jax.distributed notes it, and agrees on how many times all of them will have asked.
    """

    _active: "ClassVar[list[PreemptionSignal]]" = []
    # Of this process, over all stages: jax wants a number that never goes back.
    _asked: ClassVar[int] = 0
    _agreed: ClassVar[bool] = False

    def __init__(self):
        """The signal is not caught yet."""
        self._received = False

    def __enter__(self) -> Self:
        self._active.append(self)
        if jax.process_count() == 1:
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *exception) -> None:
        self._active.remove(self)
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._previous)

    def stop_requested(self) -> bool:
        """Whether to stop here, the same in all processes.

        All of them must ask equally often, at the same places, or else call `align` before they do again.
        """
        if jax.process_count() == 1:
            return self._received
        PreemptionSignal._asked += 1
        if multihost_utils.reached_preemption_sync_point(self._asked):
            PreemptionSignal._agreed = True
        return self._agreed

    def align(self) -> None:
        """After work in which each process has asked as often as it had parts to do; all must call."""
        if jax.process_count() > 1:
            PreemptionSignal._asked = int(np.max(multihost_utils.process_allgather(np.array(self._asked))))

    def _receive(self, signum, frame) -> None:
        self._received = True


def stop_if_requested(what: str) -> None:
    """To be called where long work between two steps can stop and go on later; by all processes together.

    Args:
        what: what is saved of it, for people.

    Raises:
        Preempted: SIGTERM has arrived inside a `PreemptionSignal`.
    """
    if PreemptionSignal._active and PreemptionSignal._active[-1].stop_requested():
        raise Preempted(what)
