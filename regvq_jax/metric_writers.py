"""Writers of numbers, pictures and texts, with the interface of CLU's MetricWriter."""

import itertools
import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.utils import make_grid

from regvq_jax.files import report_write_errors, to_jsonable, write_text_atomic

Array = np.ndarray | jax.Array
Scalar = int | float | np.number | Array
log = logging.getLogger("regvq_jax")
_event_file_numbers = itertools.count()


class NullWriter:
    """CLU's MetricWriter interface, doing nothing; the others override what they have a use for.

    It does not inherit from CLU's class, because that cannot be imported without tensorflow.
    """

    def write_summaries(
        self, step: int, values: Mapping[str, Array], metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Raw tensors with TensorBoard plugin metadata (CLU's own writers only)."""

    def write_scalars(self, step: int, scalars: Mapping[str, Scalar]) -> None:
        """Numbers by tag, one per tag and step."""

    def write_images(self, step: int, images: Mapping[str, Array]) -> None:
        """Images by tag, uint8 or float in [0, 1], [B, H, W, C] or [H, W, C], C = 1 or 3."""

    def write_videos(self, step: int, videos: Mapping[str, Array]) -> None:
        """Not supported by any writer."""

    def write_audios(self, step: int, audios: Mapping[str, Array], *, sample_rate: int) -> None:
        """Sounds by tag (CLU's own writers only)."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Markdown by tag."""

    def write_histograms(
        self,
        step: int,
        arrays: Mapping[str, Array],
        num_buckets: Mapping[str, int] | None = None,
    ) -> None:
        """Histograms of all values of an array, by tag."""

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """The config, nested or flat; once."""

    def flush(self) -> None:
        """Puts everything on the disk."""

    def close(self) -> None:
        """Flushes and frees; nothing may be written afterwards."""


class JsonlWriter(NullWriter):
    """Scalars and texts, a JSON object a line: {"step": 10, "time": 1.7e9, "train/loss": 0.5}."""

    def __init__(self, path: epath.PathLike, resume_step: int | None = None):
        """Opens `path` to append.

        Args:
            path: made if it does not exist.
            resume_step: finished steps; lines of later steps are dropped, for the resumed run
                writes them again. None keeps all. A line cut off by a kill is always dropped.
        """
        self._path = epath.Path(path)
        if self._path.exists():
            text = self._path.read_text()
            limit = math.inf if resume_step is None else resume_step
            kept = [line for line in text.splitlines() if _step_of(line) <= limit]
            kept_text = "".join(f"{line}\n" for line in kept)
            if kept_text != text:
                write_text_atomic(self._path, kept_text)
        with report_write_errors(self._path):
            self._file = self._path.open("a")

    def write_scalars(self, step, scalars):
        self._write(step, {tag: _to_number(value) for tag, value in scalars.items()})

    def write_texts(self, step, texts):
        self._write(step, texts)

    def flush(self):
        with report_write_errors(self._path):
            self._file.flush()

    def close(self):
        with report_write_errors(self._path):
            self._file.close()

    def _write(self, step: int, values: Mapping[str, Any]) -> None:
        line = {"step": int(step), "time": round(time.time(), 3), **to_jsonable(values)}
        with report_write_errors(self._path):
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            # A reader, and a run that is killed, should find whole lines.
            self._file.flush()


def read_jsonl(path: epath.PathLike) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, with "nan" and "inf" turned back into floats."""
    text = epath.Path(path).read_text()
    lines = [line for line in text.splitlines() if _step_of(line) < math.inf]
    special = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}

    def decode(value):
        return special.get(value, value) if isinstance(value, str) else value

    return [{tag: decode(value) for tag, value in json.loads(line).items()} for line in lines]


class TensorBoardWriter(NullWriter):
    """TensorBoard events without tensorflow, under the tags that CLU's SummaryWriter uses.

    Writes in the calling thread: tensorboardX's own writer hangs when its thread meets a full disk.
    """

    def __init__(self, directory: epath.PathLike):
        directory = epath.Path(directory)
        self._directory = directory
        with report_write_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            # File names have a resolution of a second, and an existing file would be overwritten.
            unique = f".{os.getpid()}.{next(_event_file_numbers)}"
            self._events = EventsWriter(os.fspath(directory / "events"), unique)

    def write_scalars(self, step, scalars):
        for tag, value in scalars.items():
            self._write(step, tag, summary.scalar(tag, _to_number(value)))

    def write_images(self, step, images):
        for tag, batch in images.items():
            grid = make_grid(np.moveaxis(to_uint8_batch(batch), -1, 1))
            self._write(step, tag, summary.image(tag, grid, dataformats="CHW"))

    def write_texts(self, step, texts):
        for tag, text in texts.items():
            self._write(step, tag, summary.text(tag, text))

    def write_histograms(self, step, arrays, num_buckets=None):
        for tag, values in arrays.items():
            values = np.asarray(values, np.float64)
            buckets = (num_buckets or {}).get(tag, 30)
            self._write(step, tag, summary.histogram(tag, values[np.isfinite(values)], buckets))

    def write_hparams(self, hparams):
        # The session's start alone, as CLU writes it; TensorBoard infers the rest.
        _, session_start, _ = summary.hparams(flatten_hparams(hparams), {})
        self._write(0, session_start.value[0].tag, session_start)

    def flush(self):
        with report_write_errors(self._directory):
            self._events.flush()

    def close(self):
        with report_write_errors(self._directory):
            self._events.close()

    def _write(self, step: int, tag: str, content) -> None:
        content.value[0].tag = tag  # tensorboardX alters some tags
        with report_write_errors(self._directory):
            self._events.write_event(Event(wall_time=time.time(), step=int(step), summary=content))


class LogWriter(NullWriter):
    """Numbers and texts as debug lines of the package's log."""

    def write_scalars(self, step, scalars):
        shown = (f"{tag}={_to_number(value):.6g}" for tag, value in scalars.items())
        log.debug("[%d] %s", step, ", ".join(shown))

    def write_texts(self, step, texts):
        for tag, text in texts.items():
            log.debug("[%d] %s: %s", step, tag, text)


class MultiWriter(NullWriter):
    """Passes everything on to several writers, as numpy arrays."""

    def __init__(self, writers: Sequence[Any]):
        """Takes objects with the interface of `NullWriter`, written to in this order."""
        self._writers = tuple(writers)

    def write_summaries(self, step, values, metadata=None):
        for writer in self._writers:
            writer.write_summaries(step, values, metadata)

    def write_scalars(self, step, scalars):
        # One transfer for all; a dict would come back sorted.
        numbers = map(_to_number, jax.device_get(list(scalars.values())))
        scalars = dict(zip(scalars, numbers, strict=True))
        for writer in self._writers:
            writer.write_scalars(step, scalars)

    def write_images(self, step, images):
        images = {tag: to_uint8_batch(value) for tag, value in images.items()}
        for writer in self._writers:
            writer.write_images(step, images)

    def write_videos(self, step, videos):
        for writer in self._writers:
            writer.write_videos(step, videos)

    def write_audios(self, step, audios, *, sample_rate):
        for writer in self._writers:
            writer.write_audios(step, audios, sample_rate=sample_rate)

    def write_texts(self, step, texts):
        for writer in self._writers:
            writer.write_texts(step, texts)

    def write_histograms(self, step, arrays, num_buckets=None):
        arrays = jax.device_get(dict(arrays))
        for writer in self._writers:
            writer.write_histograms(step, arrays, num_buckets)

    def write_hparams(self, hparams):
        hparams = flatten_hparams(hparams)
        for writer in self._writers:
            writer.write_hparams(hparams)

    def flush(self):
        for writer in self._writers:
            writer.flush()

    def close(self):
        for writer in self._writers:
            writer.close()


def to_uint8_batch(images: Array) -> np.ndarray:
    """Images uint8 or float in [0, 1], [B, H, W, C] or [H, W, C], to uint8 [B, H, W, C]."""
    images = np.asarray(images)
    if images.dtype != np.uint8:
        images = np.round(np.clip(images.astype(np.float32), 0.0, 1.0) * 255.0).astype(np.uint8)
    return images if images.ndim == 4 else images[None]


def flatten_hparams(hparams: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """A nested config as {"optim.lr": 1e-4}; what is no number becomes text."""
    flat = {}
    for name, value in hparams.items():
        if isinstance(value, Mapping) or hasattr(value, "items"):
            flat |= {f"{name}.{key}": item for key, item in flatten_hparams(value).items()}
        else:
            flat[str(name)] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat


def _to_number(value: Scalar) -> int | float:
    return np.asarray(value).item()


def _step_of(line: str) -> float:
    """The step of a jsonl line, or infinity where the line is not whole."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf
