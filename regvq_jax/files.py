"""Small files that are written whole or not at all, and clear words when the disk says no."""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
from etils import epath

from regvq_jax.errors import UserError

PROBE_BYTES = 2**16


@contextlib.contextmanager
def report_write_errors(path: epath.PathLike) -> Iterator[None]:
    """Turns an OSError inside the block (no space, no permission) into one sentence about `path`.

    Raises:
        UserError: the block raised OSError.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"Cannot write {os.fspath(path)}: {error.strerror or error}; free some space, or name "
            "a directory that you may write to."
        ) from error


def to_jsonable(value: Any) -> Any:
    """`value` in JSON's types, with NaN and infinities as the strings "nan", "inf", "-inf".

    Strict readers refuse a bare NaN; Python's `float` reads these strings back.

    Args:
        value: nested mappings, sequences, arrays, numbers, strings, None.
    """
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_jsonable(item) for item in value]
    if hasattr(value, "tolist"):  # numpy and jax, arrays and scalars
        return to_jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def write_text_atomic(path: epath.PathLike, text: str) -> None:
    """Writes a text file in UTF-8; see `write_bytes_atomic`."""
    write_bytes_atomic(path, text.encode())


def write_bytes_atomic(path: epath.PathLike, content: bytes) -> None:
    """Writes a file so that a reader, or a kill at any moment, finds the old or the new one.

    Raises:
        UserError: no space, no permission, or no such directory.
    """
    path = epath.Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with report_write_errors(path):
        try:
            partial.write_bytes(content)
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


def write_json_atomic(path: epath.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON; see `write_text_atomic` and `to_jsonable`.

    Raises:
        UserError: no space or no permission.
    """
    write_text_atomic(path, json.dumps(to_jsonable(value), indent=2, allow_nan=False) + "\n")


def read_json(path: epath.PathLike) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: there is no such file, or it is not JSON.
    """
    try:
        return json.loads(epath.Path(path).read_text())
    except OSError as error:
        raise UserError(f"Cannot read {os.fspath(path)}: {error.strerror or error}.") from error
    except ValueError as error:
        raise UserError(f"{os.fspath(path)} is not valid JSON ({error}); restore or delete it.") from error


def filesystem(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a path or URL, which fsspec keeps, and the path in it.

    Raises:
        UserError: fsspec does not know the storage, or its library is not installed.
    """
    try:
        return fsspec.core.url_to_fs(path)
    except ImportError as error:
        raise UserError(f"{path} needs a library for its storage that is not installed: {error}.") from error
    except ValueError as error:
        raise UserError(f"{path} is in no storage that fsspec knows: {error}.") from error


def cache_dir(name: str) -> Path:
    """Where this machine keeps what can be had again: REGVQ_JAX_CACHE, or ~/.cache/regvq_jax."""
    return Path(os.environ.get("REGVQ_JAX_CACHE", "~/.cache/regvq_jax")).expanduser() / name


def local_copy(path: str | os.PathLike) -> Path:
    """A file or folder that a user names, on this machine: what lies at a URL is fetched once and kept.

    Args:
        path: of a local file or folder, "~" and all, which is returned as it is, there or not; or the URL of
            a file (gs://, s3://, https://, ...), kept in `cache_dir("files")` until it changes.

    Raises:
        UserError: the URL cannot be read, or the library for its storage is not installed.
    """
    path = os.fspath(path)
    if "://" not in path:
        return Path(path).expanduser()
    options = {"cache_storage": str(cache_dir("files")), "check_files": True}
    try:
        return Path(fsspec.open_local(f"filecache::{path}", mode="rb", filecache=options))
    except ImportError as error:
        raise UserError(f"{path} needs a library for its storage that is not installed: {error}.") from error
    except Exception as error:  # Each storage has errors of its own: no network, no credentials, ...
        raise UserError(f"Cannot fetch {path}: {type(error).__name__}: {error}.") from error


def check_writable(directory: epath.PathLike) -> None:
    """Makes `directory` and writes and removes a small file in it, before hours are spent on a run.

    Raises:
        UserError: no space or no permission.
    """
    directory = epath.Path(directory)
    probe = directory / f".write_test.{os.getpid()}"
    with report_write_errors(directory):
        try:
            directory.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(bytes(PROBE_BYTES))
        finally:
            # Missing where the directory itself could not be made.
            if probe.exists():
                probe.unlink()
