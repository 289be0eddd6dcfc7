"""CelebA-HQ with the part masks of CelebAMask-HQ, painted to one label map of 19 classes an image."""

import io
import re
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from regvq_jax.data.datasets.raw_builder import Item, RawBuilder
from regvq_jax.data.datasets.raw_files import find_root, png, read_mask, read_text
from regvq_jax.data.images import ImageError, read_image
from regvq_jax.data.tree import Tree
from regvq_jax.errors import UserError

# The order in which CelebAMask-HQ's own script paints them: later ones cover earlier ones.
PARTS = (
    *("skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear"),
    *("mouth", "u_lip", "l_lip", "hair", "hat", "ear_r", "neck_l", "neck", "cloth"),
)
_FACES, _MASKS = "CelebA-HQ-img/", "CelebAMask-HQ-mask-anno/"
_MAPPING = "CelebA-HQ-to-CelebA-mapping.txt"
_MASKS_A_FOLDER = 2000
# Last picture of CelebA's own splits, counted from 1; CelebA-HQ's pictures keep to them.
_LAST_TRAIN, _LAST_VALIDATION = 162770, 182637
_LISTS = {"train": "celebahqtrain.txt", "validation": "celebahqvalidation.txt"}


class CelebaHqMask(RawBuilder):
    """CelebA-HQ faces with label maps of 18 parts and 0 = background (CelebAMask-HQ)."""

    RAW_HELP = (
        f"CelebAMask-HQ.zip, or the folder that it holds, with {_FACES}N.jpg, {_MASKS}0/00000_skin.png ... "
        f"and {_MAPPING}; for the config taming also its two lists, {' and '.join(_LISTS.values())}."
    )
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="official", description="CelebA's own splits: 24,183 / 2,993 / 2,824"),
        tfds.core.BuilderConfig(name="taming", description="taming-transformers' splits: 25,000 / 5,000"),
    ]
    EXPECTED = {
        "official": {"train": 24183, "validation": 2993, "test": 2824},
        "taming": {"train": 25000, "validation": 5000},
    }
    LABEL_NAMES = ("background", *PARTS)

    def make_features(self) -> dict[str, Any]:
        """Image and label map, both of the size of the masks (512 px), and the image's number."""
        return {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "labels": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
            "name": tfds.features.Text(),
        }

    def make_layout(self, tree: Tree) -> "CelebaHqMaskLayout":
        """See `CelebaHqMaskLayout`."""
        return CelebaHqMaskLayout(tree, self.builder_config.name)


class CelebaHqMaskLayout:
    """CelebA-HQ-img/N.jpg, and a mask for each part that is seen of it.

    Images are reduced to the size of the masks, 1,024 to 512 px: masks have no more to say, and a training at
    256 px reads a quarter of the bytes.
    """

    def __init__(self, tree: Tree, config: str):
        """Finds the folders; UserError where there are none."""
        self.notes: list[str] = []
        self._tree, self._config = tree, config
        wanted = [_FACES, _MASKS] + ([_MAPPING] if config == "official" else [])
        self._root = find_root(tree, wanted)

    def items(self) -> dict[str, list[Item]]:
        """Every image with the paths of its masks; masks without an image become a note."""
        paths = [file.path for file in self._tree.files()]
        faces, masks = {}, {}
        for path in paths:
            inner = path.removeprefix(self._root)
            if match := re.fullmatch(rf"{_FACES}(\d+)\.jpg", inner):
                faces[int(match[1])] = path
            elif match := re.fullmatch(rf"{_MASKS}(\d+)/(\d+)_(\w+)\.png", inner):
                number, part = int(match[2]), match[3]
                if part not in PARTS:
                    raise UserError(f"{path} of {self._tree.name} is of no known part: {', '.join(PARTS)}.")
                if int(match[1]) != number // _MASKS_A_FOLDER:
                    self.notes.append(f"{path} lies in another folder than its number says")
                masks.setdefault(number, {})[part] = path
        lonely = sorted(masks.keys() - faces.keys())
        if lonely:
            self.notes.append(f"{len(lonely)} images have masks only, such as number {lonely[0]}")
        splits = self._official(faces) if self._config == "official" else self._taming(paths)
        return {
            split: [Item(f"{i:05d}", (faces.get(i), masks.get(i, {}))) for i in sorted(numbers)]
            for split, numbers in splits.items()
        }

    def read(self, item: Item) -> dict[str, Any]:
        """One example; ImageError where it has no image, no mask at all, or a damaged one."""
        path, masks = item.facts
        if path is None:
            raise ImageError(f"There is no image {item.key}, which the split names.")
        if not masks:
            raise ImageError(f"Image {path} has no mask of any part.")
        labels = None
        for number, part in enumerate(PARTS, start=1):
            if part in masks:
                mask = self._mask(masks[part])
                if labels is None:
                    labels = np.zeros(mask.shape, np.uint8)
                if mask.shape != labels.shape:
                    raise ImageError(f"Mask {masks[part]} has another size than the masks before it.")
                labels[mask] = number
        try:
            image = Image.fromarray(read_image(self._tree.read(path)))
        except (ImageError, OSError) as error:
            raise ImageError(f"{path}: {error}") from error
        size = labels.shape[::-1]
        if image.size != size:
            image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
        content = io.BytesIO()
        image.save(content, format="jpeg", quality=95, subsampling=0)
        return {"image": content.getvalue(), "labels": png(labels), "name": item.key}

    def _mask(self, path: str) -> np.ndarray:
        """bool [H, W]; masks are stored as grey or as RGB."""
        try:
            return read_mask(self._tree, path) > 0
        except ImageError:
            try:
                return read_image(self._tree.read(path)).max(-1) > 0
            except (ImageError, OSError) as error:
                raise ImageError(f"{path}: {error}") from error

    def _official(self, faces: dict[int, str]) -> dict[str, list[int]]:
        splits: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
        lines = read_text(self._tree, f"{self._root}{_MAPPING}").splitlines()
        listed = set()
        for line in lines:
            match = re.match(r"\s*(\d+)\s+\d+\s+(\d+)\.jpg\s*$", line)
            if not match:  # The first line has the names of the columns.
                continue
            number, place = int(match[1]), int(match[2])
            listed.add(number)
            split = "train" if place <= _LAST_TRAIN else "validation" if place <= _LAST_VALIDATION else "test"
            splits[split].append(number)
        if not listed:
            raise UserError(f"{_MAPPING} of {self._tree.name} has no line such as '0  119613  119614.jpg'.")
        unlisted = faces.keys() - listed
        if unlisted:
            self.notes.append(f"{len(unlisted)} images are not in {_MAPPING}, such as {min(unlisted)}.jpg")
        return splits

    def _taming(self, paths: list[str]) -> dict[str, list[int]]:
        splits = {}
        for split, name in _LISTS.items():
            found = [path for path in paths if path.rpartition("/")[2] == name]
            if not found:
                raise UserError(
                    f"The split of taming-transformers is in its files {' and '.join(_LISTS.values())}, and "
                    f"{self._tree.name} has no {name}: name it by --raw, too, or choose "
                    "celeba_hq_mask/official."
                )
            lines = read_text(self._tree, found[0]).split()
            splits[split] = [int(match[1]) for line in lines if (match := re.search(r"(\d+)\.\w+$", line))]
        return splits
