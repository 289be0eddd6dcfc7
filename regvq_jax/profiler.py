"""A profiler trace of a few steps, for TensorBoard or Perfetto."""

import logging
import os
from typing import Any

import jax

log = logging.getLogger("regvq_jax")


class Profile:
    """Traces `num_steps` steps from `first_step` on; to be called after each step."""

    def __init__(self, directory: os.PathLike | str, first_step: int = 0, num_steps: int = 0):
        """Nothing is traced yet.

        Args:
            directory: for the trace; open it with TensorBoard's profile plugin.
            first_step: a run that goes on from a later step is traced from its second step on.
                So is a run with 0 here: its first step is over at the first call.
            num_steps: 0 traces nothing.
        """
        self._directory, self._first_step = directory, first_step
        self._left = num_steps
        self._running = False

    def __call__(self, step: int, outputs: Any = None) -> None:
        """Starts or stops the trace where it is time to.

        Args:
            step: the step that was just dispatched.
            outputs: arrays it returns; the trace waits for them, or it would lack the last steps.
        """
        if self._running:
            self._left -= 1
            if self._left == 0:
                jax.block_until_ready(outputs)
                self.close()
        elif self._left > 0 and step + 1 >= self._first_step:
            jax.block_until_ready(outputs)
            jax.profiler.start_trace(os.fspath(self._directory))
            self._running = True

    def close(self) -> None:
        """Ends a trace that is still running, as at the end of a short run."""
        if self._running:
            jax.profiler.stop_trace()
            log.info("profile: trace written to %s", self._directory)
        self._running, self._left = False, 0
