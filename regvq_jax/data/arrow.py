"""Data sets that Hugging Face's `datasets` has saved to disk, as a data source."""

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from regvq_jax.data.captions import caption_fields
from regvq_jax.data.decode import decode_element
from regvq_jax.data.images import ImageError
from regvq_jax.data.listing import HELDOUT_FOLDERS, TRAIN_FOLDERS, heldout_paths
from regvq_jax.data.replacing import Replacing, ReplacingSource
from regvq_jax.errors import UserError

_IMAGES = ("image", "img", "jpg", "png", "picture")
_MAPS = ("labels", "label_map", "segmentation", "segmentation_map", "mask", "annotation")
_TEXTS = ("captions", "caption", "texts", "text", "prompt")
_CLASSES = ("class", "label")


class ArrowSource(ReplacingSource):
    """A split of what `Dataset.save_to_disk` or `DatasetDict.save_to_disk` has written.

    Columns are found by kind and name: the image is an image column called "image", or the first there is;
    captions are strings, or lists of them, called "caption" or "text"; the class is a class label called
    "label" or "class"; a label map is an image column called "labels", "mask" or "segmentation...". Splits
    are as in `TfdsSource`, also a single one; a data set without splits holds out a tenth by a hash of the
    row's number.
    """

    def __init__(
        self,
        path: str,
        split: str,
        *,
        heldout_split: str = "",
        image_size: int = 1,
        upscale: bool = True,
        num_label_classes: int = 0,
        decode_side: int | None = None,
    ):
        """Opens the files; decodes nothing.

        Args:
            path: the directory that was saved to.
            split: "train" or "heldout".
            heldout_split: the data set's split that is held out, "" = the first of validation, val and test.
            image_size: smaller images are replaced by the next one ...
            upscale: ... unless they may be enlarged.
            num_label_classes: read label maps with ids below it; 0 leaves them alone.
            decode_side: see `images.read_image`; only where there are no label maps.

        Raises:
            UserError: `datasets` is not installed, there is nothing saved at `path`, or a split or an image
                is missing.
        """
        self.name = f"arrow:{path}"
        self._rows, self._split, tenth = _open(path, split, heldout_split, self.name)
        self._indices = np.arange(len(self._rows))
        if tenth:
            held = heldout_paths([str(i) for i in range(len(self._rows))])
            chosen = [i for i in range(len(self._rows)) if (str(i) in held) == (split == "heldout")]
            self._indices = np.array(chosen)
        kinds = {name: type(feature).__name__ for name, feature in self._rows.features.items()}
        images = [name for name, kind in kinds.items() if kind == "Image" and name not in _MAPS]
        self._image = next((name for name in _IMAGES if name in images), images[0] if images else "")
        if not self._image:
            raise UserError(f"{self.name} has no column of images: it has {', '.join(kinds)}.")
        self._map = next((n for n in _MAPS if kinds.get(n) == "Image"), "") if num_label_classes else ""
        if num_label_classes and not self._map:
            raise UserError(
                f"data.num_label_classes={num_label_classes}, but {self.name} has no label maps among "
                f"{', '.join(kinds)}: set it to 0."
            )
        self._text = next((name for name in _TEXTS if _is_text(self._rows.features.get(name))), "")
        self._class = next((name for name in _CLASSES if kinds.get(name) == "ClassLabel"), "")
        self._min_size, self._decode_side = 1 if upscale else image_size, decode_side
        self.has_text, self.has_labels = bool(self._text), bool(self._map)
        self.num_label_classes = num_label_classes
        self.class_names = tuple(self._rows.features[self._class].names) if self._class else ()
        self.num_classes = len(self.class_names)
        # `datasets` makes it from the data and what was done to them.
        facts = (self._rows._fingerprint, self._split, tenth and split, num_label_classes)
        self.fingerprint = hashlib.sha256(ascii(facts).encode()).hexdigest()[:16]
        what = f"{split} images of {self.name}"
        self._elements = Replacing(self._read, len(self._indices), self._name_of, what)

    def _read(self, index: int) -> dict[str, Any]:
        row = self._rows[int(self._indices[index])]
        name = self._name_of(index)
        element = decode_element(
            _content(row[self._image], name),
            name,
            min_size=self._min_size,
            decode_side=self._decode_side,
            labels=_content(row[self._map], name) if self._map else None,
            num_label_classes=self.num_label_classes,
        )
        if self._class:
            element["class"] = np.int32(-1 if row[self._class] is None else row[self._class])
            if not 0 <= element["class"] < self.num_classes:
                raise UserError(
                    f"{name} has the class {row[self._class]}, which is none of the {self.num_classes}: "
                    "if its split keeps them secret, choose another data.heldout_split."
                )
        return element | caption_fields(self._captions(row), index)

    def _captions(self, row: dict[str, Any]) -> tuple[str, ...]:
        if not self._text:
            return ()
        value = row[self._text]
        texts = [value] if isinstance(value, str) else [text for text in value or () if text]
        return tuple(text for text in (" ".join(text.split()) for text in texts) if text) or ("",)

    def _name_of(self, index: int) -> str:
        return f"{self.name}/{self._split}[{self._indices[index]}]"


def _open(path: str, split: str, heldout: str, name: str) -> tuple[Any, str, bool]:
    """(rows with undecoded images, their split, whether a tenth of them is held out)."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{name} needs Hugging Face's datasets: pip install -e '.[arrow]'.") from error
    path = os.path.expanduser(path)
    try:
        saved = datasets.load_from_disk(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{path} was not written by save_to_disk of Hugging Face's datasets: {error}."
        ) from error
    tenth = False
    if isinstance(saved, datasets.DatasetDict):
        there = list(saved)
        train = _first(TRAIN_FOLDERS, there) or (there[0] if len(there) == 1 else "")
        held = heldout or _first([folder for folder in HELDOUT_FOLDERS if folder != train], there)
        if not train or (heldout and heldout not in there):
            wanted = "train" if not train else heldout
            raise UserError(f'{name} has no split "{wanted}": it has {", ".join(there)}.')
        if held == train:
            raise UserError(f'{name} is trained on its split "{train}": data.heldout_split must be another.')
        chosen, tenth = (train, not held) if split == "train" or not held else (held, False)
        rows = saved[chosen]
    elif heldout:
        raise UserError(f"{name} has no splits: leave data.heldout_split empty.")
    else:
        rows, chosen, tenth = saved, "rows", True
    for column, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows, chosen, tenth


def _first(names: Sequence[str], there: Sequence[str]) -> str:
    return next((name for name in names if name in there), "")


def _is_text(feature: Any) -> bool:
    if isinstance(feature, list):
        feature = feature[0]
    feature = getattr(feature, "feature", feature)
    return getattr(feature, "dtype", "") in ("string", "large_string")


def _content(image: dict[str, Any] | None, name: str) -> bytes:
    """The bytes of an undecoded image: they lie in the row, or in a file that the row names."""
    if not image or not (image["bytes"] or image["path"]):
        raise ImageError(f"{name} is empty.")
    if image["bytes"]:
        return image["bytes"]
    try:
        with open(image["path"], "rb") as file:
            return file.read()
    except OSError as error:
        raise ImageError(f"Cannot read {image['path']} of {name}: {error.strerror}.") from error
