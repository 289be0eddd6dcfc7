"""Sets that tensorflow-datasets has prepared, ours and any other, as a data source; without tensorflow."""

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from regvq_jax.data.captions import caption_fields
from regvq_jax.data.decode import decode_element
from regvq_jax.data.images import ImageError
from regvq_jax.data.listing import HELDOUT_FOLDERS, TRAIN_FOLDERS, first_names, heldout_paths
from regvq_jax.data.replacing import Replacing, ReplacingSource
from regvq_jax.errors import UserError

_IMAGES = ("image",)
_LABELS = ("labels", "segmentation_label", "segmentation_map", "segmentation_mask", "mask", "annotation")
_TEXTS = ("captions", "caption", "texts", "text", "description")
_CLASSES = ("class", "label")


def default_data_dir() -> str:
    """Where tensorflow-datasets keeps its sets, a path or a URL: TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    return os.path.expanduser(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))


class TfdsSource(ReplacingSource):
    """A split of a prepared set, read from its array_record files.

    Features are found by kind and name: the image is the one called "image", or else one of three channels,
    or four; captions are a text or a sequence of texts called "captions", "caption" or "text"; the label map
    is an image of one channel, or any PNG, called "labels", "annotation" or "segmentation_..."; the class is
    a class label called "class" or "label". The number of label classes is
    `info.metadata["num_label_classes"]`, which our builders write, or what the config says.

    Images are decoded as everywhere here, so that CMYK, grey and transparent ones come out right.
    "text" is caption number `index` modulo their count, as in `FolderSource`.

    Splits: "train" is the set's "train" or "training", or its only one; "heldout" the first that exists of
    `listing.HELDOUT_FOLDERS`; where there is none, a tenth of the training split, by a hash of the index.
    """

    def __init__(
        self,
        spec: str,
        split: str,
        *,
        data_dir: str | os.PathLike = "",
        heldout_split: str = "",
        image_size: int = 1,
        upscale: bool = True,
        num_label_classes: int = 0,
        decode_side: int | None = None,
    ):
        """Opens the files; decodes nothing.

        Args:
            spec: NAME, NAME/CONFIG, NAME:VERSION or NAME/CONFIG:VERSION.
            split: "train" or "heldout".
            data_dir: where sets lie; "" = `default_data_dir()`. A URL of a bucket will do.
            heldout_split: the set's split that is held out, "" = see above.
            image_size: smaller images are replaced by the next one ...
            upscale: ... unless they may be enlarged.
            num_label_classes: of the label maps, where the set does not say so itself.
            decode_side: see `images.read_image`; only where there are no label maps.

        Raises:
            UserError: it is not prepared, in a format that needs tensorflow, or lacks a split, file or image.
        """
        self.name = f"tfds:{spec}"
        directory = find_directory(spec, epath.Path(data_dir or default_data_dir()))
        self._directory = os.fspath(directory)
        builder = tfds.builder_from_directory(self._directory)
        info = builder.info
        if info.file_format is None or info.file_format.value != "array_record":
            raise UserError(
                f"{directory} is in the format {getattr(info.file_format, 'value', 'unknown')}, which cannot "
                'be read at random without tensorflow: prepare it anew with file_format="array_record".'
            )
        self._split, self._tenth = _choose_split(info, split, heldout_split, self.name)
        _check_files(directory, info.splits[self._split])
        self._data = None
        total = info.splits[self._split].num_examples
        self._indices = np.arange(total)
        if self._tenth:
            held = heldout_paths([str(i) for i in range(total)])
            self._indices = np.array([i for i in range(total) if (str(i) in held) == (split == "heldout")])
        features = info.features
        self._image = _find_image(features)
        if not self._image:
            raise UserError(f"{self.name} has no image: its features are {', '.join(features)}.")
        self._texts = _find(features, _TEXTS, _is_text)
        metadata = info.metadata or {}
        known = int(metadata.get("num_label_classes", 0)) or num_label_classes
        self._labels = _find(features, _LABELS, _is_map) if known else ""
        if num_label_classes and not self._labels:
            raise UserError(
                f"data.num_label_classes={num_label_classes}, but {self.name} has no label maps among its "
                f"features {', '.join(features)}: set it to 0."
            )
        self._class = _find(features, _CLASSES, _is_class)
        self.has_text, self.has_labels = bool(self._texts), bool(self._labels)
        self.num_label_classes = known if self._labels else 0
        self.label_names = tuple(metadata.get("label_names", ()))
        self.num_classes = features[self._class].num_classes if self._class else 0
        self.class_names = tuple(features[self._class].names) if self._class else ()
        self._min_size, self._decode_side = 1 if upscale else image_size, decode_side
        self.skipped = _read_skipped(directory, self._split)
        facts = (info.full_name, self._split, info.splits[self._split].shard_lengths)
        facts += (info.splits[self._split].num_bytes, self._tenth and split, self.num_label_classes)
        self.fingerprint = hashlib.sha256(ascii(facts).encode()).hexdigest()[:16]
        what = f"{split} images of {self.name}"
        self._elements = Replacing(self._read, len(self._indices), self._name_of, what)

    def _read(self, index: int) -> dict[str, Any]:
        name = self._name_of(index)
        example = self._example(index)
        element = decode_element(
            example[self._image],
            name,
            min_size=self._min_size,
            decode_side=self._decode_side,
            labels=example[self._labels] if self._labels else None,
            num_label_classes=self.num_label_classes,
        )
        if self._class:
            element["class"] = np.int32(example[self._class])
            if not 0 <= element["class"] < self.num_classes:
                raise UserError(
                    f"{name} has the class {element['class']}, which is none of the {self.num_classes}: "
                    "if its split keeps them secret, choose another data.heldout_split."
                )
        return element | caption_fields(_strings(example[self._texts]) if self._texts else (), index)

    def _name_of(self, index: int) -> str:
        return f"{self.name}/{self._split}[{self._indices[index]}]"

    def _example(self, index: int) -> dict[str, Any]:
        try:
            example = self._open()[int(self._indices[index])]
        except Exception as error:  # The reader of the files, and the parser of what it read, have their own.
            raise ImageError(f"Cannot read {self._name_of(index)}: {error}.") from error
        if not example[self._image]:
            raise ImageError(f"{self._name_of(index)} is empty; its file may be cut off or damaged.")
        return example

    def _open(self) -> Sequence[dict[str, Any]]:
        # In each process anew: readers of files do not travel.
        if self._data is None:
            builder = tfds.builder_from_directory(self._directory)
            # Pictures stay as they are stored; those that nobody wants cost nothing.
            skip = tfds.decode.SkipDecoding()
            images = (n for n, f in builder.info.features.items() if isinstance(f, tfds.features.Image))
            self._data = builder.as_data_source(self._split, decoders=dict.fromkeys(images, skip))
        return self._data

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_data": None}


def find_directory(spec: str, data_dir: epath.Path) -> epath.Path:
    """The directory of a prepared set.

    Args:
        spec: NAME, with /CONFIG and :VERSION where wanted; by default the only config, the newest version.
        data_dir: where sets lie.

    Raises:
        UserError: there is none, or several configs to choose from.
    """
    path, _, version = spec.partition(":")
    name, _, config = path.partition("/")
    how = (
        f"prepare it by python -m regvq_jax.data prepare {path} --raw=PATH --data_dir={data_dir}, or, if it "
        'is not one of ours, by its tfds builder with file_format="array_record"'
    )
    if not name or not (data_dir / name).is_dir():
        there = [name for name in _sub_folders(data_dir) if name != "downloads"]
        raise UserError(
            f'"{name}" is not prepared in {data_dir}, which has {first_names(there, 8) or "no sets"}: {how}, '
            "or set data.data_dir."
        )
    directory = data_dir / name
    if not config and not _versions(directory):
        configs = [folder for folder in _sub_folders(directory) if _versions(directory / folder)]
        if len(configs) != 1:
            raise UserError(
                f"{directory} has {len(configs)} configs ({', '.join(configs) or 'none is prepared'}): "
                + (f"choose one, as in tfds:{name}/{configs[0]}." if configs else f"{how}.")
            )
        config = configs[0]
    directory = directory / config if config else directory
    versions = _versions(directory) if directory.is_dir() else []
    if (version and version not in versions) or not versions:
        raise UserError(
            f"{directory} has {'versions ' + ', '.join(versions) if versions else 'no prepared version'}"
            f"{f', not {version}' if version and versions else ''}: {how}."
        )
    return directory / (version or versions[-1])


def _versions(directory: epath.Path) -> list[str]:
    names = [name for name in _sub_folders(directory) if tfds.core.Version.is_valid(name)]
    names = [name for name in names if (directory / name / "dataset_info.json").exists()]
    return sorted(names, key=tfds.core.Version)


def _sub_folders(directory: epath.Path) -> list[str]:
    if not directory.is_dir():
        return []
    return sorted(path.name for path in directory.iterdir() if path.is_dir())


def _choose_split(info: tfds.core.DatasetInfo, split: str, heldout: str, name: str) -> tuple[str, bool]:
    """(split of the set, whether a tenth of it is held out)."""
    there = list(info.splits)
    train = next((s for s in TRAIN_FOLDERS if s in there), "")
    if heldout and heldout not in there:
        raise UserError(f'{name} has no split "{heldout}": data.heldout_split can be {", ".join(there)}.')
    if not train and len(there) == 1:
        train = there[0]
    if not train:
        raise UserError(f'{name} has no split "train": it has {", ".join(there)}.')
    if heldout == train:
        raise UserError(f'{name} is trained on its split "{train}": data.heldout_split must be another one.')
    heldout = heldout or next((s for s in HELDOUT_FOLDERS if s in there and s != train), "")
    if not heldout:
        return train, True
    return (train if split == "train" else heldout), False


def _find(features: tfds.features.FeaturesDict, names: Sequence[str], is_wanted: Any) -> str:
    """The name of the wanted feature, one of `names` first; "" where there is none."""
    return next((name for name in names if name in features and is_wanted(features[name])), "")


def _find_image(features: tfds.features.FeaturesDict) -> str:
    """The name of the picture; "" where there is none."""
    named = _find(features, _IMAGES, lambda feature: isinstance(feature, tfds.features.Image))
    # Text and maps can be anything: only a name says what they are. A picture is a picture.
    images = [n for n, f in features.items() if isinstance(f, tfds.features.Image) and f.shape[-1] != 1]
    return named or next((name for name in images if name not in _LABELS), "")


def _is_map(feature: Any) -> bool:
    # A grey PNG may pass through a feature of three channels as it is, as in scene_parse150.
    is_image = isinstance(feature, tfds.features.Image)
    return is_image and (feature.shape[-1] == 1 or feature.encoding_format == "png")


def _is_class(feature: Any) -> bool:
    return isinstance(feature, tfds.features.ClassLabel) and bool(feature.num_classes)


def _is_text(feature: Any) -> bool:
    inner = feature.feature if isinstance(feature, tfds.features.Sequence) else feature
    if isinstance(inner, tfds.features.FeaturesDict):
        return inner is not feature and bool(_find(inner, _TEXTS, _is_string))
    return _is_string(inner)


def _is_string(feature: Any) -> bool:
    # Older builders, coco_captions among them, have plain strings in the place of Text.
    is_scalar = isinstance(feature, tfds.features.Tensor) and feature.shape == ()
    return is_scalar and np.dtype(feature.np_dtype).kind == "O"


def _strings(value: Any) -> tuple[str, ...]:
    """A feature's texts: bytes, several of them, or dicts of them."""
    if isinstance(value, dict):
        value = next(value[name] for name in _TEXTS if name in value)
    texts = [value] if isinstance(value, bytes | str) else list(value)
    texts = [text.decode() if isinstance(text, bytes) else text for text in texts]
    return tuple(" ".join(text.split()) for text in texts if text.strip()) or ("",)


def _check_files(directory: epath.Path, info: tfds.core.SplitInfo) -> None:
    """Raises UserError where files of a split are not there, as after a copy that was broken off."""
    there = {path.name for path in directory.iterdir()}
    missing = [path.name for path in info.filepaths if path.name not in there]
    if missing:
        raise UserError(
            f"{directory} lacks {len(missing)} of the {len(info.filepaths)} files of its split "
            f'"{info.name}" ({first_names(missing)}): copy or prepare it anew.'
        )


def _read_skipped(directory: epath.Path, split: str) -> tuple[tuple[str, str], ...]:
    """(key, reason) of what our builders left out of a split when it was prepared."""
    path = directory / "skipped.txt"
    if not path.exists():
        return ()
    rows = (line.split("\t", 2) for line in path.read_text().splitlines())
    return tuple((key, reason) for name, key, reason in rows if name == split)
