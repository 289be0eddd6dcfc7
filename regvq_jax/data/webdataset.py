"""Tar shards in the layout of WebDataset as a data source: read at random, by an index."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import fsspec
import numpy as np

from regvq_jax.data.captions import caption_fields
from regvq_jax.data.decode import decode_element
from regvq_jax.data.images import ImageError
from regvq_jax.data.listing import MAX_SKIPPED_SHARE, first_names, heldout_paths
from regvq_jax.data.replacing import Replacing, ReplacingSource
from regvq_jax.data.tree import tar_index
from regvq_jax.errors import UserError
from regvq_jax.files import cache_dir, read_json, write_json_atomic
from regvq_jax.progress import track

_IMAGES = ("jpg", "jpeg", "png", "webp")
_TEXTS = ("txt", "text", "caption", "json")
_MAPS = ("seg.png", "labels.png", "map.png")
_CLASS = "cls"
_JSON_KEYS = ("caption", "captions", "text", "texts")


class Member(NamedTuple):
    """Where the bytes of one part of a sample lie in its shard."""

    offset: int
    size: int


class Sample(NamedTuple):
    """One sample of a shard.

    Attributes:
        shard: number of the shard.
        key: what its members have in common: the path up to the first dot of the name.
        members: by the rest of the name, in lower case, such as "jpg" and "txt".
    """

    shard: int
    key: str
    members: dict[str, Member]


class WebdatasetSource(ReplacingSource):
    """Samples in the order of the shards and of the files in them.

    Of a sample, .jpg, .jpeg, .png or .webp is the image; .txt (a caption a line) or .json ("caption", or a
    list of "captions") what it shows; .cls a class id; .seg.png, .labels.png or .map.png its label map. Other
    members are left alone; samples without an image are left out and named in `skipped`.

    Shards are listed once: where each member lies is kept in `files.cache_dir`. A "|" parts
    training from held-out shards; without it, a tenth of the samples is held out by a hash of their keys.
    """

    def __init__(
        self,
        pattern: str,
        split: str,
        *,
        image_size: int = 1,
        upscale: bool = True,
        num_label_classes: int = 0,
        decode_side: int | None = None,
    ):
        """Lists the shards; decodes nothing.

        Args:
            pattern: paths or URLs, separated by commas; {000..012} stands for numbers, * for anything.
            split: "train" or "heldout".
            image_size: smaller images are replaced by the next one ...
            upscale: ... unless they may be enlarged.
            num_label_classes: read label maps with ids below it; 0 leaves them alone.
            decode_side: see `images.read_image`; only where there are no label maps.

        Raises:
            UserError: there is no such shard, one is cut off, two samples share a key, or only some have a
                caption, a class or a map.
        """
        self.name = f"webdataset:{pattern}"
        train, _, heldout = pattern.partition("|")
        self._shards = expand(heldout if heldout and split == "heldout" else train)
        samples, skipped = [], []
        for number, shard in enumerate(track(self._shards, "shards")):
            for sample in group(number, shard, cached_index(shard)):
                if any(extension in sample.members for extension in _IMAGES):
                    samples.append(sample)
                else:
                    has = ", ".join(sample.members)
                    skipped.append((f"{shard}/{sample.key}", f"It has no image, only {has}."))
        _check_keys(self._shards, samples)
        if len(skipped) > MAX_SKIPPED_SHARE * (len(samples) + len(skipped)):
            raise UserError(
                f"{len(skipped)} of the {len(samples) + len(skipped)} samples of {self.name} have no image "
                f"({', '.join(_IMAGES)}), such as {skipped[0][0]}: {skipped[0][1]}"
            )
        self.skipped = tuple(skipped)
        if not heldout:
            if len(samples) < 2:
                raise UserError(f"{self.name} has {len(samples)} samples, and two splits need at least 2.")
            held = heldout_paths([sample.key for sample in samples])
            samples = [sample for sample in samples if (sample.key in held) == (split == "heldout")]
        self._samples = samples
        self._text = self._part(_TEXTS)
        self._class = self._part((_CLASS,))
        self._map = self._part(_MAPS) if num_label_classes else ()
        if num_label_classes and not self._map:
            raise UserError(
                f"data.num_label_classes={num_label_classes}, but the samples of {self.name} have no label "
                f"maps (.{', .'.join(_MAPS)}): set it to 0."
            )
        self._min_size, self._decode_side = 1 if upscale else image_size, decode_side
        self.has_text, self.has_labels = bool(self._text), bool(self._map)
        self.num_label_classes = num_label_classes
        self.num_classes = 0
        if self._class:
            ids = [self._read_class(i) for i in range(len(samples))]
            self.num_classes = max(ids) + 1
        self.class_names = tuple(f"class {i}" for i in range(self.num_classes))
        facts = [(sample.key, sorted(sample.members.items())) for sample in samples]
        self.fingerprint = hashlib.sha256(ascii((facts, num_label_classes)).encode()).hexdigest()[:16]
        what = f"{split} samples of {self.name}"
        self._elements = Replacing(self._read, len(samples), self._name_of, what)

    def _read(self, index: int) -> dict[str, Any]:
        name = self._name_of(index)
        element = decode_element(
            self._bytes(index, _IMAGES),
            name,
            min_size=self._min_size,
            decode_side=self._decode_side,
            labels=self._bytes(index, _MAPS) if self._map else None,
            num_label_classes=self.num_label_classes,
        )
        if self._class:
            element["class"] = np.int32(self._read_class(index))
        return element | caption_fields(self._captions(index) if self._text else (), index)

    def _captions(self, index: int) -> tuple[str, ...]:
        name = self._name_of(index)
        members = self._samples[index].members
        content = self._bytes(index, _TEXTS)
        try:
            text = content.decode("utf-8-sig")
            lines = text.splitlines()
            if not any(extension in members for extension in _TEXTS[:-1]):
                value = json.loads(text)
                found = next((value[key] for key in _JSON_KEYS if key in value), "")
                lines = [found] if isinstance(found, str) else [str(line) for line in found]
        except (UnicodeDecodeError, ValueError, TypeError) as error:
            raise ImageError(f"The caption of {name} cannot be read ({error}).") from error
        return tuple(line for line in (" ".join(line.split()) for line in lines) if line) or ("",)

    def _read_class(self, index: int) -> int:
        content = self._bytes(index, (_CLASS,)).strip()
        if not content.isdigit():
            raise UserError(f"{self._name_of(index)}.{_CLASS} holds {content[:20]!r}: it must be a class id.")
        return int(content)

    def _bytes(self, index: int, extensions: Sequence[str]) -> bytes:
        """The content of the first member with one of the extensions."""
        sample = self._samples[index]
        offset, size = next(sample.members[e] for e in extensions if e in sample.members)
        fs, path = fsspec.core.url_to_fs(self._shards[sample.shard])
        try:
            return fs.cat_file(path, start=offset, end=offset + size)
        except OSError as error:
            raise ImageError(f"Cannot read {self._name_of(index)}: {error.strerror or error}.") from error

    def _name_of(self, index: int) -> str:
        sample = self._samples[index]
        return f"{self._shards[sample.shard]}/{sample.key}"

    def _part(self, extensions: Sequence[str]) -> tuple[str, ...]:
        """`extensions` if every sample has one of them, () if none has."""
        missing = [s.key for s in self._samples if not any(e in s.members for e in extensions)]
        if len(missing) == len(self._samples):
            return ()
        if missing:
            raise UserError(
                f"{len(missing)} of the {len(self._samples)} samples of {self.name} have no "
                f".{' or .'.join(extensions)}, the others have one ({first_names(missing)}): give one "
                "to all, or to none."
            )
        return tuple(extensions)


def expand(pattern: str) -> list[str]:
    """The shards that a pattern stands for, sorted within each of its parts.

    Args:
        pattern: paths or URLs, separated by commas; {000..012} stands for numbers, * for anything.

    Raises:
        UserError: a part matches nothing.
    """
    shards = []
    for part in filter(None, pattern.split(",")):
        found = []
        for path in _numbers(os.path.expanduser(part)):
            fs, inner = fsspec.core.url_to_fs(path)
            matches = fs.glob(inner) if "*" in inner else [inner] if fs.isfile(inner) else []
            found += [fs.unstrip_protocol(match) if "://" in path else match for match in matches]
        if not found:
            raise UserError(f"No shard matches {part}: give .tar files, such as shard-{{000..012}}.tar.")
        shards += sorted(found)
    if not shards:
        raise UserError("Data source 'webdataset' needs shards: 'webdataset:PATH/shard-{000..012}.tar'.")
    return shards


def cached_index(shard: str) -> list[tuple[str, int, int]]:
    """`tree.tar_index` of a shard, kept on this machine: a bucket's headers are slow to read."""
    fs, path = fsspec.core.url_to_fs(shard)
    facts = fs.info(path)
    identity = ascii((shard, *(str(facts.get(key, "")) for key in ("size", "mtime", "etag", "updated"))))
    directory = cache_dir("webdataset")
    record = directory / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"
    if record.exists():
        return [tuple(row) for row in read_json(record)]
    index = tar_index(shard)
    directory.mkdir(parents=True, exist_ok=True)
    write_json_atomic(record, index)
    return index


