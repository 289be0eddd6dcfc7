"""Writing a token cache: shards that are whole or not there, shared out to the processes of a run.

All processes must see one directory. Process 0 says in `meta.unfinished.json` what the shards
belong to, before any other begins; process p writes the shards p, p + P, ...; when every shard is
there, process 0 writes `meta.json`, for which the others wait. They agree through these files
alone, so that nothing is taken for finished after any of them was killed, at any moment, and a run
with another number of processes goes on with the shards that are there.
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from absl import logging
from array_record.python import array_record_module

from regvq_jax.data.token_meta import META_NAME, TokenMeta, check_meta, is_finished, read_meta
from regvq_jax.data.token_records import TokenExample, pack_record
from regvq_jax.errors import UserError

POLL_SECONDS = 0.2  # between two looks at what the other processes have done
_TOUCH_SECONDS = 10.0  # between two signs of life to them
_UNFINISHED_NAME = "meta.unfinished.json"
_SHARD_PATTERN = "tokens-*-of-*.array_record*"


def write_tokens(
    directory: str | os.PathLike,
    meta: TokenMeta,
    examples: Callable[[int, int], Iterable[TokenExample | tuple]],
    shard_size: int = 4096,
    *,
    process_index: int = 0,
    process_count: int = 1,
    poll_fn: Callable[[], None] = lambda: None,
    stall_seconds: float = 1800.0,
) -> int:
    """Writes a token cache; what an interrupted run has finished of it is kept, not encoded again.

    Every process calls it, with the same arguments but for its index; it returns when the whole cache
    is finished.

    Args:
        directory: made if need be; the same one for all processes.
        meta: of the whole cache.
        examples: `examples(start, stop)` yields the `TokenExample`s (or their fields in a tuple, the
            last ones left out) of the records start to stop - 1, in order; called once for each of
            this process's missing shards.
        shard_size: records per shard; replaces `meta.shard_size`.
        process_index: p, this process.
        process_count: P, all of them.
        poll_fn: called now and then while waiting for other processes; what it raises ends the wait.
        stall_seconds: a wait in which nothing happens to the files for so long is given up.

    Returns:
        How many records this process wrote; 0 where the cache was finished.

    Raises:
        UserError: the directory holds a finished cache of something else, or cannot be written, or
            another process has gone.
    """
    directory, meta = Path(directory), dataclasses.replace(meta, shard_size=shard_size)
    if meta.num_examples < 1:
        raise UserError(f"There are no {meta.split} images to write tokens of to {directory}.")
    written = 0
    if not is_finished(directory):

        def wait(done_fn: Callable[[], bool], what: str) -> None:
            _wait(done_fn, what, directory, poll_fn, stall_seconds)

        if process_index == 0:
            with _writing_to(directory):
                directory.mkdir(parents=True, exist_ok=True)
                _clear_foreign(directory, meta)
        else:
            wait(lambda: is_finished(directory) or _agrees(directory, meta), "process 0 to begin")
        paths = shard_paths(directory, meta)
        for i in range(process_index, len(paths), process_count):
            length = shard_length(meta, i)
            if count_records(paths[i]) == length:
                logging.info("Token shard %s is complete and kept.", paths[i])
                continue
            _write_shard(paths[i], meta, examples(i * shard_size, i * shard_size + length), length)
            written += length
        if process_index == 0:
            missing = dict(enumerate(paths))

            def all_there() -> bool:
                for i, path in list(missing.items()):
                    if path.exists() and count_records(path) == shard_length(meta, i):
                        del missing[i]
                return not missing

            wait(all_there, "the shards of the other processes")
            _finish(directory, meta)
        else:
            wait(lambda: is_finished(directory), "process 0 to finish")
    check_meta(read_meta(directory), directory=directory, **dataclasses.asdict(meta))
    return written


def shard_paths(directory: Path, meta: TokenMeta) -> list[Path]:
    """The files of a cache, in order."""
    count = -(-meta.num_examples // meta.shard_size)
    return [directory / f"tokens-{i:05d}-of-{count:05d}.array_record" for i in range(count)]


def shard_length(meta: TokenMeta, shard: int) -> int:
    """How many records a shard has when it is complete."""
    return min(meta.shard_size, meta.num_examples - shard * meta.shard_size)


def count_records(path: Path) -> int:
    """Records in a shard; 0 where it is missing or damaged."""
    try:
        reader = array_record_module.ArrayRecordReader(str(path))
        count = reader.num_records()
        reader.close()
    except RuntimeError:
        return 0
    return count


@contextlib.contextmanager
def _writing_to(directory: Path) -> Iterator[None]:
    # array_record reports a full disk as a RuntimeError.
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise UserError(f"Cannot write the token cache in {directory}: {error}.") from error


def _agrees(directory: Path, meta: TokenMeta) -> bool:
    """Whether the shards in an unfinished cache belong to `meta`."""
    try:
        return (directory / _UNFINISHED_NAME).read_text(encoding="utf-8") == meta.to_json()
    except OSError:
        return False


def _clear_foreign(directory: Path, meta: TokenMeta) -> None:
    """Removes the shards of an unfinished cache of something else, then says whose come now."""
    if _agrees(directory, meta):
        return  # Other processes may be at work already.
    for path in directory.glob(_SHARD_PATTERN):
        logging.info("Removing %s of another run.", path)
        path.unlink()
    _write_atomically(directory / _UNFINISHED_NAME, meta.to_json())


def _finish(directory: Path, meta: TokenMeta) -> None:
    with _writing_to(directory):
        _write_atomically(directory / META_NAME, meta.to_json())
        (directory / _UNFINISHED_NAME).unlink(missing_ok=True)
        for path in directory.glob(f"{_SHARD_PATTERN}.tmp"):  # Of processes that were killed.
            path.unlink(missing_ok=True)


def _write_shard(
    path: Path, meta: TokenMeta, examples: Iterable[TokenExample | tuple], length: int
) -> None:
    # A name of its own: a process of an earlier run that still lives must not write to the same file.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with _writing_to(path.parent):
        for stale in path.parent.glob(f"{path.name}.*.tmp"):
            stale.unlink(missing_ok=True)
        # Groups of 1: every record can be read without its neighbours.
        writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1")
    try:
        count, touched = 0, time.monotonic()
        for example in examples:
            record = pack_record(TokenExample(*example), meta)
            with _writing_to(path.parent):
                writer.write(record)
                if time.monotonic() - touched > _TOUCH_SECONDS:
                    touched = time.monotonic()
                    os.utime(temporary)
            count += 1
        if count != length:
            raise ValueError(f"examples() gave {count} examples for {path.name}, expected {length}.")
        with _writing_to(path.parent):
            writer.close()
            _replace_durably(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _wait(
    done_fn: Callable[[], bool],
    what: str,
    directory: Path,
    poll_fn: Callable[[], None],
    stall_seconds: float,
) -> None:
    """Looks again and again until `done_fn()`, or until nothing has happened for long."""
    seen, since = None, time.monotonic()
    while not done_fn():
        poll_fn()
        state = _signs_of_life(directory)
        if state != seen:
            seen, since = state, time.monotonic()
        elif time.monotonic() - since > stall_seconds:
            raise UserError(
                f"Waited {stall_seconds:.0f} s for {what}, and nothing happened in {directory}: see whether "
                "every process runs and sees this directory, then start again; complete shards are kept."
            )
        time.sleep(POLL_SECONDS)


def _signs_of_life(directory: Path) -> dict[str, tuple[int, int]]:
    state = {}
    for path in directory.glob("*"):
        with contextlib.suppress(OSError):  # Renamed meanwhile.
            stat = path.stat()
            state[path.name] = (stat.st_size, stat.st_mtime_ns)
    return state


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    _replace_durably(temporary, path)


def _replace_durably(temporary: Path, path: Path) -> None:
    # The content must reach the disk before the name does, or a power cut leaves an empty file.
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
