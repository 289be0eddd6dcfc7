"""A run's numbers: means over steps, the first that is not finite, and the writer they go to."""

import os
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from etils import epath
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter

from regvq_jax.files import report_write_errors
from regvq_jax.metric_writers import (
    JsonlWriter,
    LogWriter,
    MultiWriter,
    NullWriter,
    Scalar,
    TensorBoardWriter,
)


class Occasional(NamedTuple):
    """A metric that not every step has, from a jitted step that must return the same names at every one.

    Attributes:
        value: float32 []; means nothing where it is not present.
        present: float32 [], 1 = this step has it, 0 = it has not.
    """

    value: Scalar
    present: Scalar


def make_writer(
    directory: epath.PathLike,
    *,
    log: bool = True,
    enabled: bool = True,
    resume_step: int | None = None,
) -> NullWriter:
    """A writer of TensorBoard events and metrics.jsonl in `directory`.

    The events come from CLU's default writer where tensorflow and tensorboard are installed, and
    from tensorboardX elsewhere, with the same tags.

    Args:
        directory: made if it does not exist.
        log: also write to the log, at debug level.
        enabled: False gives a writer that does nothing (processes other than the first).
        resume_step: finished steps of the run that is resumed; what was written for later steps is
            dropped from metrics.jsonl and hidden in TensorBoard.

    Returns:
        An object with CLU's MetricWriter interface, and an instance of that class where CLU has it.

    Raises:
        UserError: no space or no permission in `directory`.
    """
    if not enabled:
        return NullWriter()
    directory = epath.Path(directory)
    with report_write_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        if resume_step is not None:
            _hide_later_events(directory, resume_step)
    # First the file whose errors are the clearest.
    writers = [JsonlWriter(directory / "metrics.jsonl", resume_step)]
    writers.append(_make_clu_writer(directory) or TensorBoardWriter(directory))
    if log:
        writers.append(LogWriter())
    return MultiWriter(writers)


def average(metrics: Sequence[Mapping[str, Scalar | Occasional]]) -> dict[str, float]:
    """The mean of every metric over the steps that have it, read from the devices in one go."""
    values: dict[str, list[float]] = {}
    for one_step in map(_present, jax.device_get(list(metrics))):
        for name, value in one_step.items():
            values.setdefault(name, []).append(float(value))
    return {name: float(np.mean(parts)) for name, parts in values.items()}


def first_nonfinite(
    metrics: Sequence[Mapping[str, Scalar | Occasional]], start_step: int
) -> tuple[int, str] | None:
    """The first step with a NaN or infinity, and the name of the metric, or None.

    Args:
        metrics: of consecutive steps.
        start_step: step of the first of them.
    """
    for step, one_step in enumerate(map(_present, jax.device_get(list(metrics))), start_step):
        for name, value in one_step.items():
            if not np.isfinite(value).all():
                return step, name
    return None


def _present(one_step: Mapping[str, Scalar | Occasional]) -> dict[str, Scalar]:
    """The metrics that a step has, as numbers."""
    return {
        name: value.value if isinstance(value, Occasional) else value
        for name, value in one_step.items()
        if not isinstance(value, Occasional) or value.present
    }


def _hide_later_events(directory: epath.Path, resume_step: int) -> None:
    """Tells TensorBoard to forget the steps after `resume_step` that the existing files hold."""
    if not any("tfevents" in path.name for path in directory.iterdir()):
        return
    now = time.time()
    # TensorBoard reads files in the order of their names: "-" comes before any host name.
    records = RecordWriter(os.fspath(directory / f"events.out.tfevents.{int(now):010d}.-resumed"))
    records.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
    start = SessionLog(status=SessionLog.START)
    restart = Event(wall_time=now, step=resume_step + 1, session_log=start)
    # Twice, for it takes the first it meets for the beginning of the run.
    records.write(restart.SerializeToString())
    records.write(restart.SerializeToString())
    records.close()


def _make_clu_writer(directory: epath.Path):
    """CLU's default writer, or None where tensorflow or tensorboard is missing."""
    try:
        import tensorflow as tf
        from clu import metric_writers
    except ImportError:
        return None
    # Otherwise tensorflow takes all the memory of a GPU at its first operation.
    if tf.config.get_visible_devices("GPU"):
        tf.config.set_visible_devices([], "GPU")
    metric_writers.MetricWriter.register(NullWriter)
    return metric_writers.create_default_writer(os.fspath(directory))