def group(number: int, shard: str, index: Sequence[tuple[str, int, int]]) -> list[Sample]:
    """The samples of a shard, in its order.

    Raises:
        UserError: a sample has the same part twice.
    """
    samples: dict[str, Sample] = {}
    for name, offset, size in index:
        folder, _, base = name.removeprefix("./").rpartition("/")
        stem, dot, extension = base.partition(".")
        if not stem or not dot:  # Hidden files, and files that are part of no sample.
            continue
        key = f"{folder}/{stem}" if folder else stem
        members = samples.setdefault(key, Sample(number, key, {})).members
        if extension.lower() in members:
            raise UserError(f"Shard {shard} has {name} twice: pack it anew.")
        members[extension.lower()] = Member(offset, size)
    return list(samples.values())


def _numbers(path: str) -> list[str]:
    match = re.search(r"\{(\d+)\.\.(\d+)\}", path)
    if not match:
        return [path]
    first, last = match[1], match[2]
    filled = (f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1))
    return [p for text in filled for p in _numbers(f"{path[: match.start()]}{text}{path[match.end() :]}")]


def _check_keys(shards: Sequence[str], samples: Sequence[Sample]) -> None:
    seen: dict[str, Sample] = {}
    for sample in samples:
        other = seen.setdefault(sample.key, sample)
        if other is not sample:
            raise UserError(
                f"Sample {sample.key} is in both {shards[other.shard]} and {shards[sample.shard]}: keep one."
            )
