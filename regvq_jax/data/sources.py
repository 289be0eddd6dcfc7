"""Data sources by name: `make_source("folder:PATH", split="train", image_size=256)`."""

import dataclasses
import difflib
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from regvq_jax.errors import UserError

Split = Literal["train", "heldout"]
Element = dict[str, Any]
SPLITS = ("train", "heldout")


@runtime_checkable
class Source(Protocol):
    """Random access to elements, the same element for the same index in every process; picklable.

    An element is a dict of host values:
        "image": uint8 [H, W, 3];
        "labels": uint8 [H, W], ids in [0, num_label_classes), where `has_labels`;
        "class": int32 [] in [0, num_classes), where that is not 0;
        "text": str, one caption fixed by the index, where `has_text`;
        "texts": tuple of str, all captions of the image, where there may be several.

    Attributes:
        name: what the user called it.
        fingerprint: 16 hex digits, equal for equal data wherever it lies.
        has_text: every element has "text".
        has_labels: every element has "labels".
        num_label_classes: 0 without labels.
        num_classes: 0 where elements have no "class".
        class_names: of the classes in order; () where there are none.

    A source that has left something out has `skipped`, a tuple of (name, reason), too; one that knows what
    its label classes are called has `label_names`.
    """

    name: str
    fingerprint: str
    has_text: bool
    has_labels: bool
    num_label_classes: int
    num_classes: int
    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Element: ...


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """What `make_source` was asked for besides the source's name and argument."""

    split: Split
    image_size: int
    upscale: bool
    num_label_classes: int
    class_folders: bool
    data_dir: str
    heldout_split: str
    decode_side: int | None

    @property
    def decoding(self) -> dict[str, Any]:
        """What every source of files wants to know of the pictures."""
        names = ("image_size", "upscale", "num_label_classes", "decode_side")
        return {name: getattr(self, name) for name in names}


class Picked:
    """Some elements of a source, in an order of one's own."""

    def __init__(self, source: Source, indices: np.ndarray):
        """Everything but the order is that of `source`; an element may be picked more than once.

        Args:
            source: random access to elements.
            indices: int [N].
        """
        self._source, self._indices = source, indices

    @property
    def name(self) -> str:
        """That of the source."""
        return self._source.name

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Element:
        return self._source[int(self._indices[index])]


def shuffled(source: Source) -> Picked:
    """A source in a fixed random order, in which neighbours have nothing to do with each other."""
    return Picked(source, np.random.default_rng(0).permutation(len(source)))


def make_source(
    spec: str,
    *,
    split: Split,
    image_size: int,
    upscale: bool = False,
    num_label_classes: int = 0,
    class_folders: bool = False,
    data_dir: str = "",
    heldout_split: str = "",
    decode_side: int | None = None,
) -> Source:
    """Opens the data that a config names.

    Args:
        spec: "emoji", "emoji-grounds", "emoji-scenes", "emoji-scenes:M" (at most M objects), "folder:PATH",
            "tfds:NAME/CONFIG:VERSION" (config and version where wanted), "webdataset:SHARDS" or
            "arrow:PATH".
        split: "train" or "heldout".
        image_size: side of the square crop that the pictures are meant for.
        upscale: let images through that are smaller than `image_size`.
        num_label_classes: of a folder's label maps; 0 leaves them alone. The emoji have 25 without asking.
        class_folders: a folder's images lie in one sub-folder for each class.
        data_dir: where tensorflow-datasets keeps prepared sets; "" = its default.
        heldout_split: of such a set, "" = the first of validation, val and test.
        decode_side: large JPEG images may be decoded smaller, see `images.read_image`; None = they are not.

    Returns:
        A `Source`.

    Raises:
        UserError: unknown scheme or split, an argument that the scheme cannot use, or data that the
            source itself refuses.
    """
    scheme, colon, argument = spec.partition(":")
    if scheme not in SOURCES:
        close = difflib.get_close_matches(scheme, SOURCES, n=1)
        hint = f" did you mean {close[0]!r}?" if close else ""
        raise UserError(f"Unknown data source {spec!r}:{hint} Known are {', '.join(SOURCES_HELP)}.")
    if split not in SPLITS:
        raise UserError(f"Unknown split {split!r}: known are {', '.join(SPLITS)}.")
    if image_size < 1:
        raise UserError(f"data.image_size must be at least 1, got {image_size}.")
    if num_label_classes < 0:
        raise UserError(f"data.num_label_classes must be at least 0, got {num_label_classes}.")
    wanted = _Wanted(
        split, image_size, upscale, num_label_classes, class_folders, data_dir, heldout_split, decode_side
    )
    source = SOURCES[scheme](argument if colon else None, wanted)
    if num_label_classes and source.num_label_classes != num_label_classes:
        raise UserError(
            f"Data source {spec!r} has {source.num_label_classes} label classes, not "
            f"{num_label_classes}: set data.num_label_classes={source.num_label_classes}, or leave it at 0."
        )
    if class_folders and scheme != "folder":
        raise UserError(f"Data source {spec!r} has no class folders: set data.class_folders=False.")
    return source


