"""When the loss jumps: back to the last checkpoint, past the batches that led there."""

import collections
import logging
import math
import statistics
from pathlib import Path

import jax

from regvq_jax.errors import UserError
from regvq_jax.files import read_json, write_json_atomic

log = logging.getLogger("regvq_jax")
FILE = "rollbacks.json"
WINDOWS = 20  # of logged means that a loss is compared with
MIN_WINDOWS = 5
MAX_ROLLBACKS = 3


class LossSpike(Exception):
    """The mean loss since the last log has jumped; attributes say where and how far."""

    def __init__(self, step: int, loss: float, usual: float):
        """`step`: finished steps; `loss`: their last mean; `usual`: the median before."""
        super().__init__(f"the loss jumped from {usual:.4g} to {loss:.4g} before step {step}")
        self.step = step


class SpikeWatch:
    """Looks at every logged mean of the loss."""

    def __init__(self, factor: float):
        """A loss above `factor` times the median of the last ones is a spike; 0 = none is."""
        self._factor = factor
        self._losses: collections.deque[float] = collections.deque(maxlen=WINDOWS)

    def __call__(self, step: int, loss: float) -> None:
        """Notes a mean loss; one that is not finite, of steps that were skipped, says nothing.

        Raises:
            LossSpike: it is one. Nothing of it has been saved yet.
        """
        if not math.isfinite(loss):
            return
        if self._factor and len(self._losses) >= MIN_WINDOWS:
            usual = statistics.median(self._losses)
            # Losses below zero have no meaningful factor.
            if 0 < usual * self._factor < loss:
                raise LossSpike(step, loss, usual)
        self._losses.append(loss)


def skipped_batches(directory: Path) -> int:
    """How many batches the rollbacks of a training have left out so far."""
    path = directory / FILE
    return sum(entry["skipped"] for entry in read_json(path)) if path.exists() else 0


def note_rollback(directory: Path, spike: LossSpike, restart: int, name: str) -> None:
    """Writes down that a training goes back to step `restart`, and leaves out the batches since.

    Raises:
        UserError: it was the last one that is allowed.
    """
    path = directory / FILE
    entries = read_json(path) if path.exists() else []
    if len(entries) >= MAX_ROLLBACKS:
        raise UserError(
            f"{name}: {spike}, and {MAX_ROLLBACKS} returns to a checkpoint have not helped; the last one is "
            f"step {restart}: lower optim.lr, set optim.clip_norm, or look at the data."
        )
    log.warning("%s: %s; goes back to step %d, past %d batches", name, spike, restart, spike.step - restart)
    if jax.process_index() == 0:
        entry = {"step": spike.step, "restart": restart, "skipped": spike.step - restart, "why": str(spike)}
        write_json_atomic(path, [*entries, entry])
