"""MS-COCO photographs with five and more captions each, of 2014 or 2017."""

import json
from typing import Any

import tensorflow_datasets as tfds

from regvq_jax.data.datasets.raw_builder import Item, RawBuilder
from regvq_jax.data.datasets.raw_files import checked_image
from regvq_jax.data.listing import first_names
from regvq_jax.data.tree import Tree
from regvq_jax.errors import UserError

SPLITS = {"train": "train", "validation": "val"}


class CocoCaptions(RawBuilder):
    """MS-COCO photographs with all their captions.

    An example is an image with its captions, not a pair of both: a training draws one of them each time.
    """

    RAW_HELP = (
        "trainYEAR.zip, valYEAR.zip and annotations_trainvalYEAR.zip, or what they hold: "
        "{train,val}YEAR/*.jpg and annotations/captions_{train,val}YEAR.json."
    )
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="2014", description="82,783 / 40,504 images, as most papers use"),
        tfds.core.BuilderConfig(name="2017", description="118,287 / 5,000 of the same images"),
    ]
    EXPECTED = {
        "2014": {"train": 82783, "validation": 40504},
        "2017": {"train": 118287, "validation": 5000},
    }

    def make_features(self) -> dict[str, Any]:
        """Image, captions and the file's name."""
        return {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "captions": tfds.features.Sequence(tfds.features.Text()),
            "name": tfds.features.Text(),
        }

    def make_layout(self, tree: Tree) -> "CocoCaptionsLayout":
        """See `CocoCaptionsLayout`."""
        return CocoCaptionsLayout(tree, self.builder_config.name)


class CocoCaptionsLayout:
    """{train,val}YEAR/NAME.jpg, and one JSON file of captions a split."""

    def __init__(self, tree: Tree, year: str):
        """Finds images and captions; UserError where there are none."""
        self.notes: list[str] = []
        self._tree, self._year = tree, year

    def items(self) -> dict[str, list[Item]]:
        """Every image that has captions; what has no partner becomes a note."""
        splits = {}
        for split, folder in SPLITS.items():
            images = find_files(self._tree, f"{folder}{self._year}", ".jpg")
            captions = read_captions(self._tree, f"captions_{folder}{self._year}.json")
            without = sorted(images.keys() - captions.keys())
            if without:
                self.notes.append(f"{len(without)} {split} images have no caption: {first_names(without)}")
            absent = sorted(captions.keys() - images.keys())
            if absent:
                self.notes.append(f"{len(absent)} {split} captions have no image: {first_names(absent)}")
            names = sorted(images.keys() & captions.keys())
            splits[split] = [Item(name, (images[name], captions[name])) for name in names]
        return splits

    def read(self, item: Item) -> dict[str, Any]:
        """One example; ImageError where the image is damaged."""
        path, captions = item.facts
        return {"image": checked_image(self._tree, path), "captions": list(captions), "name": item.key}


def find_files(tree: Tree, folder: str, extension: str) -> dict[str, str]:
    """Paths of the files of one kind in a folder, wherever that lies, by name without extension.

    Raises:
        UserError: there are none, or two of one name.
    """
    found = {}
    for file in tree.files():
        parent, _, name = file.path.rpartition("/")
        if name.lower().endswith(extension) and f"/{parent}".endswith(f"/{folder}"):
            other = found.setdefault(name[: -len(extension)], file.path)
            if other != file.path:
                raise UserError(f"{tree.name} has both {other} and {file.path}: name one of them by --raw.")
    if not found:
        there = sorted({file.path.rpartition("/")[0] for file in tree.files()})
        raise UserError(
            f"{tree.name} lacks {folder}/*{extension}; expected {CocoCaptions.RAW_HELP.rstrip('.')}, found "
            f"{first_names(there, 6) or 'no files'}."
        )
    return found


def read_captions(tree: Tree, name: str) -> dict[str, tuple[str, ...]]:
    """Captions by image name (without extension) of a COCO annotation file, in the order of their ids.

    Raises:
        UserError: there is no such file, or it is no JSON of that form.
    """
    paths = [file.path for file in tree.files() if f"/{file.path}".endswith(f"/{name}")]
    if not paths:
        raise UserError(f"{tree.name} lacks annotations/{name}: name its archive by --raw, too.")
    try:
        content = json.loads(tree.read(paths[0]))
        names = {image["id"]: image["file_name"].rpartition(".")[0] for image in content["images"]}
        captions: dict[str, list[str]] = {}
        for row in sorted(content["annotations"], key=lambda row: row["id"]):
            text = " ".join(row["caption"].split())
            if text:
                captions.setdefault(names[row["image_id"]], []).append(text)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{paths[0]} of {tree.name} is no caption file of COCO ({type(error).__name__}: {error}): fetch "
            "it again."
        ) from error
    return {image: tuple(texts) for image, texts in captions.items()}
