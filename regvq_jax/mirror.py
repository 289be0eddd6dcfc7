"""A workdir in a bucket: a run works in a directory on this machine, and the bucket follows.

    with Mirror("gs://bucket/run") as mirror:  # fetches what an earlier run has left
        train(mirror.local)                    # what it writes is sent every minute, and at the end

A manifest in the bucket names the files of the last whole state and is written after them, so that a kill
at any moment leaves that state, or the one before. A directory that is ahead of the bucket, after a kill on
this machine, stays ahead; one that another machine has overtaken is brought up to date.
"""

import contextlib
import hashlib
import json
import logging
import os
import threading
import uuid
from pathlib import Path
from typing import Any, NamedTuple, Self

from fsspec.implementations.local import LocalFileSystem

from regvq_jax.errors import UserError
from regvq_jax.files import cache_dir, filesystem, local_copy, read_json, write_json_atomic
from regvq_jax.progress import track

log = logging.getLogger("regvq_jax")
MANIFEST = "manifest.json"
SECONDS = 60.0
# Names of what is being written: by orbax, and by our own atomic writes.
_UNFINISHED = (".orbax-checkpoint-tmp", ".partial", ".write_test")
_TRIES = 5


class Facts(NamedTuple):
    """What tells whether a local file has changed."""

    size: int
    modified: int


class Mirror:
    """A directory on this machine and its copy at a URL; for runs of one process.

    Attributes:
        url: of the copy.
        local: the directory.
    """

    def __init__(self, url: str, local: Path | None = None, seconds: float = SECONDS):
        """Connects to the storage; fetches nothing yet.

        Args:
            url: gs://BUCKET/PATH, s3://BUCKET/PATH, or any other that fsspec knows.
            local: by default a directory of its own below `cache_dir("workdirs")`.
            seconds: between two times at which changes are sent.

        Raises:
            UserError: fsspec does not know the storage, or its library is not installed.
        """
        self.url = url.rstrip("/")
        name = f"{self.url.rpartition('/')[2]}-{hashlib.sha256(self.url.encode()).hexdigest()[:12]}"
        self.local = local or cache_dir("workdirs") / name
        self._fs, self._root = filesystem(self.url)
        # Which manifest the directory goes on from, and what its files were like then.
        self._record = self.local.with_name(f"{self.local.name}.mirror.json")
        self._sent: dict[str, Facts] = {}
        self._seconds, self._stop = seconds, threading.Event()
        self._thread = threading.Thread(target=self._follow, name="mirror", daemon=True)

    def __enter__(self) -> Self:
        self.pull()
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        # Also after SIGTERM and after an error: what was saved is kept.
        self._stop.set()
        self._thread.join()
        self.push()

    def pull(self) -> None:
        """Makes the directory what the bucket has; one that nobody has begun stays empty.

        Raises:
            UserError: the bucket cannot be read.
        """
        try:
            self.local.mkdir(parents=True, exist_ok=True)
            path = f"{self._root}/{MANIFEST}"
            if not self._fs.exists(path):
                return
            manifest = json.loads(self._fs.cat_file(path))
            record = read_json(self._record) if self._record.exists() else {}
            if record.get("id") == manifest["id"]:
                self._sent = {path: Facts(*facts) for path, facts in record["files"].items()}
                return
            for path in self._list():
                (self.local / path).unlink()
            for path in track(sorted(manifest["files"]), "fetch", unit="files"):
                target = self.local / path
                target.parent.mkdir(parents=True, exist_ok=True)
                partial = target.with_name(f"{target.name}.partial")
                self._fs.get_file(f"{self._root}/{path}", str(partial))
                partial.replace(target)
        except UserError:
            raise
        except Exception as error:  # Each storage has errors of its own: no network, no credentials, ...
            raise UserError(f"Cannot read {self.url}: {type(error).__name__}: {error}.") from error
        self._sent = self._list()
        self._keep(manifest["id"])

    def push(self) -> None:
        """Sends what has changed, then the manifest, then deletes what is no longer there.

        Raises:
            UserError: the bucket cannot be written to; it keeps the state before.
        """
        try:
            for _ in range(_TRIES):
                files = self._list()
                for path, facts in files.items():
                    if self._sent.get(path) != facts and (self.local / path).exists():
                        if isinstance(self._fs, LocalFileSystem):  # Buckets have no folders to make.
                            self._fs.makedirs(f"{self._root}/{path}".rpartition("/")[0], exist_ok=True)
                        self._fs.put_file(str(self.local / path), f"{self._root}/{path}")
                        self._sent[path] = facts
                # A checkpoint that was deleted meanwhile would be in the manifest in part.
                if self._list().keys() == files.keys():
                    break
            else:
                log.warning("%s changes too fast to be sent to %s; it is tried again.", self.local, self.url)
                return
            manifest = {"id": uuid.uuid4().hex, "files": list(files)}
            self._fs.pipe_file(f"{self._root}/{MANIFEST}", json.dumps(manifest, indent=1).encode())
            for path in self._sent.keys() - files.keys():
                with contextlib.suppress(FileNotFoundError):  # A push that failed here had deleted it.
                    self._fs.rm_file(f"{self._root}/{path}")
            self._sent = {path: self._sent[path] for path in files}
            self._keep(manifest["id"])
        except Exception as error:
            raise UserError(
                f"Cannot write to {self.url}: {type(error).__name__}: {error}; what was to be sent is in "
                f"{self.local}, and the same command sends it."
            ) from error

    def _keep(self, identity: str) -> None:
        write_json_atomic(self._record, {"id": identity, "files": self._sent})

    def _follow(self) -> None:
        while not self._stop.wait(self._seconds):
            try:
                self.push()
            except UserError as error:  # The end of the run tries again, and raises.
                log.warning("%s", error)

    def _list(self) -> dict[str, Facts]:
        """The finished files of the directory by relative path, sorted."""
        files = {}
        for folder, _, names in os.walk(self.local):
            for name in names:
                path = Path(folder, name)
                relative = path.relative_to(self.local).as_posix()
                if any(mark in relative for mark in _UNFINISHED):
                    continue
                try:
                    status = path.stat()
                except FileNotFoundError:  # Deleted a moment ago.
                    continue
                files[relative] = Facts(status.st_size, status.st_mtime_ns)
        return dict(sorted(files.items()))


def local_workdir(path: str | os.PathLike) -> Path:
    """What a user names to load from, on this machine: a workdir or a file, at a path or a URL.

    Raises:
        UserError: the URL cannot be read.
    """
    path = os.fspath(path)
    if "://" not in path or path.endswith(".safetensors"):
        return local_copy(path)
    # Not where a run on this machine would work: it shall not find its files exchanged.
    mirror = Mirror(path, cache_dir("loaded") / hashlib.sha256(path.encode()).hexdigest()[:12])
    mirror.pull()
    return mirror.local
