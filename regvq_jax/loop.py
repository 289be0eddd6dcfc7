"""THE training loop, one for all stages."""

import logging
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import grain
import jax
import numpy as np
from clu import parameter_overview
from PIL import Image

from regvq_jax import sharding
from regvq_jax.checkpoint import Checkpoints
from regvq_jax.data.pipeline import iterate
from regvq_jax.errors import UserError
from regvq_jax.evaluate.result import Evaluation
from regvq_jax.files import read_json, write_json_atomic
from regvq_jax.metrics import average, first_nonfinite, make_writer
from regvq_jax.profiler import Profile
from regvq_jax.progress import Progress
from regvq_jax.settings import DataSettings, TrainSettings
from regvq_jax.state import TrainState

PyTree = Any
log = logging.getLogger("regvq_jax")


class Evaluator(Protocol):
    """Judges averaged parameters, every so many steps and at the end of a training."""

    name: str
    every_steps: int

    def __call__(self, ema: dict[str, PyTree], frozen: PyTree, mesh: jax.sharding.Mesh) -> Evaluation:
        """Evaluates; compiled once, called often."""


class Trainer(Protocol):
    """What differs by stage.

    Attributes:
        name: of the stage.
        seed: root of every random draw.
        train: length, batch size and cadence.
        data: how batches are read ahead.
        make_batches: this process's batches by step, endless and random-access.
        evaluators: run in this order.
        best_metric: (tag, "min" or "max"): decides which checkpoint is the best.
    """

    name: str
    seed: int
    train: TrainSettings
    data: DataSettings
    make_batches: Callable[[], grain.MapDataset]
    evaluators: tuple[Evaluator, ...]
    best_metric: tuple[str, str]

    def init(self, key: jax.Array) -> TrainState:
        """A fresh state; pure, for `jit` and `eval_shape`."""

    def init_frozen(self) -> PyTree:
        """Parameters that the step reads but never changes."""

    def train_step(
        self, state: TrainState, batch: dict[str, jax.Array], frozen: PyTree
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One update; pure, for `jit`."""


class Preempted(Exception):
    """The system asked the run to end; everything is saved, and the same command goes on."""


def train(
    trainer: Trainer, directory: Path, mesh: jax.sharding.Mesh, profile_steps: tuple[int, int] = (0, 0)
) -> dict[str, float]:
    """Trains to the end, from the newest checkpoint in `directory` if there is one.

    Args:
        trainer: the stage.
        directory: for checkpoints, events, metrics.jsonl, images and, at the end, result.json.
        mesh: of all devices.
        profile_steps: (first, count) steps to trace with the profiler; a count of 0 traces none.

    Returns:
        The last evaluation of every evaluator, with "step", "seconds" and "perf/images_per_sec".

    Raises:
        UserError: a loss is not finite; the batch size does not fit the mesh; saving failed.
        Preempted: SIGTERM arrived; the state is saved.
    """
    settings = trainer.train
    sharding.check_batch_size(
        settings.batch_size, mesh, field=f"{trainer.name} batch_size", slices=settings.accumulation_slices
    )
    best_metric, best_mode = trainer.best_metric
    lead = jax.process_index() == 0
    preemption = PreemptionSignal()
    with Checkpoints(
        directory / "checkpoints", best_metric=best_metric, best_mode=best_mode
    ) as checkpoints:
        batches = trainer.make_batches()
        frozen = jax.device_put(trainer.init_frozen(), sharding.replicated(mesh))
        state, start, seconds = restore_or_init(trainer, checkpoints, mesh)
        writer = make_writer(directory, enabled=lead, resume_step=start)
        evaluate = EvaluationHook(trainer, frozen, mesh, directory, writer)
        if start < settings.total_steps:
            step_fn = compile_step(trainer, state, frozen, batches[start], mesh)
        profile = Profile(directory / "profile", *profile_steps)
        progress = Progress(trainer.name, settings.total_steps, start, seconds)
        window = MetricWindow(trainer, start, seconds)
        results: dict[str, float] = {}

        for step, batch in enumerate(window.timed(iterate_batches(trainer, batches, start, mesh)), start):
            state, metrics = step_fn(state, batch, frozen)
            window.append(metrics)
            profile(step, metrics)
            done = step + 1
            last = done == settings.total_steps
            evaluations_due = evaluate.due(done)
            save_due = last or evaluations_due or preemption.received
            save_due = save_due or done % settings.checkpoint_every_steps == 0

            if save_due or done % settings.log_every_steps == 0 or done == start + 1:
                means = window.flush(done, batches, directory, checkpoints)
                writer.write_scalars(done, means)
                progress.update(done, loss=means["train/loss"])
            if evaluations_due:
                results |= evaluate(done, state, evaluations_due)
                window.restart_clock()
            if save_due:
                meta = {"data_position": done, "seconds": window.seconds}
                checkpoints.save(done, state, meta, evaluate.metrics_of(done))
                window.restart_clock()
            if preemption.received and not last:
                checkpoints.wait()
                progress.close()
                raise Preempted(f"{trainer.name} saved at step {done}")
        progress.close()
        profile.close()
        checkpoints.wait()

        if not results:  # Killed between the last checkpoint and the result.
            results = evaluate(settings.total_steps, state, trainer.evaluators)
        results |= {"step": settings.total_steps, "seconds": window.seconds}
        results["perf/images_per_sec"] = settings.batch_size * settings.total_steps / window.seconds
        writer.flush()
        writer.close()
    if lead:
        write_json_atomic(directory / "result.json", results)
    preemption.close()
    return results


def read_result(directory: Path) -> dict[str, float] | None:
    """The result of a finished training in `directory`, or None."""
    path = directory / "result.json"
    return read_json(path) if path.exists() else None


def restore_or_init(
    trainer: Trainer, checkpoints: Checkpoints, mesh: jax.sharding.Mesh
) -> tuple[TrainState, int, float]:
    """(state born sharded, first step to run, training seconds so far)."""
    init = trainer.init
    key = jax.random.key(trainer.seed)
    shapes = jax.eval_shape(init, key)
    shardings = sharding.param_shardings(shapes, mesh)
    for name, params in shapes.params.items():
        count = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
        log.info("%s: %s has %s parameters", trainer.name, name, f"{count:,}")
    if checkpoints.latest_step() is None:
        state = jax.jit(init, out_shardings=shardings)(key)
        overview = parameter_overview.get_parameter_overview(state.params, include_stats=False)
        log.debug("Parameters of %s:\n%s", trainer.name, overview)
        return state, 0, 0.0
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )
    state, meta = checkpoints.restore(abstract)
    log.info("%s: going on from step %d", trainer.name, meta["data_position"])
    return state, meta["data_position"], meta["seconds"]


def compile_step(
    trainer: Trainer, state: TrainState, frozen: PyTree, batch: dict, mesh: jax.sharding.Mesh
) -> Callable:
    """The train step compiled ahead of time, with donated state; logs what it took."""
    began = time.perf_counter()
    state_shardings = sharding.param_shardings(state, mesh)
    whole = sharding.replicated(mesh)
    step_fn = jax.jit(
        trainer.train_step,
        donate_argnums=0,
        in_shardings=(state_shardings, sharding.batch_sharding(mesh), whole),
        out_shardings=(state_shardings, whole),
    )
    compiled = step_fn.lower(state, sharding.put_batch(batch, mesh), frozen).compile()
    memory = compiled.memory_analysis()
    megabytes = (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**20 if memory else math.nan
    seconds = time.perf_counter() - began
    log.info(
        "%s: step compiled in %.1f s, needs %.0f MiB a device", trainer.name, seconds, megabytes
    )
    return compiled


def iterate_batches(trainer: Trainer, batches: grain.MapDataset, start: int, mesh: jax.sharding.Mesh):
    """The batches of the steps from `start` to the end, on the devices.

    Steps are dispatched without waiting for their results, so the next batch is read while one runs.
    """
    settings, data = trainer.train, trainer.data
    host_batches = iterate(
        batches, start, num_threads=data.num_threads, num_workers=data.num_workers
    )
    for _ in range(start, settings.total_steps):
        yield sharding.put_batch(next(host_batches), mesh)


class MetricWindow:
    """Device metrics since they were last read, with the time they took."""

    def __init__(self, trainer: Trainer, start: int, seconds: float):
        self._trainer = trainer
        self._first_step = start
        self._pending: list[dict[str, jax.Array]] = []
        self._waited = 0.0
        self.seconds = seconds
        self._clock = time.perf_counter()

    def timed(self, batches):
        """Passes batches on and counts the time the loop waits for them."""
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def append(self, metrics: dict[str, jax.Array]) -> None:
        self._pending.append(metrics)

    def restart_clock(self) -> None:
        """Leaves what happened since the last flush (evaluations, saving) out of the training time."""
        self._clock = time.perf_counter()

    def flush(self, done: int, batches, directory: Path, checkpoints: Checkpoints) -> dict[str, float]:
        """Means since the last flush; waits for the devices.

        Raises:
            UserError: a metric is not finite. The batch of the first such step is saved.
        """
        if not self._pending:
            return {}
        pending = jax.device_get(self._pending)
        elapsed = time.perf_counter() - self._clock
        bad = first_nonfinite(pending, self._first_step)
        if bad is not None:
            step, name = bad
            path = directory / f"nonfinite_batch_{step}.npz"
            np.savez(path, **batches[step])
            good = checkpoints.latest_step()
            kept = "there is no checkpoint yet" if good is None else f"the last good checkpoint is step {good}"
            raise UserError(
                f"{self._trainer.name}: {name} is not finite at step {step}; {kept} in "
                f"{directory / 'checkpoints'}, the batch is in {path}; lower optim.lr, set "
                "optim.clip_norm, or look at the batch."
            )
        means = average(pending)
        images = self._trainer.train.batch_size * len(pending)
        means["perf/images_per_sec"] = images / elapsed
        means["perf/data_wait"] = self._waited / elapsed
        self.seconds += elapsed
        self._pending, self._first_step, self._waited = [], done, 0.0
        self.restart_clock()
        return means


class EvaluationHook:
    """Runs the evaluators that are due, writes their numbers and pictures."""

    def __init__(self, trainer: Trainer, frozen: PyTree, mesh, directory: Path, writer):
        self._trainer, self._frozen, self._mesh = trainer, frozen, mesh
        self._directory, self._writer = directory, writer
        self._latest: tuple[int, dict[str, float]] = (-1, {})

    def due(self, done: int) -> tuple[Evaluator, ...]:
        """The evaluators to run after `done` steps; all of them at the end."""
        last = done == self._trainer.train.total_steps
        return tuple(e for e in self._trainer.evaluators if last or done % e.every_steps == 0)

    def __call__(self, done: int, state: TrainState, evaluators) -> dict[str, float]:
        results = {}
        for evaluator in evaluators:
            evaluation = evaluator(state.ema, self._frozen, self._mesh)
            results |= evaluation.metrics
            for name, picture in evaluation.images.items():
                path = self._directory / "images" / f"{name}_{done:07d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(path)
                self._writer.write_images(done, {f"eval/{name}": picture[None]})
        self._writer.write_scalars(done, results)
        shown = ", ".join(f"{name.rsplit('/', 1)[-1]} {value:.4g}" for name, value in results.items())
        log.info("%s: step %d: %s", self._trainer.name, done, shown)
        self._latest = (done, results)
        return results

    def metrics_of(self, done: int) -> dict[str, float] | None:
        """The numbers of the evaluation after `done` steps, for the choice of the best checkpoint."""
        step, results = self._latest
        return results if step == done else None


class PreemptionSignal:
    """Notes SIGTERM, so that the loop can save at the next step boundary."""

    def __init__(self):
        self.received = False
        self._previous = signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, signum, frame):
        self.received = True

    def close(self) -> None:
        """Gives the signal back to whoever had it before."""
        signal.signal(signal.SIGTERM, self._previous)
