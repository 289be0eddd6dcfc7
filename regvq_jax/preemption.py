"""When the system asks a run to end: save, leave with exit code 42, and be started again."""

import signal
from typing import Self

import jax
from jax.experimental import multihost_utils


class Preempted(Exception):
    """The system asked the run to end; everything is saved, and the same command goes on."""


class PreemptionSignal:
    """Notes SIGTERM, so that work can stop where it can go on later.

    Of several processes each gets the signal at another moment, and all must stop after the same step: there
    jax.distributed notes it and agrees on that step.
    """

    _active: "list[PreemptionSignal]" = []

    def __init__(self):
        """The signal is not caught yet."""
        self.received = False

    def __enter__(self) -> Self:
        self._active.append(self)
        if jax.process_count() == 1:
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *exception) -> None:
        self._active.remove(self)
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._previous)

    def stops_after(self, step: int) -> bool:
        """Whether to save and end after this step, the same in all processes; asked at every step."""
        if jax.process_count() == 1:
            return self.received
        return multihost_utils.reached_preemption_sync_point(step)

    def _receive(self, signum, frame) -> None:
        self.received = True


def stop_if_requested(what: str) -> None:
    """To be called where long work between two steps can stop and go on later.

    Args:
        what: what is saved of it, for people.

    Raises:
        Preempted: SIGTERM has arrived inside a `PreemptionSignal`. Never with several processes, which cannot
            agree here: they are ended by the system, and what they have saved is used again.
    """
    if any(active.received for active in PreemptionSignal._active):
        raise Preempted(what)
