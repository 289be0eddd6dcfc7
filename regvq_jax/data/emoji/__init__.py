"""The packaged emoji: 1,570 pictures with captions, tags and label maps, made by `build.py`."""

import functools
import hashlib
import io
import json
import os
import pathlib
from typing import NamedTuple

import numpy as np
from PIL import Image

from regvq_jax.errors import UserError

SIZES = (64, 128)
SPLITS = ("train", "heldout")
NUM_TRAIN = 1413
NUM_HELDOUT = 157
NUM_CLASSES = 25  # 24 colours and 0 = background


class EmojiEntry(NamedTuple):
    """What is known of one picture."""

    name: str  # e.g. 'artist-palette'
    code_point: str  # e.g. '1f3a8'
    caption: str  # e.g. 'artist palette'; unique
    tags: tuple[str, ...]
    group: str
    subgroup: str
    split: str  # 'train' or 'heldout'


class PaletteColour(NamedTuple):
    """Name and colour of one class of the label maps."""

    name: str
    colour: str  # '#rrggbb'


class EmojiPack(NamedTuple):
    """All pictures at one size; the arrays are shared and read-only."""

    pictures: np.ndarray  # uint8 [1570, S, S, 4], RGBA, straight alpha
    labels: np.ndarray  # uint8 [1570, S, S]; 0 = background, c = palette[c - 1]
    entries: tuple[EmojiEntry, ...]
    palette: tuple[PaletteColour, ...]
    digest: str  # SHA-256 of the files

    def indices(self, split: str) -> np.ndarray:
        """Indices of the pictures of a split, int [n]; raises `UserError` on an unknown split."""
        check_split(split)
        return np.flatnonzero([entry.split == split for entry in self.entries])


def check_split(split: str) -> None:
    """Raises `UserError` unless the split is 'train' or 'heldout'."""
    if split not in SPLITS:
        raise UserError(f"split {split!r} of the emoji data is unknown: use 'train' or 'heldout'.")


def _cut(sheet: np.ndarray, columns: int, size: int, count: int) -> np.ndarray:
    """Cuts a sheet into its first `count` pictures [count, S, S, ...]."""
    rows = sheet.shape[0] // size
    cells = sheet.reshape(rows, size, columns, size, *sheet.shape[2:]).swapaxes(1, 2)
    pictures = cells.reshape(rows * columns, size, size, *sheet.shape[2:])[:count]
    pictures.flags.writeable = False
    return pictures


def read_pack(directory: str | os.PathLike, size: int) -> EmojiPack:
    """Reads the files that the builder wrote, and checks them against the stated counts.

    Args:
        directory: folder with `emoji.json` and the sheets.
        size: 64 or 128.

    Returns:
        `EmojiPack`.

    Raises:
        UserError: unknown size, or files that are missing or damaged.
    """
    if size not in SIZES:
        raise UserError(f"the emoji pack has no size {size}: use one of {SIZES}.")
    directory = pathlib.Path(directory)
    names = "emoji.json", f"pictures_{size}.webp", f"labels_{size}.png"
    try:
        index, pictures, labels = ((directory / name).read_bytes() for name in names)
        table = json.loads(index)
        entries = tuple(EmojiEntry(**{**entry, "tags": tuple(entry["tags"])}) for entry in table["entries"])
        palette = tuple(PaletteColour(**colour) for colour in table["palette"])
        columns = table["sheet_columns"]
        pack = EmojiPack(
            pictures=_cut(
                np.asarray(Image.open(io.BytesIO(pictures)).convert("RGBA")),
                columns,
                size,
                len(entries),
            ),
            labels=_cut(np.asarray(Image.open(io.BytesIO(labels))), columns, size, len(entries)),
            entries=entries,
            palette=palette,
            digest=hashlib.sha256(index + pictures + labels).hexdigest(),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the emoji files in {directory} cannot be read ({error}): install regvq_jax again."
        ) from error
    found = (
        len(pack.indices("train")),
        len(pack.indices("heldout")),
        len(pack.pictures),
        len({entry.caption for entry in entries}),
        len(palette),
        int(pack.labels.max()) + 1,
    )
    total = NUM_TRAIN + NUM_HELDOUT
    if found != (NUM_TRAIN, NUM_HELDOUT, total, total, NUM_CLASSES - 1, NUM_CLASSES):
        raise UserError(
            f"the emoji files in {directory} are damaged: {found[0]} train + {found[1]} heldout "
            f"entries, {found[2]} pictures, {found[3]} captions, {found[4]} colours and {found[5]} "
            f"label classes, not {NUM_TRAIN} + {NUM_HELDOUT}, {total}, {total}, {NUM_CLASSES - 1} "
            f"and {NUM_CLASSES}: install regvq_jax again."
        )
    return pack


@functools.lru_cache(maxsize=len(SIZES))
def load_pack(size: int) -> EmojiPack:
    """The packaged emoji at 64 or 128 px, read once per process; see `read_pack`."""
    return read_pack(pathlib.Path(__file__).parent, size)


@functools.cache
def group_names() -> tuple[str, ...]:
    """The groups of the pictures, sorted: the classes of the sources of single pictures."""
    return tuple(sorted({entry.group for entry in load_pack(SIZES[0]).entries}))


@functools.cache
def group_ids() -> tuple[int, ...]:
    """For each of the 1,570 pictures, the index of its group in `group_names`."""
    ids = {name: i for i, name in enumerate(group_names())}
    return tuple(ids[entry.group] for entry in load_pack(SIZES[0]).entries)
