"""CUB-200-2011 birds with ten captions an image, in the class-disjoint split of text-to-image work."""

import pickletools
import re
from collections.abc import Callable
from typing import Any

import tensorflow_datasets as tfds

from regvq_jax.data.datasets.cub_species import SPECIES, TEST_SPECIES
from regvq_jax.data.datasets.raw_builder import Item, RawBuilder
from regvq_jax.data.datasets.raw_files import checked_image, find_root, read_text
from regvq_jax.data.images import ImageError
from regvq_jax.data.listing import first_names
from regvq_jax.data.tree import Tree
from regvq_jax.errors import UserError

_CAPTION_FOLDERS = ("text/", "text_c10/")
# What is not of the test split is of the training split, validation classes included.
_TEST_CLASSES, _TEST_NAMES = "testclasses.txt", "test/filenames.pickle"


class CubCaptions(RawBuilder):
    """CUB-200-2011: birds of 200 species with ten captions an image, test species apart."""

    RAW_HELP = (
        "CUB_200_2011.tgz (images/CLASS/NAME.jpg) and the captions of Reed et al. (text/ or "
        f"text_c10/CLASS/NAME.txt), from cvpr2016_cub.tar.gz or the text.zip of birds.zip. Where there is a "
        f"list of the test split, {_TEST_CLASSES} or {_TEST_NAMES}, it is used."
    )
    EXPECTED = {"": {"train": 8855, "test": 2933}}

    def make_features(self) -> dict[str, Any]:
        """Image, captions, species and the file's name."""
        return {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "captions": tfds.features.Sequence(tfds.features.Text()),
            "class": tfds.features.ClassLabel(names=SPECIES),
            "name": tfds.features.Text(),
        }

    def make_layout(self, tree: Tree) -> "CubCaptionsLayout":
        """See `CubCaptionsLayout`."""
        return CubCaptionsLayout(tree)


class CubCaptionsLayout:
    """images/CLASS/NAME.jpg with text/CLASS/NAME.txt, one caption a line."""

    def __init__(self, tree: Tree):
        """Finds the folders; UserError where there are none."""
        self.notes: list[str] = []
        self._tree = tree
        paths = [file.path for file in tree.files()]
        self._images = f"{find_root(tree, ['images/001.Black_footed_Albatross/'])}images/"
        folder = next((f for f in _CAPTION_FOLDERS if any(f"/{f}" in f"/{p}" for p in paths)), "text/")
        self._captions = f"{find_root(tree, [folder])}{folder}"
        self._paths = set(paths)

    def items(self) -> dict[str, list[Item]]:
        """Every image that has captions; what has no partner becomes a note."""
        images = self._stems(self._images, ".jpg")
        captions = self._stems(self._captions, ".txt")
        without = sorted(images.keys() - captions.keys())
        if without:
            self.notes.append(f"{len(without)} images have no captions: {first_names(without)}")
        lonely = sorted(captions.keys() - images.keys())
        if lonely:
            self.notes.append(f"{len(lonely)} caption files have no image: {first_names(lonely)}")
        is_test, source = self._split()
        splits: dict[str, list[Item]] = {"train": [], "test": []}
        for stem in sorted(images.keys() & captions.keys()):
            match = re.match(r"(\d{3})\.", stem)
            if not match or not 1 <= int(match[1]) <= len(SPECIES):
                raise UserError(
                    f"{images[stem]} of {self._tree.name} lies in no folder such as "
                    "'001.Black_footed_Albatross'."
                )
            facts = (images[stem], captions[stem], int(match[1]) - 1)
            splits["test" if is_test(stem) else "train"].append(Item(stem, facts))
        if empty := [split for split, items in splits.items() if not items]:
            raise UserError(
                f"By {source}, no image of {self._tree.name} is of the {empty[0]} split: give another list, "
                "or none, and all images."
            )
        return splits

    def read(self, item: Item) -> dict[str, Any]:
        """One example; ImageError where the image is damaged or all captions are blank."""
        path, text_path, class_id = item.facts
        lines = (" ".join(line.split()) for line in read_text(self._tree, text_path).splitlines())
        captions = [line for line in lines if line]
        if not captions:
            raise ImageError(f"Caption file {text_path} is empty.")
        image = checked_image(self._tree, path)
        return {"image": image, "captions": captions, "class": class_id, "name": item.key}

    def _stems(self, folder: str, extension: str) -> dict[str, str]:
        """Paths by CLASS/NAME."""
        inside = (p for p in self._paths if p.startswith(folder) and p.lower().endswith(extension))
        return {path.removeprefix(folder)[: -len(extension)]: path for path in inside}

    def _split(self) -> tuple[Callable[[str], bool], str]:
        """A function that says of CLASS/NAME whether it is of the test split, and who says so."""
        if found := self._find(_TEST_CLASSES):
            classes = set(read_text(self._tree, found).split())
            return lambda stem: stem.partition("/")[0] in classes, found
        if found := self._find(_TEST_NAMES):
            stems = _strings_of_pickle(self._tree.read(found))
            return lambda stem: stem in stems, found
        self.notes.append("the raw files have no list of the test split: it has the usual 50 species")
        return lambda stem: int(stem[:3]) in TEST_SPECIES, "the usual list of 50 species"

    def _find(self, name: str) -> str:
        """The path of a file of that name, "" where there is none."""
        return next((path for path in sorted(self._paths) if f"/{path}".endswith(f"/{name}")), "")


def _strings_of_pickle(content: bytes) -> set[str]:
    """The strings in a pickled list; nothing is unpickled, so nothing can be executed."""
    return {arg for _, arg, _ in pickletools.genops(content) if isinstance(arg, str) and "/" in arg}