# What is behind a source is imported when it is opened: nobody pays for those they do not use.
def _emoji(argument: str | None, wanted: _Wanted) -> Source:
    from regvq_jax.data.emoji.sources import EmojiPictures

    if argument is not None:
        raise UserError(f"Data source 'emoji' takes no argument, got {argument!r}.")
    return EmojiPictures(wanted.split, wanted.image_size)


def _emoji_grounds(argument: str | None, wanted: _Wanted) -> Source:
    from regvq_jax.data.emoji.sources import EmojiGrounds

    if argument is not None:
        raise UserError(f"Data source 'emoji-grounds' takes no argument, got {argument!r}.")
    return EmojiGrounds(wanted.split, wanted.image_size)


def _emoji_scenes(argument: str | None, wanted: _Wanted) -> Source:
    from regvq_jax.data.emoji.sources import EmojiScenes

    max_objects = "4" if argument is None else argument
    if not (max_objects.isascii() and max_objects.isdigit() and int(max_objects) >= 1):
        raise UserError(
            f"Data source 'emoji-scenes:M' needs a whole number M of at least 1, got {argument!r}."
        )
    return EmojiScenes(wanted.split, wanted.image_size, int(max_objects))


def _folder(argument: str | None, wanted: _Wanted) -> Source:
    from regvq_jax.data.folder import FolderSource

    if not argument:
        raise UserError("Data source 'folder' needs a path: 'folder:PATH'.")
    return FolderSource(
        argument,
        wanted.split,
        class_folders=wanted.class_folders,
        **wanted.decoding,
    )


def _tfds(argument: str | None, wanted: _Wanted) -> Source:
    from regvq_jax.data.tfds_source import TfdsSource

    if not argument:
        raise UserError("Data source 'tfds' needs a name: 'tfds:NAME', 'tfds:NAME/CONFIG:VERSION'.")
    return TfdsSource(
        argument,
        wanted.split,
        data_dir=wanted.data_dir,
        heldout_split=wanted.heldout_split,
        **wanted.decoding,
    )


def _webdataset(argument: str | None, wanted: _Wanted) -> Source:
    from regvq_jax.data.webdataset import WebdatasetSource

    return WebdatasetSource(
        argument or "",
        wanted.split,
        **wanted.decoding,
    )


def _arrow(argument: str | None, wanted: _Wanted) -> Source:
    from regvq_jax.data.arrow import ArrowSource

    if not argument:
        raise UserError("Data source 'arrow' needs a path: 'arrow:PATH'.")
    return ArrowSource(
        argument,
        wanted.split,
        heldout_split=wanted.heldout_split,
        **wanted.decoding,
    )


SOURCES = {
    "emoji": _emoji,
    "emoji-grounds": _emoji_grounds,
    "emoji-scenes": _emoji_scenes,
    "folder": _folder,
    "tfds": _tfds,
    "webdataset": _webdataset,
    "arrow": _arrow,
}
SOURCES_HELP = (
    *("'emoji'", "'emoji-grounds'", "'emoji-scenes'", "'emoji-scenes:M'", "'folder:PATH'"),
    *("'tfds:NAME/CONFIG:VERSION'", "'webdataset:SHARDS'", "'arrow:PATH'"),
)
