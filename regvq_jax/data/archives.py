"""Zip and tar archives that are read in place, on a disk or in remote storage.

Nothing is ever written where an archive says: its names are keys, not places on the disk.
"""

import gzip
import io
import os
import shutil
import tarfile
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import fsspec

from regvq_jax.errors import UserError
from regvq_jax.files import filesystem

ZIP, TAR, GZIPPED_TAR = (".zip",), (".tar",), (".tgz", ".tar.gz")
ARCHIVES = (*ZIP, *TAR, *GZIPPED_TAR)
# No file of a data set is that large: what claims to be is made to fill the memory.
MAX_FILE_BYTES = 2**32
_BLOCK = tarfile.BLOCKSIZE


class File(NamedTuple):
    """One file: `path` relative to the root, with "/", and `size` in bytes."""

    path: str
    size: int


class _Archive:
    """What zip and tar share: opened when it is read first, in each process anew."""

    def __init__(self, name: str):
        self.name = name
        self._lock = threading.Lock()
        self._index: dict[str, Any] | None = None

    def files(self) -> list[File]:
        return sorted(File(path, size) for path, (size, _) in self._entries().items() if not is_hidden(path))

    def open(self, path: str) -> BinaryIO:
        size, where = self._find(path)
        return self._open(where, size)

    def read(self, path: str) -> bytes:
        with self.open(path) as file:
            try:
                return file.read()
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise OSError(5, f"damaged in {self.name} ({error})", path) from error

    def _find(self, path: str) -> tuple[int, Any]:
        entries = self._entries()
        if path not in entries:
            raise FileNotFoundError(2, "no such file", f"{self.name}: {path}")
        if entries[path][0] > MAX_FILE_BYTES:
            raise OSError(27, f"claims to have {entries[path][0]:,} bytes", f"{self.name}: {path}")
        return entries[path]

    def _entries(self) -> dict[str, tuple[int, Any]]:
        """(size in bytes, where it is) by path."""
        with self._lock:
            if self._index is None:
                entries = self._list()
                twice = [path for path, count in Counter(path for path, *_ in entries).items() if count > 1]
                if twice:
                    raise UserError(f"Archive {self.name} has {twice[0]} twice: pack it anew.")
                self._index = {path: (size, where) for path, size, where in entries}
            return self._index

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_lock": None, "_index": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


class Zip(_Archive):
    """A zip file."""

    def __init__(self, path: str):
        super().__init__(path)
        self._zip: zipfile.ZipFile | None = None
        self._entries()  # Damage is found at once.

    def _list(self) -> Iterable[tuple[str, int, Any]]:
        fs, root = filesystem(self.name)
        try:
            self._zip = zipfile.ZipFile(reach(self.name, fs.open, root, "rb"))
        except zipfile.BadZipFile as error:
            raise UserError(
                f"Archive {self.name} is no zip file, or is cut off ({error}): fetch it again."
            ) from error
        return [(_clean(i.filename), i.file_size, i) for i in self._zip.infolist() if not i.is_dir()]

    def _open(self, where: zipfile.ZipInfo, size: int) -> BinaryIO:
        try:
            return self._zip.open(where)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise OSError(5, f"damaged in {self.name} ({error})", where.filename) from error

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_zip": None}


class Tar(_Archive):
    """A tar file: `path` is read, `name` is what the user gave."""

    def __init__(self, path: str, name: str):
        super().__init__(name)
        self._path = path
        self._entries()

    def _list(self) -> Iterable[tuple[str, int, Any]]:
        return [(_clean(name), size, offset) for name, offset, size in tar_index(self._path)]

    def _open(self, where: int, size: int) -> BinaryIO:
        fs, root = filesystem(self._path)
        return _Part(fs.open(root, "rb"), where, size)


class _Part(io.RawIOBase):
    """Bytes `start` to `start + size` of a stream, as a stream."""

    def __init__(self, file: BinaryIO, start: int, size: int):
        self._file, self._start, self._size, self._position = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = max(0, offset + (0, self._position, self._size)[whence])
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer) -> int:
        self._file.seek(self._start + self._position)
        content = self._file.read(max(0, min(len(buffer), self._size - self._position)))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()


def tar_index(path: str) -> list[tuple[str, int, int]]:
    """Where the files of a tar archive begin.

    Args:
        path: of an uncompressed archive, a file or a URL.

    Returns:
        (name, offset of the content, bytes) of every regular file, in the order of the archive.

    Raises:
        UserError: it is no tar archive, or is cut off.
    """
    fs, root = filesystem(path)
    index = []
    try:
        with reach(path, fs.open, root, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.isreg() and not member.issparse():
                    index.append((member.name, member.offset_data, member.size))
            # An archive ends in empty blocks; one that was cut off between two files does not.
            file.seek(tar.offset - _BLOCK if index else 0)
            end = file.read(2 * _BLOCK)
    except tarfile.TarError as error:
        last = f" after {index[-1][0]}" if index else ""
        raise UserError(
            f"Archive {path} is no tar file, or is cut off{last} ({error}): fetch it again."
        ) from error
    if bytes(_BLOCK) not in (end[:_BLOCK], end[_BLOCK:]):
        last = f" after {index[-1][0]}" if index else ""
        raise UserError(f"Archive {path} is cut off{last}: fetch it again.")
    return index


def gunzip(path: str, fs: fsspec.AbstractFileSystem, root: str, scratch: str | os.PathLike | None) -> str:
    """The path of the .tar that a .tar.gz holds, unzipped unless it is there already."""
    if scratch is None:
        raise UserError(
            f"Archive {path} is gzipped, and single files in it cannot be found: unzip it (gunzip) to a .tar."
        )
    target = Path(scratch) / f"{os.path.basename(root)}.{fs.size(root)}.tar"
    if target.exists():
        return str(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    try:
        with fs.open(root, "rb") as packed, gzip.open(packed) as content, partial.open("wb") as file:
            shutil.copyfileobj(content, file, 2**20)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        partial.unlink()
        raise UserError(f"Archive {path} is cut off or damaged ({error}): fetch it again.") from error
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"Cannot unzip {path} to {target}: {error.strerror or error}.") from error
    partial.replace(target)
    return str(target)


def reach(path: str, call: Callable, *args: Any, **kwargs: Any) -> Any:
    """A call of the storage, whose failures are one sentence about `path`."""
    try:
        return call(*args, **kwargs)
    except UserError:
        raise
    except Exception as error:  # Each storage has errors of its own: no network, no credentials, ...
        raise UserError(f"Cannot read {path}: {type(error).__name__}: {error}.") from error


def _clean(name: str) -> str:
    """A name in an archive as a relative path: "./a/b" is "a/b"."""
    return os.path.normpath(name.replace("\\", "/")).lstrip("/")


def is_hidden(path: str) -> bool:
    """Whether a path is, or lies in, what nobody means to be read.

    Those are names that begin with a dot, and the second tree of attributes that macOS puts into archives.
    """
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))
