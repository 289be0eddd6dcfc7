"""The packaged emoji as data sources: single pictures, and scenes composed of them.

Nothing here, and nothing downstream, may mirror a scene: its caption tells left from right.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Sequence

import numpy as np

from regvq_jax.data.captions import caption_fields
from regvq_jax.data.emoji import (
    NUM_CLASSES,
    SIZES,
    SPLITS,
    EmojiEntry,
    captions,
    check_split,
    drawing,
    group_ids,
    group_names,
    load_pack,
)
from regvq_jax.data.emoji.dice import Dice
from regvq_jax.errors import UserError

# Named grounds: light, or very dark, so that the full colours of the emoji stand out from them.
GROUNDS = {
    "white": (255, 255, 255),
    "light grey": (214, 214, 214),
    "light blue": (178, 221, 250),
    "light green": (190, 232, 182),
    "yellow": (255, 234, 138),
    "orange": (255, 184, 120),
    "pink": (255, 196, 220),
    "light purple": (206, 186, 246),
    "beige": (236, 220, 192),
    "dark blue": (29, 43, 100),
}
MAX_OBJECTS = 4
MIN_IMAGE_SIZE = 8
_GROUND_NAMES = tuple(GROUNDS)
_GROUND_COLOURS = np.array(list(GROUNDS.values()), np.uint8)
_DEFAULT_SCENES = {"train": 2**20, "heldout": 512}
_NUM_TAGS = 5  # in the text of a single picture
# Bump when the same parameters give other elements: it is part of every fingerprint.
_RECIPE = 1

# Cells are (left, top, width, height) in fractions of the frame. A layout is a wording and its
# cells; '{0}' is the object in the first cell.
_WHOLE = (0, 0, 1, 1)
_LEFT, _RIGHT = (0, 0, 1 / 2, 1), (1 / 2, 0, 1 / 2, 1)
_TOP, _BOTTOM = (0, 0, 1, 1 / 2), (0, 1 / 2, 1, 1 / 2)
_TOP_LEFT, _TOP_RIGHT = (0, 0, 1 / 2, 1 / 2), (1 / 2, 0, 1 / 2, 1 / 2)
_BOTTOM_LEFT, _BOTTOM_RIGHT = (0, 1 / 2, 1 / 2, 1 / 2), (1 / 2, 1 / 2, 1 / 2, 1 / 2)
_THIRDS = ((0, 0, 1 / 3, 1), (1 / 3, 0, 1 / 3, 1), (2 / 3, 0, 1 / 3, 1))
_LAYOUTS = {
    1: (("{0}", (_WHOLE,)),),
    2: (
        ("{0} left of {1}", (_LEFT, _RIGHT)),
        ("{1} right of {0}", (_LEFT, _RIGHT)),
        ("{0} above {1}", (_TOP, _BOTTOM)),
        ("{1} below {0}", (_TOP, _BOTTOM)),
    ),
    3: (
        ("{0}, {1} and {2} in a row", _THIRDS),
        ("{0} and {1} above {2}", (_TOP_LEFT, _TOP_RIGHT, _BOTTOM)),
        ("{0} above {1} and {2}", (_TOP, _BOTTOM_LEFT, _BOTTOM_RIGHT)),
    ),
    4: (("{0} and {1} above {2} and {3}", (_TOP_LEFT, _TOP_RIGHT, _BOTTOM_LEFT, _BOTTOM_RIGHT)),),
}


def _check(split: str, image_size: int) -> None:
    check_split(split)
    if not MIN_IMAGE_SIZE <= image_size <= SIZES[-1]:
        raise UserError(
            f"image_size {image_size} is out of reach of the emoji data: choose a size from "
            f"{MIN_IMAGE_SIZE} to {SIZES[-1]}."
        )


def _pack_size(image_size: int) -> int:
    """The smallest pack that is at least as large as the images wanted."""
    return min(size for size in SIZES if size >= image_size)


@functools.lru_cache(maxsize=2)
def _members(split: str) -> list[int]:
    """Picture indices of a split, which are the same at every size."""
    return load_pack(SIZES[0]).indices(split).tolist()


def _centred(
    image_size: int, picture: int, ground: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, EmojiEntry]:
    """One picture in the middle of a plain ground: image, labels, entry."""
    pack_size = _pack_size(image_size)
    pack = load_pack(pack_size)
    image = np.empty((image_size, image_size, 3), np.uint8)
    image[:] = ground
    labels = np.zeros((image_size, image_size), np.uint8)
    drawn = drawing.sprite(pack_size, picture)
    whole, place = (0, 0, pack_size, pack_size), (0, 0, image_size, image_size)
    drawing.paste(image, labels, drawn, pack.labels[picture], whole, place)
    return image, labels, pack.entries[picture]


@dataclasses.dataclass(frozen=True)
class _EmojiSource:
    """What the sources of this module share.

    Attributes:
        split: 'train' or 'heldout'.
        image_size: 8 to 128.

    Raises:
        UserError: another split or size.
    """

    split: str
    image_size: int

    has_text = True
    has_labels = True
    num_label_classes = NUM_CLASSES
    _is_single = False

    @property
    def class_names(self) -> tuple[str, ...]:
        """The groups of the pictures, sorted; () where an image may show several pictures."""
        return group_names() if self._is_single else ()

    @property
    def num_classes(self) -> int:
        """How many groups these are."""
        return len(self.class_names)

    def __post_init__(self) -> None:
        _check(self.split, self.image_size)

    @property
    def fingerprint(self) -> str:
        """16 hex digits; the same for the same data."""
        digest = load_pack(_pack_size(self.image_size)).digest
        facts = f"{type(self).__name__} {_RECIPE} {dataclasses.astuple(self)} {digest}"
        return hashlib.sha256(facts.encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class EmojiPictures(_EmojiSource):
    """The single pictures of a split, centred on white.

    Attributes and errors as in `_EmojiSource`.
    """

    name = "emoji"
    _is_single = True

    def __len__(self) -> int:
        return len(_members(self.split))

    def __getitem__(self, index: int) -> dict[str, np.ndarray | str | np.int32]:
        """Element {'image': uint8 [S, S, 3], 'text': str, 'labels': uint8 [S, S], 'class': int32 []}."""
        picture = _members(self.split)[index]
        image, labels, entry = _centred(self.image_size, picture, GROUNDS["white"])
        tags = captions.new_tags(entry.caption, entry.tags)[:_NUM_TAGS]
        text = ", ".join([captions.plain_label(entry.caption), *tags])
        return {"image": image, "text": text, "labels": labels, "class": np.int32(group_ids()[picture])}


@dataclasses.dataclass(frozen=True)
class EmojiGrounds(_EmojiSource):
    """Every picture of a split, centred, on each of the named plain grounds.

    Small and even: ten times as many images as pictures, so that a short training meets each drawing
    often. Captions name the ground; each image has one without and one with tags.

    Attributes and errors as in `_EmojiSource`.
    """

    name = "emoji-grounds"
    _is_single = True

    def __len__(self) -> int:
        return len(_members(self.split)) * len(GROUNDS)

    def __getitem__(self, index: int) -> dict[str, np.ndarray | str | tuple[str, ...] | np.int32]:
        """Element as of `EmojiPictures`, and 'texts': 2 str."""
        members = _members(self.split)
        turn, member = divmod(range(len(self))[index], len(members))
        # Neighbours differ in both picture and ground, which makes for better sheets.
        picture, ground = members[member], (turn + member) % len(GROUNDS)
        image, labels, entry = _centred(self.image_size, picture, _GROUND_COLOURS[ground])
        phrase = captions.noun_phrase(entry.caption)
        tags = captions.new_tags(entry.caption, entry.tags)[:3]
        where = f"on {captions.with_article(_GROUND_NAMES[ground])} background"
        texts = (f"{phrase} {where}", f"{', '.join([phrase, *tags])}, {where}")
        element = {"image": image, "labels": labels, "class": np.int32(group_ids()[picture])}
        return element | caption_fields(texts, index)


@dataclasses.dataclass(frozen=True)
class EmojiScenes(_EmojiSource):
    """Scenes of a few emoji on plain or two-colour grounds, with true captions.

    A scene depends on (split, max_objects, index) alone, its resolution on image_size. Half of all
    scenes hold one object, a quarter two, and so on, as far as `max_objects` goes. Held-out scenes
    show held-out pictures only.

    Attributes:
        split: 'train' or 'heldout'.
        image_size: 8 to 128.
        max_objects: 1 to 4.
        num_scenes: length; None for 2**20 (train) or 512 (heldout).

    Raises:
        UserError: a value out of range.
    """

    max_objects: int = MAX_OBJECTS
    num_scenes: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.max_objects <= MAX_OBJECTS:
            raise UserError(
                f"max_objects {self.max_objects} of the emoji scenes is out of range: "
                f"choose 1 to {MAX_OBJECTS}."
            )
        if self.num_scenes is None:
            object.__setattr__(self, "num_scenes", _DEFAULT_SCENES[self.split])
        elif self.num_scenes < 1:
            raise UserError(f"num_scenes {self.num_scenes} of the emoji scenes must be at least 1.")

    @property
    def name(self) -> str:
        """The spec that makes this source."""
        return f"emoji-scenes:{self.max_objects}"

    def __len__(self) -> int:
        return self.num_scenes

    def __getitem__(self, index: int) -> dict[str, np.ndarray | str]:
        """Element {'image': uint8 [S, S, 3], 'text': str, 'labels': uint8 [S, S]}."""
        index = range(self.num_scenes)[index]  # bounds and negative indices as in a list
        dice = Dice((SPLITS.index(self.split), index))
        pack_size = _pack_size(self.image_size)
        pack = load_pack(pack_size)
        # Halving odds: 1/2, 1/4, ..., and the last takes the rest.
        count = min(1 + int(-math.log2(1.0 - dice.uniform())), self.max_objects)
        members = _members(self.split)
        pictures = [members[i] for i in dice.distinct(len(members), count)]
        words, cells = _LAYOUTS[count][dice.below(len(_LAYOUTS[count]))]
        image, ground = self._ground(dice)
        labels = np.zeros(image.shape[:2], np.uint8)
        for picture, cell in zip(pictures, cells, strict=True):
            box = drawing.bounding_boxes(pack_size)[picture]
            place = self._place(dice, cell, box, count)
            drawn = drawing.sprite(pack_size, picture)
            drawing.paste(image, labels, drawn, pack.labels[picture], box, place)
        entries = [pack.entries[picture] for picture in pictures]
        text = words.format(*(captions.noun_phrase(entry.caption) for entry in entries))
        if count == 1 and dice.uniform() < 0.3:
            tags = captions.new_tags(entries[0].caption, entries[0].tags)
            chosen = dice.distinct(len(tags), min(1 + dice.below(3), len(tags)))
            text = ", ".join([text, *(tags[i] for i in chosen)]) + ("," if chosen else "")
        return {"image": image, "text": f"{text} on {ground}", "labels": labels}

    def _ground(self, dice: Dice) -> tuple[np.ndarray, str]:
        """Draws a plain (2 of 3) or two-colour ground: (uint8 [S, S, 3], its words)."""
        size = self.image_size
        first, second = dice.distinct(len(GROUNDS), 2)
        kind = dice.below(6)  # 0 to 3: plain, 4: left to right, 5: top to bottom
        image = np.empty((size, size, 3), np.uint8)
        if kind < 4:
            image[:] = _GROUND_COLOURS[first]
            return image, captions.with_article(f"{_GROUND_NAMES[first]} background")
        ramp = np.linspace(0.0, 1.0, size)[:, None]
        line = (1.0 - ramp) * _GROUND_COLOURS[first] + ramp * _GROUND_COLOURS[second]
        line = line.round().astype(np.uint8)
        image[:] = line[None] if kind == 4 else line[:, None]
        fade = f"{_GROUND_NAMES[first]} to {_GROUND_NAMES[second]} background"
        return image, captions.with_article(fade)

    def _place(
        self, dice: Dice, cell: Sequence[float], box: Sequence[int], count: int
    ) -> tuple[int, int, int, int]:
        """Draws size and position of an object within its cell: left, top, width, height."""
        left, top, right, bottom = (
            round(edge * self.image_size) for edge in (cell[0], cell[1], cell[0] + cell[2], cell[1] + cell[3])
        )
        # One object leaves room to move; several need every pixel.
        fraction = dice.uniform(0.7, 0.95) if count == 1 else dice.uniform(0.8, 1.0)
        extent = fraction * min(right - left, bottom - top)
        scale = extent / max(box[2] - box[0], box[3] - box[1])
        width = max(1, int(scale * (box[2] - box[0])))
        height = max(1, int(scale * (box[3] - box[1])))
        # The middle of the room left over: neighbours in a row should stand about level.
        return (
            left + round(dice.uniform(0.2, 0.8) * (right - left - width)),
            top + round(dice.uniform(0.2, 0.8) * (bottom - top - height)),
            width,
            height,
        )
