"""THE training loop, one for all stages."""

import contextlib
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import grain
import jax
from clu import parameter_overview
from jax.experimental import multihost_utils

from regvq_jax import sharding
from regvq_jax.checkpoint import Checkpoints
from regvq_jax.data.pipeline import iterate
from regvq_jax.evaluate.result import Evaluation
from regvq_jax.files import read_json, write_json_atomic, write_text_atomic
from regvq_jax.hooks import EvaluationHook, MetricWindow
from regvq_jax.metrics import make_writer
from regvq_jax.optim import skip_nonfinite
from regvq_jax.preemption import Preempted, PreemptionSignal
from regvq_jax.profiler import Profile
from regvq_jax.progress import Progress
from regvq_jax.rollback import LossSpike, SpikeWatch, note_rollback, skipped_batches
from regvq_jax.settings import DataSettings, TrainSettings
from regvq_jax.state import TrainState
from regvq_jax.watchdog import Watchdog

PyTree = Any
log = logging.getLogger("regvq_jax")
# For machine code of CPUs that runs once, or never: compiling is most of what it costs.
QUICK_TO_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


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
        num_examples: that make an epoch; 0 = not known.
        evaluators: run in this order.
        best_metric: (tag, "min" or "max"): decides which checkpoint is the best.
    """

    name: str
    seed: int
    train: TrainSettings
    data: DataSettings
    make_batches: Callable[[], grain.MapDataset]
    num_examples: int
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

    def make_watches(self, metrics_path: Path) -> tuple[Callable[[int, dict[str, float]], None], ...]:
        """What looks at every window's and every evaluation's numbers, and may warn or end the training."""


def train(
    trainer: Trainer, directory: Path, mesh: jax.sharding.Mesh, profile_steps: tuple[int, int] = (0, 0)
) -> dict[str, float]:
    """Trains to the end, from the newest checkpoint in `directory` if there is one.

    Where the loss jumps, and `rollback_factor` is set, it goes back to that checkpoint and leaves out the
    batches since.

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
    # Over all returns: what is usual was learned before the first of them.
    spike_watch = SpikeWatch(trainer.train.rollback_factor)
    while True:
        try:
            return _train(trainer, directory, mesh, profile_steps, spike_watch)
        except LossSpike as spike:
            with Checkpoints(directory / "checkpoints", read_only=True) as checkpoints:
                restart = checkpoints.latest_step() or 0
            note_rollback(directory, spike, restart, trainer.name)
            multihost_utils.sync_global_devices("rollback")


def _train(trainer, directory, mesh, profile_steps, spike_watch) -> dict[str, float]:
    """`train` until the end or a `LossSpike`."""
    settings = trainer.train
    mesh = sharding.mesh_of_stage(mesh, trainer.name)
    sharding.check_batch_size(
        settings.batch_size, mesh, field=f"{trainer.name} batch_size", slices=settings.accumulation_slices
    )
    best_metric, best_mode = trainer.best_metric
    lead = jax.process_index() == 0
    with (
        PreemptionSignal() as preemption,
        Checkpoints(directory / "checkpoints", best_metric=best_metric, best_mode=best_mode) as checkpoints,
    ):
        # Steps count what was learned from, batches what was read.
        batches = trainer.make_batches().slice(slice(skipped_batches(directory), None))
        frozen = jax.device_put(trainer.init_frozen(), sharding.replicated(mesh))
        state, start, meta = restore_or_init(trainer, checkpoints, mesh)
        seconds = meta["seconds"]
        writer = make_writer(directory, enabled=lead, resume_step=start)
        if lead:
            overview = parameter_overview.get_parameter_overview(state.params, include_stats=False)
            write_text_atomic(directory / "parameters.txt", overview + "\n")
        watches = trainer.make_watches(directory / "metrics.jsonl")
        if start < settings.total_steps:
            step_fn = compile_step(trainer, state, frozen, batches[start], mesh)
        evaluate = EvaluationHook(trainer, frozen, mesh, directory, writer)
        profile = Profile(directory / "profile", *profile_steps)
        window = MetricWindow(trainer, batches, state.params, start, seconds, directory, checkpoints)
        results: dict[str, float] = {}
        if not meta["evaluated"] and start < settings.total_steps:
            results |= evaluate(start, state, evaluate.due(start))  # It was interrupted.

        with (
            Watchdog(trainer.name, settings.hang_seconds) as watchdog,
            Progress(trainer.name, settings.total_steps, start, seconds, enabled=lead) as progress,
        ):
            device_batches = window.timed(iterate_batches(trainer, batches, start, mesh))
            for step, batch in enumerate(device_batches, start):
                state, metrics = step_fn(state, batch, frozen)
                window.append(metrics)
                profile(step, metrics)
                watchdog.beat()
                done = step + 1
                evaluators = evaluate.due(done)
                preempted = preemption.stop_requested()
                save_due = (
                    done % settings.checkpoint_every_steps == 0
                    or done == settings.total_steps
                    or bool(evaluators)
                    or preempted
                )
                # Before anything is saved or judged, it is known to be finite.
                log_due = save_due or done % settings.log_every_steps == 0 or done == start + 1
                if log_due:
                    means = window.flush(done)
                    spike_watch(done, means["train/loss"])
                    writer.write_scalars(done, means)
                    progress.update(done, loss=means["train/loss"])
                meta = {"data_position": done, "seconds": window.seconds, "evaluated": True}
                with watchdog.paused():
                    if evaluators:
                        try:
                            # Whoever is asked to end saves first, and evaluates when started again.
                            if preempted:
                                raise Preempted(f"{trainer.name} is saved at step {done}")
                            evaluation = evaluate(done, state, evaluators)
                        except Preempted:
                            checkpoints.save(done, state, meta | {"evaluated": False})
                            raise
                        results |= evaluation
                        means |= evaluation
                    if save_due:
                        checkpoints.save(done, state, meta, evaluate.metrics_of(done))
                        window.restart_clock()
                # Whoever ends a training here has lost nothing that was to be saved.
                if log_due and done < settings.total_steps:
                    for watch in watches:
                        watch(done, means)
                if preempted and done < settings.total_steps:
                    raise Preempted(f"{trainer.name} is saved at step {done}")
        profile.close()
        if not results:  # Killed between the last checkpoint and the result.
            results = evaluate(settings.total_steps, state, trainer.evaluators)
        writer.close()

    results |= {"step": settings.total_steps, "seconds": window.seconds}
    results["perf/images_per_sec"] = settings.batch_size * settings.total_steps / window.seconds
    if lead:
        write_json_atomic(directory / "result.json", results)
    return results


