"""The token cache: what a frozen tokenizer made of every image, in array_record shards.

    tokens-00000-of-00003.array_record ...   one msgpack record per image
    meta.json                                written last: a cache without it is unfinished

A record is {"codes": bytes, "texts": [str, ...]}: codes row by row, little-endian, uint16 where the
codebook has at most 65,536 entries, else uint32.
"""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from absl import logging
from array_record.python import array_record_data_source, array_record_module

from regvq_jax.data.captions import caption_fields
from regvq_jax.data.token_meta import META_NAME, TokenMeta, check_meta, is_finished, read_meta
from regvq_jax.errors import UserError

__all__ = ["TokenMeta", "TokenSource", "check_meta", "is_finished", "read_meta", "write_tokens"]

_UNFINISHED_NAME = "meta.unfinished.json"  # What the shards of an interrupted run belong to.
_SHARD_PATTERN = "tokens-*-of-*.array_record*"

Captions = str | Sequence[str] | None


class TokenSource:
    """A finished token cache as a data source: as `sources.Source`, with tokens for images.

    Attributes:
        meta: the cache's `TokenMeta`.
        name: "tokens:DIRECTORY".
        fingerprint: 16 hex digits, of `meta`.
        has_text: elements have "text" and "texts".
        has_labels: False.
    """

    has_labels = False

    def __init__(self, directory: str | os.PathLike):
        """Opens a cache.

        Raises:
            UserError: it is unfinished, or a shard is missing or damaged.
        """
        self.meta = read_meta(directory)
        self.name = f"tokens:{os.fspath(directory)}"
        self.fingerprint = hashlib.sha256(self.meta.to_json().encode()).hexdigest()[:16]
        self.has_text = self.meta.has_text
        paths = _shard_paths(Path(directory), self.meta)
        for i, path in enumerate(paths):
            expected, found = _shard_length(self.meta, i), _count_records(path)
            if found != expected:
                problem = "damaged" if path.is_file() else "missing"
                raise UserError(
                    f"Token shard {path} is {problem} ({found} of {expected} records): delete "
                    f"{Path(directory)} and run the token stage again."
                )
        # Opens a shard when it is first read, and again where it was unpickled.
        self._records = array_record_data_source.ArrayRecordDataSource([str(p) for p in paths])

    def __len__(self) -> int:
        return self.meta.num_examples

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Reads one record.

        Args:
            index: in [0, len).

        Returns:
            {"tokens": int32 [N]} and, with captions, "text": str and "texts": tuple of str.

        Raises:
            UserError: the record is damaged.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            record = msgpack.unpackb(self._records[index])
            codes = np.frombuffer(record["codes"], dtype=_code_dtype(self.meta.codebook_size))
            texts = record["texts"]
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"Record {index} of {self.name} is damaged ({error}): delete the directory and run "
                f"the token stage again."
            ) from error
        return {"tokens": codes.astype(np.int32), **caption_fields(texts, index)}


def write_tokens(
    directory: str | os.PathLike,
    meta: TokenMeta,
    examples: Callable[[int, int], Iterable[tuple[np.ndarray, Captions]]],
    shard_size: int = 4096,
) -> None:
    """Writes a token cache; what an interrupted run has finished of it is kept, not encoded again.

    Args:
        directory: made if need be; one process writes.
        meta: of the whole cache.
        examples: `examples(start, stop)` yields (codes int [h, w], captions) of the images start to
            stop - 1, in order; called once per missing shard. Captions are one string, several, or
            None.
        shard_size: records per shard; replaces `meta.shard_size`.

    Raises:
        UserError: the directory holds a finished cache of something else, or cannot be written.
    """
    directory, meta = Path(directory), dataclasses.replace(meta, shard_size=shard_size)
    if meta.num_examples < 1:
        raise UserError(f"There are no {meta.split} images to write tokens of to {directory}.")
    if is_finished(directory):
        check_meta(read_meta(directory), directory=directory, **dataclasses.asdict(meta))
        return
    with _writing_to(directory):
        directory.mkdir(parents=True, exist_ok=True)
        _clear_foreign(directory, meta)
    for i, path in enumerate(_shard_paths(directory, meta)):
        length = _shard_length(meta, i)
        if _count_records(path) == length:
            logging.info("Token shard %s is complete and kept.", path)
            continue
        _write_shard(path, meta, examples(i * shard_size, i * shard_size + length), length)
    with _writing_to(directory):
        _write_atomically(directory / META_NAME, meta.to_json())
        (directory / _UNFINISHED_NAME).unlink()


@contextlib.contextmanager
def _writing_to(directory: Path) -> Iterator[None]:
    # array_record reports a full disk as a RuntimeError.
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise UserError(f"Cannot write the token cache in {directory}: {error}.") from error


def _clear_foreign(directory: Path, meta: TokenMeta) -> None:
    """Removes the shards of an unfinished cache of something else, and begun ones."""
    unfinished = directory / _UNFINISHED_NAME
    agrees = unfinished.exists() and unfinished.read_text(encoding="utf-8") == meta.to_json()
    for path in directory.glob(_SHARD_PATTERN):
        if not agrees or path.suffix == ".tmp":
            logging.info("Removing %s of an interrupted run.", path)
            path.unlink()
    _write_atomically(unfinished, meta.to_json())


def _write_shard(
    path: Path, meta: TokenMeta, examples: Iterable[tuple[np.ndarray, Captions]], length: int
) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with _writing_to(path.parent):
        # Groups of 1: every record can be read without its neighbours.
        writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1")
    count = 0
    for codes, captions in examples:
        record = _pack(codes, captions, meta)
        with _writing_to(path.parent):
            writer.write(record)
        count += 1
    if count != length:
        raise ValueError(f"examples() gave {count} examples for {path.name}, expected {length}.")
    with _writing_to(path.parent):
        writer.close()
        _replace_durably(temporary, path)


def _pack(codes: np.ndarray, captions: Captions, meta: TokenMeta) -> bytes:
    codes = np.asarray(codes)
    if codes.shape != meta.grid or not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"Codes must be int {meta.grid}, got {codes.dtype} {codes.shape}.")
    if codes.min() < 0 or codes.max() >= meta.codebook_size:
        raise ValueError(f"Codes {codes.min()}..{codes.max()} leave [0, {meta.codebook_size}).")
    texts = [captions] if isinstance(captions, str) else list(captions or ())
    if bool(texts) != meta.has_text:
        raise ValueError(f"has_text is {meta.has_text}, but the captions are {captions!r}.")
    content = codes.astype(_code_dtype(meta.codebook_size)).tobytes()
    return msgpack.packb({"codes": content, "texts": texts})


def _code_dtype(codebook_size: int) -> np.dtype:
    return np.dtype("<u2" if codebook_size <= 65536 else "<u4")


def _shard_paths(directory: Path, meta: TokenMeta) -> list[Path]:
    count = -(-meta.num_examples // meta.shard_size)
    return [directory / f"tokens-{i:05d}-of-{count:05d}.array_record" for i in range(count)]


def _shard_length(meta: TokenMeta, shard: int) -> int:
    return min(meta.shard_size, meta.num_examples - shard * meta.shard_size)


def _count_records(path: Path) -> int:
    """Records in a shard; 0 where it is missing or damaged."""
    try:
        reader = array_record_module.ArrayRecordReader(str(path))
        count = reader.num_records()
        reader.close()
    except RuntimeError:
        return 0
    return count


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    _replace_durably(temporary, path)


def _replace_durably(temporary: Path, path: Path) -> None:
    # The content must reach the disk before the name does, or a power cut leaves an empty file.
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
