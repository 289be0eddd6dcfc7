"""Trees of files that are read in place: folders, archives, and both of them in remote storage.

    tree = open_tree("gs://bucket/ADEChallengeData2016.zip")
    tree.files()  # [File("ADEChallengeData2016/images/training/ADE_train_00000001.jpg", 97134), ...]
    tree.read("ADEChallengeData2016/objectInfo150.txt")
"""

import os
from collections.abc import Sequence
from typing import BinaryIO, Protocol

from regvq_jax.data.archives import ARCHIVES, GZIPPED_TAR, ZIP, File, Tar, Zip, gunzip, is_hidden, reach
from regvq_jax.errors import UserError
from regvq_jax.files import filesystem


class Tree(Protocol):
    """Files by relative path; picklable, and safe to read from several threads.

    Attributes:
        name: what the user called it.
    """

    name: str

    def files(self) -> list[File]:
        """All files, sorted by path; hidden ones (".name") and what lies in hidden folders are left out."""

    def open(self, path: str) -> BinaryIO:
        """A seekable stream of one file; OSError if there is none or it cannot be read."""

    def read(self, path: str) -> bytes:
        """The content of one file; OSError if there is none or it cannot be read."""


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is a URL, such as gs://BUCKET/PATH or s3://BUCKET/PATH."""
    return "://" in os.fspath(path)


def open_tree(path: str | os.PathLike, scratch: str | os.PathLike | None = None) -> Tree:
    """A folder or an archive, on a disk or at a URL that fsspec knows (gs://, s3://, ...).

    Args:
        path: a folder, or a .zip, .tar, .tgz or .tar.gz file.
        scratch: where a gzipped archive is unzipped to a .tar, once: in a gzipped file, nothing can be
            found without reading all before it. None = such files are refused.

    Returns:
        A `Tree`.

    Raises:
        UserError: there is no such folder or file, the library for the URL's storage is not installed, or
            the archive is damaged or cut off.
    """
    path = os.fspath(path)
    if not is_remote(path):
        path = os.path.abspath(os.path.expanduser(path))
    fs, root = filesystem(path)
    if path.lower().endswith(ARCHIVES) and not reach(path, fs.isdir, root):
        if not reach(path, fs.isfile, root):
            raise UserError(f"Archive {path} does not exist: give an existing file.")
        if path.lower().endswith(GZIPPED_TAR):
            return Tar(gunzip(path, fs, root, scratch), path)
        return Zip(path) if path.lower().endswith(ZIP) else Tar(path, path)
    if not reach(path, fs.isdir, root):
        raise UserError(f"Data folder {path} does not exist or is no folder: give an existing one.")
    return _RemoteFolder(path) if is_remote(path) else _Folder(path)


def open_trees(
    paths: Sequence[str | os.PathLike], scratch: str | os.PathLike | None = None
) -> "JoinedTree":
    """Several folders and archives as one tree; archives in the top of a folder count as opened, too.

    Args:
        paths: at least one, each as `open_tree` takes it.
        scratch: as `open_tree`.

    Raises:
        UserError: as `open_tree`, or two of them have a file of the same path.
    """
    trees = []
    for path in paths:
        tree = open_tree(path, scratch)
        trees.append(tree)
        if isinstance(tree, _Folder | _RemoteFolder):
            inside = [f.path for f in tree.files() if "/" not in f.path and f.path.lower().endswith(ARCHIVES)]
            trees += [open_tree(f"{tree.name.rstrip('/')}/{name}", scratch) for name in inside]
    return JoinedTree(trees)


class JoinedTree:
    """Several trees as one.

    Attributes:
        name: of all of them.
    """

    def __init__(self, trees: Sequence[Tree]):
        """Lists them; raises UserError where two have a file of the same path."""
        self.name = ", ".join(tree.name for tree in trees)
        self._trees = tuple(trees)
        self._files, self._owner = [], {}
        for tree in trees:
            for file in tree.files():
                other = self._owner.setdefault(file.path, tree)
                if other is not tree:
                    raise UserError(f"Both {other.name} and {tree.name} have {file.path}: give one of them.")
                self._files.append(file)
        self._files.sort()

    def files(self) -> list[File]:
        """All files, sorted by path."""
        return self._files

    def open(self, path: str) -> BinaryIO:
        """A stream of one file."""
        return self._find(path).open(path)

    def read(self, path: str) -> bytes:
        """The content of one file."""
        return self._find(path).read(path)

    def _find(self, path: str) -> Tree:
        if path not in self._owner:
            raise FileNotFoundError(2, "no such file", f"{self.name}: {path}")
        return self._owner[path]


class _Folder:
    """A folder on a disk; links to folders are followed, each folder once."""

    def __init__(self, path: str):
        self.name = path

    def files(self) -> list[File]:
        files, pending, seen = [], [""], set()
        while pending:
            relative = pending.pop()
            real = os.path.realpath(os.path.join(self.name, relative))
            if real in seen:  # A link back up would never end.
                continue
            seen.add(real)
            try:
                entries = sorted(os.scandir(real), key=lambda entry: entry.name, reverse=True)
            except OSError as error:
                raise UserError(f"Cannot list data folder {real}: {error.strerror}.") from error
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                path = f"{relative}/{entry.name}" if relative else entry.name
                if entry.is_dir():
                    pending.append(path)
                elif entry.is_file():
                    files.append(File(path, entry.stat().st_size))
        return sorted(files)

    def open(self, path: str) -> BinaryIO:
        return open(os.path.join(self.name, path), "rb")

    def read(self, path: str) -> bytes:
        with self.open(path) as file:
            return file.read()


class _RemoteFolder:
    """A folder at a URL."""

    def __init__(self, url: str):
        self.name = url.rstrip("/")

    def files(self) -> list[File]:
        fs, root = filesystem(self.name)
        found = reach(self.name, fs.find, root, detail=True)
        prefix = f"{root.rstrip('/')}/"
        files = [File(path.removeprefix(prefix), int(facts["size"] or 0)) for path, facts in found.items()]
        return sorted(file for file in files if not is_hidden(file.path))

    def open(self, path: str) -> BinaryIO:
        fs, root = filesystem(self.name)
        return fs.open(f"{root.rstrip('/')}/{path}", "rb")

    def read(self, path: str) -> bytes:
        fs, root = filesystem(self.name)
        return fs.cat_file(f"{root.rstrip('/')}/{path}")