def read_result(directory: Path) -> dict[str, float] | None:
    """The result of a finished training in `directory`, or None."""
    path = directory / "result.json"
    return read_json(path) if path.exists() else None


def restore_or_init(
    trainer: Trainer, checkpoints: Checkpoints, mesh: jax.sharding.Mesh
) -> tuple[TrainState, int, dict[str, Any]]:
    """(state born sharded, first step to run, the checkpoint's "seconds" so far and "evaluated")."""
    init = trainer.init
    key = jax.random.key(trainer.seed)
    shapes = jax.eval_shape(init, key)
    shardings = sharding.param_shardings(shapes, mesh)
    for name, params in shapes.params.items():
        count = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
        log.info("%s: %s has %s parameters", trainer.name, name, f"{count:,}")
    if checkpoints.latest_step() is None:
        log.info("%s: starting", trainer.name)
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        lowered = jax.jit(init, out_shardings=shardings).lower(key)
        state = lowered.compile(compiler_options=QUICK_TO_COMPILE if on_cpu else None)(key)
        return state, 0, {"seconds": 0.0, "evaluated": True}
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )
    state, meta = checkpoints.restore(abstract)
    log.info("%s: going on from step %d", trainer.name, meta["data_position"])
    return state, meta["data_position"], {"evaluated": True} | meta


def compile_step(
    trainer: Trainer, state: TrainState, frozen: PyTree, batch: dict, mesh: jax.sharding.Mesh
) -> Callable:
    """The train step compiled ahead of time, with donated state; logs what it took."""
    log.info("%s: compiling the step, which the compilation cache keeps for the next run", trainer.name)
    began = time.perf_counter()
    step_fn = jit_step(trainer, state, mesh)
    compiled = step_fn.lower(state, sharding.put_batch(batch, mesh), frozen).compile()
    memory = compiled.memory_analysis()
    megabytes = (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**20 if memory else math.nan
    seconds = time.perf_counter() - began
    log.info("%s: step compiled in %.1f s, needs %.0f MiB a device", trainer.name, seconds, megabytes)
    return compiled


def jit_step(trainer: Trainer, state: TrainState, mesh: jax.sharding.Mesh) -> Callable:
    """The train step as a jitted function on a mesh, which takes the state's memory for its result.

    Args:
        trainer: the stage.
        state: arrays or ShapeDtypeStructs.
        mesh: of all devices.
    """
    state_shardings = sharding.param_shardings(state, mesh)
    whole = sharding.replicated(mesh)

    def train_step(state, batch, frozen):
        params = sharding.gather(state.params, mesh, state_shardings.params)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            new, metrics = trainer.train_step(state.replace(params=params), batch, frozen)
        if trainer.train.skip_nonfinite_steps:
            new = skip_nonfinite(state, new, metrics)
        return new, metrics

    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(state_shardings, sharding.batch_sharding(mesh), whole),
        out_shardings=(state_shardings, whole),
    )


def iterate_batches(trainer: Trainer, batches: grain.MapDataset, start: int, mesh: jax.sharding.Mesh):
    """The batches of the steps from `start` to the end, on the devices.

    Steps are dispatched without waiting for their results, so the next batch is read while one runs.
    """
    settings, data = trainer.train, trainer.data
    ahead = dict(num_threads=data.num_threads, num_workers=data.num_workers)
    # Closed on every way out: reading threads and worker processes end with the training.
    with contextlib.closing(iterate(batches, start, **ahead)) as host_batches:
        for _ in range(start, settings.total_steps):
            yield sharding.put_batch(next(host_batches), mesh)
