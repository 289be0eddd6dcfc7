"""Tar shards in the layout of WebDataset: which ones a pattern names, and what samples are in them."""

import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from regvq_jax.data.archives import tar_index
from regvq_jax.data.listing import HELDOUT_FOLDERS, TRAIN_FOLDERS, first_names
from regvq_jax.errors import UserError
from regvq_jax.files import cache_dir, filesystem, read_json, write_json_atomic

IMAGES = ("jpg", "jpeg", "png", "webp")
CLASS = "cls"
_GLOB = re.compile(r"[*?\[]")
_LIMIT = 100  # bytes of a class id


class Member(NamedTuple):
    """Where the bytes of one part of a sample lie in its shard."""

    offset: int
    size: int


class Sample(NamedTuple):
    """One sample of a shard.

    Attributes:
        shard: its path or URL.
        key: what its members have in common: the path up to the first dot of the name.
        members: by the rest of the name, in lower case, such as "jpg" and "txt".
        class_id: what its .cls holds, or -1.
    """

    shard: str
    key: str
    members: dict[str, Member]
    class_id: int

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.shard}/{self.key}"

    def has(self, extensions: Iterable[str]) -> bool:
        """Whether it has a member with one of the extensions."""
        return any(extension in self.members for extension in extensions)


def expand(pattern: str) -> list[str]:
    """The shards that a pattern stands for, sorted within each of its parts.

    Args:
        pattern: paths or URLs, separated by commas; {000..012} stands for numbers, {a,b} for words, * for
            anything.

    Raises:
        UserError: a part matches nothing, or a shard that it names does not exist.
    """
    shards = []
    for part in filter(None, re.split(r",(?![^{}]*\})", pattern)):
        named, missing, matched = [], [], []
        for path in _braces(os.path.expanduser(part)):
            fs, inner = filesystem(path)
            if _GLOB.search(inner):
                found = fs.glob(inner)
                matched += [fs.unstrip_protocol(match) if "://" in path else match for match in found]
            elif fs.isfile(inner):
                named.append(path)
            else:
                missing.append(path)
        if not named and not matched:
            raise UserError(f"No shard matches {part}: give .tar files, such as shard-{{000..012}}.tar.")
        if missing:  # A copy that was broken off: training on what is there would not be noticed.
            raise UserError(
                f"{len(missing)} of the {len(named) + len(missing)} shards that {part} names do not exist "
                f"({first_names(missing)}): copy them, or name the others only."
            )
        shards += sorted(named + matched)
    if not shards:
        raise UserError("Data source 'webdataset' needs shards: 'webdataset:PATH/shard-{000..012}.tar'.")
    return shards


def split_by_name(shards: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Parts shards whose paths say which split they are of, such as val/003.tar or cc3m-train-0001.tar.

    Args:
        shards: paths or URLs; what is common to all their folders is not looked at.

    Returns:
        (those of training, those held out, the others), or ([], [], `shards`) unless there are both. Names of
        splits are those of folders of images.
    """
    common = len(os.path.commonprefix([shard.rpartition("/")[0] + "/" for shard in shards]))
    common = shards[0].rfind("/", 0, common) + 1 if shards else 0
    words = [re.split(r"[^a-z]+", shard[common:].lower()) for shard in shards]
    there = set(itertools.chain.from_iterable(words))
    train, heldout = (
        next((name for name in names if name in there), "") for names in (TRAIN_FOLDERS, HELDOUT_FOLDERS)
    )
    if not train or not heldout:
        return [], [], list(shards)
    parts: tuple[list[str], list[str], list[str]] = ([], [], [])
    for shard, names in zip(shards, words, strict=True):
        first = next((name for name in names if name in (train, heldout)), "")
        parts[{train: 0, heldout: 1}.get(first, 2)].append(shard)
    return parts


def list_samples(shard: str) -> list[Sample]:
    """The samples of a shard, in its order.

    Raises:
        UserError: the shard is damaged, a sample has the same part or two images, or a class is no number.
    """
    samples: dict[str, Sample] = {}
    for name, offset, size, content in _cached_index(shard):
        folder, _, base = name.removeprefix("./").rpartition("/")
        stem, dot, extension = base.partition(".")
        extension = extension.lower()
        if not stem or not dot:  # Hidden files, and files that are part of no sample.
            continue
        key = f"{folder}/{stem}" if folder else stem
        sample = samples.setdefault(key, Sample(shard, key, {}, -1))
        if extension in sample.members:
            raise UserError(f"Shard {shard} has {name} twice: pack it anew.")
        if extension in IMAGES and sample.has(IMAGES):
            raise UserError(f"Sample {sample.name} has more than one image (.{extension}): keep one.")
        sample.members[extension] = Member(offset, size)
        if extension == CLASS:
            if not (content.isascii() and content.isdigit()):
                raise UserError(f"{shard}/{name} holds {content[:20]!r}: it must be a class id.")
            samples[key] = sample._replace(class_id=int(content))
    return list(samples.values())


def _cached_index(shard: str) -> list[tuple[str, int, int, str]]:
    """`archives.tar_index` and the content of .cls members, kept here: a bucket is slow to search."""
    fs, path = filesystem(shard)
    facts = fs.info(path)
    identity = ascii((2, shard, *(str(facts.get(key, "")) for key in ("size", "mtime", "etag", "updated"))))
    directory = cache_dir("webdataset")
    record = directory / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"
    if record.exists():
        return [tuple(row) for row in read_json(record)]
    index, file = [], None
    for name, offset, size in tar_index(shard):
        content = ""
        if name.lower().rpartition("/")[2].partition(".")[2] == CLASS:
            file = file or fs.open(path, "rb")
            file.seek(offset)
            content = file.read(min(size, _LIMIT)).decode(errors="replace").strip()
        index.append((name, offset, size, content))
    if file:
        file.close()
    directory.mkdir(parents=True, exist_ok=True)
    write_json_atomic(record, index)
    return index


def _braces(path: str) -> list[str]:
    """All paths that {000..012} and {a,b} stand for."""
    for match in re.finditer(r"\{([^{}]*)\}", path):
        numbers = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
        if numbers:
            first, last = numbers.groups()
            words = [f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)]
        elif "," in match[1]:
            words = match[1].split(",")
        else:
            continue
        before, after = path[: match.start()], path[match.end() :]
        return [whole for word in words for whole in _braces(f"{before}{word}{after}")]
    return [path]
