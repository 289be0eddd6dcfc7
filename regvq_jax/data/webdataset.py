"""Tar shards in the layout of WebDataset as a data source: read at random, by an index."""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from regvq_jax.data.captions import caption_fields
from regvq_jax.data.decode import decode_element
from regvq_jax.data.images import ImageError
from regvq_jax.data.listing import MAX_SKIPPED_SHARE, first_names, heldout_paths
from regvq_jax.data.replacing import Replacing, ReplacingSource
from regvq_jax.data.tar_shards import CLASS, IMAGES, Sample, expand, list_samples, split_by_name
from regvq_jax.errors import UserError
from regvq_jax.files import filesystem
from regvq_jax.progress import track

_JSON = "json"
_TEXTS = ("txt", "text", "caption", _JSON)
_MAPS = ("seg.png", "labels.png", "map.png")
_JSON_KEYS = ("caption", "captions", "text", "texts")


class WebdatasetSource(ReplacingSource):
    """Samples in the order of the shards and of the files in them.

    Of a sample, .jpg, .jpeg, .png or .webp is the image; .txt (a caption a line) or .json ("caption", or a
    list of "captions") what it shows; .cls a class id; .seg.png, .labels.png or .map.png its label map. Other
    members are left alone; samples without an image are left out and named in `skipped`.

    Shards are listed once: where each member lies is kept in `files.cache_dir`. A "|" parts
    training from held-out shards; without it, shards whose paths name both splits (see
    `tar_shards.split_by_name`) are of these, and those that name neither are left out; else a tenth of the
    samples is held out by a hash of their keys.
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
            pattern: paths or URLs, see `tar_shards.expand`.
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
        shards, others_fn, unused, tenth = _choose_shards(pattern, split)
        samples, skipped = self._list(shards)
        every = samples
        if tenth:
            if len(samples) < 2:
                raise UserError(f"{self.name} has {len(samples)} samples, and two splits need at least 2.")
            held = heldout_paths([sample.key for sample in samples])
            samples = [sample for sample in samples if (sample.key in held) == (split == "heldout")]
        self._samples = samples
        self.skipped = (*((shard, "It is of neither split, by its path.") for shard in unused), *skipped)
        self._text = self._part(_TEXTS)
        if self._text and not any(sample.has(_TEXTS[:-1]) for sample in every):
            # What a .json tells may be something else; the first sample speaks for both splits.
            self._text = self._text if self._json_captions(every[0]) else ()
        self._class = self._part((CLASS,))
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
        if self._class:  # The same number in both splits.
            every = every + self._list(others_fn())[0]
            self.num_classes = max(sample.class_id for sample in every) + 1
        self.class_names = tuple(f"class {i}" for i in range(self.num_classes))
        facts = [(sample.key, sample.class_id, sorted(sample.members.items())) for sample in samples]
        self.fingerprint = hashlib.sha256(ascii((facts, num_label_classes)).encode()).hexdigest()[:16]
        what = f"{split} samples of {self.name}"
        self._elements = Replacing(self._read, len(samples), self._name_of, what)

    def _list(self, shards: Sequence[str]) -> tuple[list[Sample], list[tuple[str, str]]]:
        """(samples with an image, (name, reason) of those without)."""
        samples, skipped, seen = [], [], {}
        for shard in track(shards, "shards"):
            for sample in list_samples(shard):
                other = seen.setdefault(sample.key, sample)
                if other is not sample:
                    raise UserError(f"Sample {sample.key} is in both {other.shard} and {shard}: keep one.")
                if sample.has(IMAGES):
                    samples.append(sample)
                else:
                    skipped.append((sample.name, f"It has no image, only {', '.join(sample.members)}."))
        if len(skipped) > MAX_SKIPPED_SHARE * (len(samples) + len(skipped)):
            raise UserError(
                f"{len(skipped)} of the {len(samples) + len(skipped)} samples of {self.name} have no image "
                f"({', '.join(IMAGES)}), such as {skipped[0][0]}: {skipped[0][1]}"
            )
        return samples, skipped

    def _read(self, index: int) -> dict[str, Any]:
        sample = self._samples[index]
        element = decode_element(
            _bytes(sample, IMAGES),
            sample.name,
            min_size=self._min_size,
            decode_side=self._decode_side,
            labels=_bytes(sample, _MAPS) if self._map else None,
            num_label_classes=self.num_label_classes,
        )
        if self._class:
            element["class"] = np.int32(sample.class_id)
        return element | caption_fields(self._captions(sample) if self._text else (), index)

    def _captions(self, sample: Sample) -> tuple[str, ...]:
        if not sample.has(_TEXTS[:-1]):
            return self._json_captions(sample) or ("",)
        try:
            lines = _bytes(sample, _TEXTS).decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ImageError(f"The caption of {sample.name} cannot be read ({error}).") from error
        return _clean(lines) or ("",)

    def _json_captions(self, sample: Sample) -> tuple[str, ...]:
        """What a sample's .json says, () if it says nothing."""
        try:
            value = json.loads(_bytes(sample, (_JSON,)))
            found = next((value[key] for key in _JSON_KEYS if key in value), ())
            return _clean([found] if isinstance(found, str) else [str(line) for line in found])
        except (ValueError, TypeError) as error:
            raise ImageError(f"The caption of {sample.name} cannot be read ({error}).") from error

    def _name_of(self, index: int) -> str:
        return self._samples[index].name

    def _part(self, extensions: Sequence[str]) -> tuple[str, ...]:
        """`extensions` if every sample has one of them, () if none has."""
        missing = [sample.key for sample in self._samples if not sample.has(extensions)]
        if len(missing) == len(self._samples):
            return ()
        if missing:
            raise UserError(
                f"{len(missing)} of the {len(self._samples)} samples of {self.name} have no "
                f".{' or .'.join(extensions)}, the others have one ({first_names(missing)}): give one "
                "to all, or to none."
            )
        return tuple(extensions)


def _choose_shards(pattern: str, split: str) -> tuple[list[str], Callable[[], list[str]], list[str], bool]:
    """(the split's shards, a function for the other's, those of none, whether a tenth is held out)."""
    train, _, heldout = pattern.partition("|")
    if heldout:
        own, other = (train, heldout) if split == "train" else (heldout, train)
        return expand(own), partial(expand, other), [], False
    shards = expand(train)
    train_shards, heldout_shards, unused = split_by_name(shards)
    if not train_shards:
        return shards, list, [], True
    own, other = (train_shards, heldout_shards) if split == "train" else (heldout_shards, train_shards)
    return own, other.copy, unused, False


def _bytes(sample: Sample, extensions: Sequence[str]) -> bytes:
    """The content of the first member with one of the extensions."""
    offset, size = next(sample.members[e] for e in extensions if e in sample.members)
    fs, path = filesystem(sample.shard)
    try:
        return fs.cat_file(path, start=offset, end=offset + size)
    except OSError as error:
        raise ImageError(f"Cannot read {sample.name}: {error.strerror or error}.") from error


def _clean(lines: Sequence[str]) -> tuple[str, ...]:
    return tuple(line for line in (" ".join(line.split()) for line in lines) if line)
