"""A folder of the user's own images, with or without captions, label maps, classes, as a data source."""

import functools
import hashlib
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from regvq_jax.data import listing
from regvq_jax.data.captions import METADATA_NAMES, caption_fields, read_metadata, read_text_file
from regvq_jax.data.class_folders import class_ids, class_names
from regvq_jax.data.images import ImageError, read_image
from regvq_jax.data.labels import MAX_CLASSES, read_label_map
from regvq_jax.data.listing import IMAGE_FOLDER, MAP_FOLDERS, Layout, first_names
from regvq_jax.data.replacing import Replacing, ReplacingSource
from regvq_jax.data.tree import File, Tree, open_tree
from regvq_jax.errors import UserError


class FolderSource(ReplacingSource):
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
        decode_side: int | None = None,
    ):
        """Lists the folder and reads every image header.

        Args:
            path: the folder, or a .zip or .tar of it, on a disk or at a URL (gs://, s3://, ...).
            split: "train" or "heldout".
            image_size: images with a shorter short side are skipped.
            upscale: keep those images too.
            num_label_classes: read label maps with ids below it; 0 leaves them alone.
            class_folders: every image lies in the sub-folder of its class.
            decode_side: see `images.read_image`; only where there are no label maps.

        Raises:
            UserError: no such folder, fewer than 2 images, more than 1 % of them unusable, captions for
                some only, no folder of label maps, or an image outside of the classes' folders.
        """
        self.name = f"folder:{os.fspath(path)}"
        self._tree = _open_tree(os.fspath(path))
        files = self._tree.files()
        paths = {file.path for file in files}
        layout = listing.find_layout(paths, split)
        images = listing.select_images(self._tree.name, layout, files)
        maps = None
        if num_label_classes:
            _check_maps(self._tree.name, layout, num_label_classes)
            maps = {image.path: listing.map_path(layout, image.path) for image in images}
        minimum = 1 if upscale else image_size
        wanted_maps = tuple(maps.values()) if maps else None
        skipped = listing.scan_headers(self._tree, tuple(images), minimum, wanted_maps)
        self.skipped = tuple(sorted(skipped.items()))
        images = [image for image in images if image.path not in skipped]
        captions = _read_captions(self._tree, layout.images, paths, images)
        if maps or captions:
            _check_names(self._tree.name, images)
        if not layout.is_split:
            heldout = listing.heldout_paths([image.path for image in images])
            images = [image for image in images if (image.path in heldout) == (split == "heldout")]
        self._paths = [image.path for image in images]
        self._captions = [captions[path] for path in self._paths] if captions else None
        self._maps = [maps[path] for path in self._paths] if maps else None
        self.class_names = class_names(self._tree.name, paths) if class_folders else ()
        self._classes = class_ids(self.class_names, layout.images, self._paths) if class_folders else None
        self._decode_side = None if maps else decode_side
        self.has_text = captions is not None
        self.has_labels = maps is not None
        self.num_label_classes = num_label_classes
        self.num_classes = len(self.class_names)
        self.fingerprint = self._fingerprint(images, {file.path: file.size for file in files})
        what = f"{split} images of {self._tree.name}"
        self._elements = Replacing(self._read, len(images), self._paths.__getitem__, what)

    def _read(self, index: int) -> dict[str, Any]:
        """The element, or an `ImageError`."""
        path = self._paths[index]
        name = f"{self._tree.name}/{path}"
        element = {"image": read_image(self._content(path), name, self._decode_side)}
        if self._maps:
            path = self._maps[index]
            labels = read_label_map(self._content(path), self.num_label_classes, f"{self._tree.name}/{path}")
            if labels.shape != element["image"].shape[:2]:
                raise ImageError(f"Label map {path} has not the size of its image.")
            element["labels"] = labels
        if self._classes:
            element["class"] = np.int32(self._classes[index])
        return element | caption_fields(self._captions[index] if self._captions else (), index)

    def _content(self, path: str) -> bytes:
        try:
            return self._tree.read(path)
        except OSError as error:
            reason = error.strerror or error
            raise ImageError(f"Cannot read {self._tree.name}/{path}: {reason}.") from error

    def _fingerprint(self, images: Sequence[File], sizes: Mapping[str, int]) -> str:
        # No times and no root: a copy of the folder is the same data.
        digest = hashlib.sha256()
        for i, image in enumerate(images):
            facts = (*image, self._captions[i] if self._captions else ())
            if self._maps:
                facts += (self._maps[i], sizes[self._maps[i]], self.num_label_classes)
            if self._classes:
                facts += (self.class_names[self._classes[i]],)
            digest.update(ascii(facts).encode())
        return digest.hexdigest()[:16]


# The sources of both splits share the tree: an archive is indexed once, and headers are read once.
_open_tree = functools.lru_cache(maxsize=2)(open_tree)


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
    tree: Tree, folder: str, paths: Collection[str], images: Sequence[File]
) -> dict[str, tuple[str, ...]] | None:
    """Captions by relative path for all images, or None where none has any."""
    parts = folder.split("/") if folder else []
    named = {}
    for end in range(len(parts) + 1):
        named |= read_metadata(tree, "/".join(parts[:end]), paths)
    absent = [name for name in named if name not in paths]
    if absent:
        raise UserError(
            f"{' or '.join(METADATA_NAMES)} in {tree.name} names {len(absent)} images that do not exist "
            f"({first_names(absent)}): file_name is relative to the folder of that file."
        )
    captions, lonely = {}, {path for path in paths if path.endswith(".txt")}
    lonely = {path for path in lonely if path.startswith(f"{folder}/" if folder else "")}
    for image in images:
        text_path = f"{os.path.splitext(image.path)[0]}.txt"
        lonely.discard(text_path)
        if named.get(image.path):
            captions[image.path] = named[image.path]
        elif text_path in paths:
            captions[image.path] = read_text_file(tree, text_path)
    missing = [image.path for image in images if not captions.get(image.path)]
    if len(missing) == len(images):
        return None
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(images)} images of {tree.name}/{folder} have no "
            f"caption, the others have one ({first_names(missing)}): give one to all, or to none."
        )
    if lonely:
        names = first_names(sorted(lonely))
        logging.warning("%d caption files of %s have no usable image (%s).", len(lonely), tree.name, names)
    return captions


def _check_names(name: str, images: Sequence[File]) -> None:
    """Raises UserError where two images would share a caption file or a label map."""
    stems: dict[str, str] = {}
    for image in images:
        other = stems.setdefault(os.path.splitext(image.path)[0], image.path)
        if other != image.path:
            raise UserError(
                f"{other} and {image.path} of {name} differ by their extension only and would share a "
                "caption or label map: rename or remove one."
            )
