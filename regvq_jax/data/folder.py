"""A folder of the user's own images, with or without captions, label maps, classes, as a data source."""

import hashlib
import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from regvq_jax.data import listing
from regvq_jax.data.captions import METADATA_NAMES, caption_fields, read_metadata, read_text_file
from regvq_jax.data.class_folders import class_ids, class_names
from regvq_jax.data.images import ImageError, read_image
from regvq_jax.data.labels import MAX_CLASSES, read_label_map
from regvq_jax.data.listing import IMAGE_FOLDER, MAP_FOLDERS, File, Layout, first_names
from regvq_jax.errors import UserError


class FolderSource:
    """The images below a folder, in the order of their relative paths.

    Splits: with a sub-folder `train/` or `training/` and one of `heldout/ validation/ valid/ val/
    test/` these are the splits; otherwise a stable hash of the relative path holds out 10 %, at least
    one image.

    Captions: the rows of a `metadata.jsonl` or `metadata.csv` (`file_name`, `text`) at the root or
    in the folder of the images; for images that these do not name, the lines of the `.txt` file of
    the same name. "texts" are all captions of an image, "text" is number `index` modulo their
    count, in both splits; training draws from "texts" (see `transforms.encode_text`).

    Label maps: where the folder has `images/` and `labels/` or `annotations/`, only what lies below
    `images/` is an image, and its map is the .png of the same relative path below the other, one byte
    a pixel. Classes: the sub-folders of the training images, in sorted order.

    Images with an unreadable header, those smaller than the crop and those without a map of their
    size are skipped and named in the log. One that only fails when it is decoded is replaced by the
    next readable one, in every process alike, and named in the log.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        split: str,
        image_size: int,
        upscale: bool = False,
        *,
        num_label_classes: int = 0,
        class_folders: bool = False,
    ):
        """Lists the folder and reads every image header.

        Args:
            path: the folder.
            split: "train" or "heldout".
            image_size: images with a shorter short side are skipped.
            upscale: keep those images too.
            num_label_classes: read label maps with ids below it; 0 leaves them alone.
            class_folders: every image lies in the sub-folder of its class.

        Raises:
            UserError: no such folder, fewer than 2 images, more than 1 % of them unusable, captions for
                some only, no folder of label maps, or an image outside of the classes' folders.
        """
        self.name = f"folder:{os.fspath(path)}"
        self._root = os.path.abspath(path)
        self._split = split
        layout = listing.find_layout(self._root, split)
        files = listing.list_files(self._root, layout.images)
        images = listing.select_images(self._root, layout, files)
        maps = None
        if num_label_classes:
            _check_maps(self._root, layout, num_label_classes)
            maps = {image.path: listing.map_path(layout, image.path) for image in images}
        minimum = 1 if upscale else image_size
        wanted_maps = tuple(maps.values()) if maps else None
        skipped = listing.scan_headers(self._root, tuple(images), minimum, wanted_maps)
        images = [image for image in images if image.path not in skipped]
        captions = _read_captions(self._root, layout.images, files, images)
        if not layout.is_split:
            heldout = listing.heldout_paths([image.path for image in images])
            images = [image for image in images if (image.path in heldout) == (split == "heldout")]
        self._paths = [image.path for image in images]
        self._captions = [captions[path] for path in self._paths] if captions else None
        self._maps = [maps[path] for path in self._paths] if maps else None
        self.class_names = class_names(self._root) if class_folders else ()
        self._classes = class_ids(self.class_names, layout.images, self._paths) if class_folders else None
        self.has_text = captions is not None
        self.has_labels = maps is not None
        self.num_label_classes = num_label_classes
        self.num_classes = len(self.class_names)
        self.fingerprint = self._fingerprint(images)
        self._undecodable: set[int] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Decodes one image.

        Args:
            index: in [0, len).

        Returns:
            {"image": uint8 [H, W, 3]} and, with captions, "text": str and "texts": tuple of str; with
            label maps, "labels": uint8 [H, W]; with classes, "class": int32 [].

        Raises:
            UserError: more than 1 % of the images cannot be decoded, or a label is none of the classes'.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        # Ends at the latest where the share of undecodable images passes the limit.
        while True:
            if index in self._undecodable:
                self._check_undecodable()
            else:
                try:
                    return self._read(index)
                except ImageError as error:
                    self._note_undecodable(index, error)
            index = (index + 1) % len(self)

    def _read(self, index: int) -> dict[str, Any]:
        """The element, or an `ImageError`."""
        element = {"image": read_image(os.path.join(self._root, self._paths[index]))}
        if self._maps:
            labels = read_label_map(os.path.join(self._root, self._maps[index]), self.num_label_classes)
            if labels.shape != element["image"].shape[:2]:
                raise ImageError(f"Label map {self._maps[index]} has not the size of its image.")
            element["labels"] = labels
        if self._classes:
            element["class"] = np.int32(self._classes[index])
        return element | caption_fields(self._captions[index] if self._captions else (), index)

    def _fingerprint(self, images: Sequence[File]) -> str:
        # No times and no root: a copy of the folder is the same data.
        digest = hashlib.sha256()
        for i, image in enumerate(images):
            facts = (*image, self._captions[i] if self._captions else ())
            if self._maps:
                size = os.path.getsize(os.path.join(self._root, self._maps[i]))
                facts += (self._maps[i], size, self.num_label_classes)
            if self._classes:
                facts += (self.class_names[self._classes[i]],)
            digest.update(ascii(facts).encode())
        return digest.hexdigest()[:16]

    def _note_undecodable(self, index: int, error: ImageError) -> None:
        with self._lock:
            is_new = index not in self._undecodable
            self._undecodable.add(index)
            count = len(self._undecodable)
        if is_new:
            logging.warning("%s The next one is used in its place (%d so far).", error, count)
        self._check_undecodable()

    def _check_undecodable(self) -> None:
        with self._lock:
            bad = sorted(self._undecodable)
        if len(bad) > listing.MAX_SKIPPED_SHARE * len(self):
            names = first_names([self._paths[i] for i in bad])
            raise UserError(
                f"More than 1 % of the {len(self)} {self._split} images of {self._root} cannot be "
                f"decoded, so far {len(bad)} ({names}): repair or remove them."
            )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


def _check_maps(root: str, layout: Layout, num_label_classes: int) -> None:
    if not 0 < num_label_classes <= MAX_CLASSES:
        raise UserError(f"data.num_label_classes must be 0 to {MAX_CLASSES}, got {num_label_classes}.")
    if not layout.maps:
        raise UserError(
            f"data.num_label_classes={num_label_classes} needs label maps, and {root} has no folder of them: "
            f"put the images into {IMAGE_FOLDER}/ in it and their maps, as .png of the same relative path, "
            f"into {' or '.join(f'{name}/' for name in MAP_FOLDERS)}, or set data.num_label_classes=0."
        )


def _read_captions(
    root: str, folder: str, files: Sequence[File], images: Sequence[File]
) -> dict[str, tuple[str, ...]] | None:
    """Captions by relative path for all images, or None where none has any."""
    named = read_metadata(root)
    parts = folder.split("/") if folder else []
    for end in range(1, len(parts) + 1):
        inner = "/".join(parts[:end])
        rows = read_metadata(os.path.join(root, inner))
        named |= {f"{inner}/{name}": texts for name, texts in rows.items()}
    absent = [name for name in named if not os.path.isfile(os.path.join(root, name))]
    if absent:
        raise UserError(
            f"{' or '.join(METADATA_NAMES)} in {root} names {len(absent)} images that do not exist "
            f"({first_names(absent)}): file_name is relative to the folder of that file."
        )
    present = {file.path for file in files}
    captions = {}
    for image in images:
        text_path = f"{os.path.splitext(image.path)[0]}.txt"
        if named.get(image.path):
            captions[image.path] = named[image.path]
        elif text_path in present:
            captions[image.path] = read_text_file(os.path.join(root, text_path))
    missing = [image.path for image in images if not captions.get(image.path)]
    if len(missing) == len(images):
        return None
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(images)} images of {os.path.join(root, folder)} have no "
            f"caption, the others have one ({first_names(missing)}): give one to all, or to none."
        )
    return captions
