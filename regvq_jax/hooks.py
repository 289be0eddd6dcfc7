"""What watches a training: metrics and their clock, evaluations."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from regvq_jax import sharding
from regvq_jax.checkpoint import Checkpoints
from regvq_jax.errors import UserError
from regvq_jax.evaluate.result import write_result
from regvq_jax.files import write_json_atomic
from regvq_jax.metrics import average, first_nonfinite
from regvq_jax.optim import NONFINITE
from regvq_jax.state import TrainState

PyTree = Any
log = logging.getLogger("regvq_jax")


class MetricWindow:
    """Device metrics since they were last read, with the time they took."""

    def __init__(
        self,
        trainer,
        batches,
        params: dict[str, PyTree],
        start: int,
        seconds: float,
        directory: Path,
        checkpoints: Checkpoints,
    ):
        """Begins to count.

        Args:
            trainer: a `loop.Trainer`.
            batches: random access to batches by step, for the one to save when a number is not finite.
            params: parameters by network, for the names of their gradients.
            start: finished steps.
            seconds: that these took.
            directory: where such a batch is saved.
            checkpoints: tells the last good one.
        """
        self._tensors = {network: tensor_names(tree) for network, tree in params.items()}
        self._bad_in_a_row = 0
        self._trainer, self._batches = trainer, batches
        self._directory, self._checkpoints = directory, checkpoints
        self._first_step = start
        self._pending: list[dict[str, jax.Array]] = []
        self._waited = 0.0
        self.seconds = seconds
        self._clock = time.perf_counter()

    def timed(self, batches: Iterator) -> Iterator:
        """Passes batches on and counts the time the loop waits for them."""
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def append(self, metrics: dict[str, jax.Array]) -> None:
        """Keeps the metrics of one step, on the devices."""
        self._pending.append(metrics)

    def restart_clock(self) -> None:
        """Leaves what happened since the last flush (evaluations, saving) out of the training time."""
        self._clock = time.perf_counter()

    def flush(self, done: int) -> dict[str, float]:
        """Means since the last flush; waits for the devices.

        Args:
            done: finished steps.

        Raises:
            UserError: a metric is not finite. The batch of the first such step is saved.
        """
        pending = jax.device_get(self._pending)
        elapsed = time.perf_counter() - self._clock
        means = average(self._leave_out_skipped(pending))
        images = self._trainer.train.batch_size * len(pending)
        means["perf/images_per_sec"] = images / elapsed
        means["perf/data_wait"] = self._waited / elapsed
        if self._trainer.num_examples:
            means["data/epoch"] = done * self._trainer.train.batch_size / self._trainer.num_examples
        self.seconds += elapsed
        self._pending, self._first_step, self._waited = [], done, 0.0
        self.restart_clock()
        return means

    def _leave_out_skipped(self, pending: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The metrics of the steps that count; those that were skipped are logged, and may be too many."""
        allowed = self._trainer.train.skip_nonfinite_steps
        kept, skipped = [], 0
        for step, metrics in enumerate(pending, self._first_step):
            places = {name: int(metrics.pop(name)) for name in list(metrics) if name.startswith(NONFINITE)}
            bad = first_nonfinite([metrics], step)
            if bad is None and max(places.values(), default=-1) < 0:
                self._bad_in_a_row = 0
                kept.append(metrics)
                continue
            self._bad_in_a_row += 1
            skipped += 1
            name = bad[1] if bad else "a gradient"
            for network, place in places.items():
                if place >= 0:
                    network = network.removeprefix(NONFINITE)
                    name += f" (the gradient of {network}/{self._tensors[network][place]} first)"
                    break
            if self._bad_in_a_row > allowed:
                self._stop(step, name)
            log.warning("%s: %s is not finite at step %d, which is skipped", self._trainer.name, name, step)
        if allowed:
            kept = [metrics | {"optim/skipped_steps": float(skipped)} for metrics in kept] or [
                {"train/loss": float("nan"), "optim/skipped_steps": float(skipped)}
            ]
        return kept

    def _stop(self, step: int, name: str) -> None:
        part = f"_process_{jax.process_index()}" if jax.process_count() > 1 else ""
        path = self._directory / f"nonfinite_batch_{step}{part}.npz"
        np.savez(path, **self._batches[step])
        good = self._checkpoints.latest_step()
        kept = "there is no checkpoint yet" if good is None else f"the last good checkpoint is step {good}"
        raise UserError(
            f"{self._trainer.name}: {name} is not finite at step {step}; {kept} in "
            f"{self._checkpoints.directory}, the batch is in {path}; lower optim.lr, set optim.clip_norm, or "
            "look at the batch."
        )


def tensor_names(tree: PyTree) -> list[str]:
    """The paths of a tree's leaves, in jax's order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]


class EvaluationHook:
    """Runs the evaluators that are due, writes their numbers and pictures."""

    def __init__(self, trainer, frozen: PyTree, mesh: jax.sharding.Mesh, directory: Path, writer):
        """Nothing is evaluated yet; `trainer` is a `loop.Trainer`, `writer` has CLU's interface."""
        self._trainer, self._frozen, self._mesh = trainer, frozen, mesh
        self._directory, self._writer = directory, writer
        self._latest: tuple[int, dict[str, float]] = (-1, {})

    def due(self, done: int) -> tuple:
        """The evaluators to run after `done` steps; all of them at the end."""
        last = done == self._trainer.train.total_steps
        return tuple(e for e in self._trainer.evaluators if last or done % e.every_steps == 0)

    def __call__(self, done: int, state: TrainState, evaluators: tuple) -> dict[str, float]:
        """Runs the evaluators on the averaged parameters after `done` steps; returns all their numbers."""
        results = {}
        ema = sharding.gathered(state.ema, self._mesh)
        for evaluator in evaluators:
            began = time.perf_counter()
            evaluation = evaluator(ema, self._frozen, self._mesh)
            results |= evaluation.metrics
            for name, picture in evaluation.images.items():
                self._show(done, name, picture)
            if jax.process_index() == 0:
                for name, record in evaluation.records.items():
                    write_json_atomic(self._directory / f"{name}.json", {"step": done} | record)
                if evaluation.about:
                    # Of the run, not of the stage: what a reader of the workdir looks for.
                    write_result(
                        self._directory.parent / "results" / f"{evaluator.name}.json",
                        evaluation,
                        step=done,
                        checkpoint=str(self._directory / "checkpoints"),
                        seconds=time.perf_counter() - began,
                    )
            for warning in evaluation.about.get("warnings", ()):
                log.warning("%s", warning)
        self._writer.write_scalars(done, results)
        shown = ", ".join(f"{name.rsplit('/', 1)[-1]} {value:.4g}" for name, value in results.items())
        shown = shown or f"pictures in {self._directory / 'images'}"
        log.info("%s: step %d: %s", self._trainer.name, done, shown)
        self._latest = (done, results)
        return results

    def _show(self, done: int, name: str, picture: np.ndarray) -> None:
        """Writes a picture to TensorBoard and as images/NAME_STEP.png, in the first process."""
        if jax.process_index() == 0:
            path = self._directory / "images" / f"{name}_{done:07d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
            self._writer.write_images(done, {f"eval/{name}": picture[None]})

    def metrics_of(self, done: int) -> dict[str, float] | None:
        """The numbers of the evaluation after `done` steps, for the choice of the best checkpoint."""
        step, results = self._latest
        return results if step == done else None


