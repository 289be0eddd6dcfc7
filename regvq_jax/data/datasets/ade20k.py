"""ADE20K in the layout of the scene-parsing benchmark: photographs with label maps of 150 classes."""

import re
from typing import Any

import tensorflow_datasets as tfds

from regvq_jax.data.datasets.raw_builder import Item, RawBuilder
from regvq_jax.data.datasets.raw_files import (
    checked_image,
    checked_labels,
    find_root,
    image_size,
    labels_of_size,
    png,
    read_text,
)
from regvq_jax.data.tree import Tree

NUM_CLASSES = 151
_SPLITS = {"train": "training", "validation": "validation"}
# Of objectInfo150.txt: number, share of the pixels, images in training and validation, stuff or not, name.
_CLASS_ROW = re.compile(r"(\d+)\s+[\d.]+\s+\d+\s+\d+\s+\d+\s+(\S.*)")
_EXTENSIONS = (".jpg", ".jpeg", ".png")


class Ade20k(RawBuilder):
    """ADE20K (SceneParse150): scenes with label maps of 150 classes and 0 = unknown."""

    RAW_HELP = (
        "ADEChallengeData2016.zip, or the folder that it holds, with images/{training,validation}/*.jpg and "
        "annotations/{training,validation}/*.png."
    )
    EXPECTED = {"": {"train": 20210, "validation": 2000}}
    LABEL_NAMES = ("unknown", *(f"class {i}" for i in range(1, NUM_CLASSES)))

    def make_features(self) -> dict[str, Any]:
        """Image, label map, the kind of scene ("" where it is not known) and the file's name."""
        return {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "labels": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
            "scene": tfds.features.Text(),
            "name": tfds.features.Text(),
        }

    def make_layout(self, tree: Tree) -> "Ade20kLayout":
        """See `Ade20kLayout`."""
        return Ade20kLayout(tree)

    def find_label_names(self, layout: "Ade20kLayout") -> tuple[str, ...]:
        """Of objectInfo150.txt, which lies beside the images in the archive."""
        known = layout.label_names()
        return tuple(known.get(i, name) for i, name in enumerate(self.LABEL_NAMES))


class Ade20kLayout:
    """images/SPLIT/NAME.jpg with annotations/SPLIT/NAME.png."""

    def __init__(self, tree: Tree):
        """Finds the folders; UserError where there are none."""
        self.notes: list[str] = []
        self._tree = tree
        wanted = [f"{kind}/{split}/" for kind in ("images", "annotations") for split in _SPLITS.values()]
        self._root = find_root(tree, wanted)

    def items(self) -> dict[str, list[Item]]:
        """Every image; maps without an image become a note."""
        paths = {file.path for file in self._tree.files() if file.path.startswith(self._root)}
        scenes = self._scenes(paths)
        splits = {}
        for split, folder in _SPLITS.items():
            images, maps = (f"{self._root}{kind}/{folder}/" for kind in ("images", "annotations"))
            items = []
            for path in sorted(p for p in paths if p.startswith(images) and p.lower().endswith(_EXTENSIONS)):
                name = path.removeprefix(images).rpartition(".")[0]
                items.append(Item(name, (path, f"{maps}{name}.png", scenes.get(name, ""))))
            known = {item.facts[1] for item in items}
            lonely = sorted(p for p in paths if p.startswith(maps) and p not in known)
            if lonely:
                self.notes.append(f"{len(lonely)} label maps of {split} have no image, such as {lonely[0]}")
            splits[split] = items
        return splits

    def read(self, item: Item) -> dict[str, Any]:
        """One example; ImageError where image or map cannot be used."""
        path, map_path, scene = item.facts
        image = checked_image(self._tree, path)
        labels = checked_labels(self._tree, map_path, NUM_CLASSES)
        labels = labels_of_size(labels, image_size(image), map_path)
        return {"image": image, "labels": png(labels), "scene": scene, "name": item.key}

    def label_names(self) -> dict[int, str]:
        """Names of the classes by id, the first of several; {} where the raw files have no list of them."""
        path = f"{self._root}objectInfo150.txt"
        if path not in {file.path for file in self._tree.files()}:
            return {}
        rows = map(_CLASS_ROW.match, read_text(self._tree, path).splitlines())
        return {int(row[1]): row[2].split(",")[0].strip() for row in rows if row}

    def _scenes(self, paths: set[str]) -> dict[str, str]:
        path = f"{self._root}sceneCategories.txt"
        if path not in paths:
            return {}
        rows = (line.split() for line in read_text(self._tree, path).splitlines())
        return {row[0]: " ".join(row[1:]).replace("_", " ") for row in rows if len(row) > 1}
