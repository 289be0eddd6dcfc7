"""Says where a training hangs: a collective operation that waits for a peer looks like nothing at all."""

import contextlib
import faulthandler
import logging
import sys
import threading
import time
from collections.abc import Iterator
from typing import Self

log = logging.getLogger("regvq_jax")


class Watchdog:
    """Logs when no step has ended for a while, and where each thread stands; then again after as long."""

    def __init__(self, name: str, seconds: float):
        """Does not watch yet.

        Args:
            name: of the training.
            seconds: of silence until it speaks; 0 = never.
        """
        self._name, self._seconds = name, seconds
        self._ended, self._paused = threading.Event(), False
        self._last = time.monotonic()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        if self._seconds > 0:
            self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._ended.set()
        if self._seconds > 0:
            self._thread.join()

    def beat(self) -> None:
        """A step has ended."""
        self._last = time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count the time inside: evaluations and savings take as long as they take."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False
            self.beat()

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._seconds / 4)):
            silent = time.monotonic() - self._last
            if not self._paused and silent > self._seconds:
                log.warning(
                    "%s: no step has ended for %.0f s: does a peer hang, or the reading of data? Where each "
                    "thread stands:",
                    self._name,
                    silent,
                )
                faulthandler.dump_traceback(sys.__stderr__)
                self.beat()
