"""Data sources by name: `make_source("folder:PATH", split="train", image_size=256)`."""

import difflib
import os
from typing import Any, Literal, Protocol, runtime_checkable

from regvq_jax.errors import UserError

Split = Literal["train", "heldout"]
Element = dict[str, Any]
SPLITS = ("train", "heldout")


@runtime_checkable
class Source(Protocol):
    """Random access to elements, the same element for the same index in every process; picklable.

    An element is a dict of host values:
        "image": uint8 [H, W, 3];
        "labels": uint8 [H, W], where `has_labels`;
        "text": str, one caption fixed by the index, where `has_text`;
        "texts": tuple of str, all captions of the image, where there may be several.

    Attributes:
        name: what the user called it.
        fingerprint: 16 hex digits, equal for equal data wherever it lies.
        has_text: every element has "text".
        has_labels: every element has "labels".
    """

    name: str
    fingerprint: str
    has_text: bool
    has_labels: bool

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Element: ...


def make_source(spec: str, *, split: Split, image_size: int, upscale: bool = False) -> Source:
    """Opens the data that a config names.

    Args:
        spec: "emoji", "emoji-grounds", "emoji-scenes", "emoji-scenes:M" (at most M objects) or "folder:PATH".
        split: "train" or "heldout".
        image_size: side of the square crop that the pictures are meant for.
        upscale: let images through that are smaller than `image_size`.

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
    factory = SOURCES[scheme]
    return factory(argument if colon else None, split=split, image_size=image_size, upscale=upscale)


# What is behind a source is imported when it is opened: nobody pays for those they do not use.
def _emoji(argument: str | None, *, split: Split, image_size: int, upscale: bool) -> Source:
    from regvq_jax.data.emoji.sources import EmojiPictures

    if argument is not None:
        raise UserError(f"Data source 'emoji' takes no argument, got {argument!r}.")
    return EmojiPictures(split, image_size)


def _emoji_grounds(argument: str | None, *, split: Split, image_size: int, upscale: bool) -> Source:
    from regvq_jax.data.emoji.sources import EmojiGrounds

    if argument is not None:
        raise UserError(f"Data source 'emoji-grounds' takes no argument, got {argument!r}.")
    return EmojiGrounds(split, image_size)


def _emoji_scenes(argument: str | None, *, split: Split, image_size: int, upscale: bool) -> Source:
    from regvq_jax.data.emoji.sources import EmojiScenes

    max_objects = "4" if argument is None else argument
    if not (max_objects.isascii() and max_objects.isdigit() and int(max_objects) >= 1):
        raise UserError(
            f"Data source 'emoji-scenes:M' needs a whole number M of at least 1, got {argument!r}."
        )
    return EmojiScenes(split, image_size, int(max_objects))


def _folder(argument: str | None, *, split: Split, image_size: int, upscale: bool) -> Source:
    from regvq_jax.data.folder import FolderSource

    if not argument:
        raise UserError("Data source 'folder' needs a path: 'folder:PATH'.")
    return FolderSource(os.path.expanduser(argument), split, image_size, upscale=upscale)


SOURCES = {"emoji": _emoji, "emoji-grounds": _emoji_grounds, "emoji-scenes": _emoji_scenes, "folder": _folder}
SOURCES_HELP = ("'emoji'", "'emoji-grounds'", "'emoji-scenes'", "'emoji-scenes:M'", "'folder:PATH'")
