"""Items of a raw data set to array_record shards: by threads, each shard whole or not at all.

A shard that is there already, of the same items and files, is kept: a call that was broken off, even by
kill -9, loses no more than the shards that were under work.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import tensorflow_datasets as tfds
from tensorflow_datasets.core import writer as tfds_writer
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from regvq_jax.data.images import ImageError
from regvq_jax.files import read_json, report_write_errors, write_json_atomic
from regvq_jax.progress import Progress

CODE_VERSION = 1  # of what is written; shards of another one are not kept
SHARD_EXAMPLES = 1024


class Item(NamedTuple):
    """One example before it is read.

    Attributes:
        key: unique in its split, the same wherever the raw files lie.
        facts: what `Layout.read` needs to know; paths in the tree among them are texts, so that a shard
            is made anew when one of its files has changed in size.
    """

    key: str
    facts: Any = None


class Layout(Protocol):
    """Where a download has its examples.

    Attributes:
        notes: what is worth a line in the report, filled by `items`.
    """

    notes: list[str]

    def items(self) -> dict[str, list[Item]]:
        """The items of each split; UserError where the files are not laid out as they should be."""

    def read(self, item: Item) -> dict[str, Any]:
        """The features of an item, images as the bytes of a file; ImageError: it is skipped. Thread-safe."""


class ShardResult(NamedTuple):
    """What is known of a shard.

    Attributes:
        path: where it lies.
        examples: how many it has.
        num_bytes: its size.
        skipped: (key, reason) of each item that could not be read.
    """

    path: Path
    examples: int
    num_bytes: int
    skipped: list[tuple[str, str]]


class _Part(NamedTuple):
    """The items of one shard, a digest of them and of the sizes of their files, and its place."""

    path: Path
    items: list[Item]
    digest: str


class ShardWriter:
    """Writes the items of each split into shards of `SHARD_EXAMPLES`."""

    def __init__(
        self,
        directory: Path,
        *,
        name: str,
        features: tfds.features.FeaturesDict,
        file_format: Any,
        num_workers: int,
    ):
        """Writes nothing yet.

        Args:
            directory: for the shards, kept between calls.
            name: of the data set, beside the progress.
            features: that an example has.
            file_format: of tensorflow-datasets.
            num_workers: threads; one shard is written by one of them.
        """
        self._directory, self._name, self._num_workers = directory, name, num_workers
        self._features, self._file_format = features, file_format

    def write(
        self, layout: Layout, splits: Mapping[str, Sequence[Item]], sizes: Mapping[str, int]
    ) -> dict[str, list[ShardResult]]:
        """Writes the shards that are not there yet.

        Args:
            layout: that reads the items.
            splits: items in the order in which they are written.
            sizes: bytes of the raw files by path.

        Returns:
            For each split, its shards in order.

        Raises:
            UserError: the disk is full, or `layout` has raised it.
        """
        with report_write_errors(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)
        parts = {split: self._cut(split, items, sizes) for split, items in splits.items()}
        everything = [part for of_split in parts.values() for part in of_split]
        done = {part.path: result for part in everything if (result := _find(part))}
        missing = [part for part in everything if part.path not in done]
        total, to_do = (sum(len(part.items) for part in some) for some in (everything, missing))
        progress = Progress(self._name, total, total - to_do, unit="examples")
        stop, lock = threading.Event(), threading.Lock()

        def count_one() -> None:
            if stop.is_set():
                raise _Stopped
            with lock:
                progress.update(progress.step + 1)

        with progress, ThreadPoolExecutor(self._num_workers) as pool:
            futures = [pool.submit(self._write_one, layout, part, count_one) for part in missing]
            try:
                for future in as_completed(futures):
                    result = future.result()
                    done[result.path] = result
            finally:  # A failure of one, or Ctrl-C, ends the others at their next example.
                stop.set()
                pool.shutdown(cancel_futures=True)
        return {split: [done[part.path] for part in of_split] for split, of_split in parts.items()}

    def _cut(self, split: str, items: Sequence[Item], sizes: Mapping[str, int]) -> list[_Part]:
        parts = []
        for i, start in enumerate(range(0, len(items), SHARD_EXAMPLES)):
            some = list(items[start : start + SHARD_EXAMPLES])
            used = [sizes.get(text) for item in some for text in _strings(item.facts)]
            digest = hashlib.sha256(ascii((CODE_VERSION, some, used)).encode()).hexdigest()
            parts.append(_Part(self._directory / f"{split}-{i:05d}", some, digest))
        return parts

    def _write_one(self, layout: Layout, part: _Part, count_one: Callable[[], None]) -> ShardResult:
        skipped, examples = [], 0
        serializer = ExampleSerializer(self._features.get_serialized_info())

        def serialized() -> Iterator[tuple[str, bytes]]:
            nonlocal examples
            for item in part.items:
                try:
                    example = layout.read(item)
                except (ImageError, OSError) as error:
                    skipped.append((item.key, str(error)))
                else:
                    examples += 1
                    proto = serializer.get_tf_example(self._features.encode_example(example))
                    # Otherwise the order of the features is another one in every process.
                    yield item.key, proto.SerializeToString(deterministic=True)
                count_one()

        # Two calls at a time must not write into one file.
        partial = part.path.with_name(f"{part.path.name}.{os.getpid()}")
        with report_write_errors(part.path), _array_record_errors(partial):
            tfds_writer.ExampleWriter(self._file_format).write(partial, serialized())
            partial.replace(part.path)
        result = ShardResult(part.path, examples, part.path.stat().st_size, skipped)
        # Last: a shard without it is not whole.
        record = {"examples": examples, "bytes": result.num_bytes, "skipped": skipped, "items": part.digest}
        write_json_atomic(_record_path(part), record)
        return result


class _Stopped(Exception):
    """Another shard has failed."""


def put_in_place(shard: Path, target: Path) -> None:
    """Gives a shard a second name: were it moved, a failure after that would lose it.

    Raises:
        UserError: the disk says no.
    """
    with report_write_errors(target):
        try:
            target.hardlink_to(shard)
        except OSError:  # Not every file system has hard links.
            shutil.move(shard, target)


def _record_path(part: _Part) -> Path:
    return part.path.with_suffix(".json")


def _find(part: _Part) -> ShardResult | None:
    """A shard of an earlier call, if it is whole and of the same items and files."""
    if not (part.path.exists() and _record_path(part).exists()):
        return None
    record = read_json(_record_path(part))
    same = record.get("items") == part.digest and record["bytes"] == part.path.stat().st_size
    # What could not be read may have been fetched again.
    if not same or record["skipped"]:
        return None
    return ShardResult(part.path, record["examples"], record["bytes"], [])


def _strings(facts: Any) -> Iterator[str]:
    """All texts in nested facts, the paths of files among them."""
    if isinstance(facts, str):
        yield facts
    elif isinstance(facts, Mapping):
        yield from _strings(tuple(facts.values()))
    elif isinstance(facts, tuple | list):
        for part in facts:
            yield from _strings(part)


@contextlib.contextmanager
def _array_record_errors(path: Path) -> Iterator[None]:
    """Makes an OSError of what array_record says when it cannot write a file."""
    try:
        yield
    except RuntimeError as error:
        if os.fspath(path) not in str(error):
            raise
        raise OSError(errno.EIO, str(error).partition(";")[0]) from error
