"""Sets that tensorflow-datasets prepared: ours in tests/data/datasets, others here."""

import pickle
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from regvq_jax.data.datasets.emoji import Emoji
from regvq_jax.data.emoji import load_pack
from regvq_jax.data.sources import make_source
from regvq_jax.data.tfds_source import TfdsSource
from regvq_jax.errors import UserError
from tests import miniatures


class Foreign(tfds.core.GeneratorBasedBuilder):
    """Somebody else's set: other names, nested captions, objects, one split."""

    VERSION = tfds.core.Version("1.2.0")
    with_image = True

    def __init__(self, **kwargs):
        super().__init__(file_format="array_record", **kwargs)

    def _info(self):
        features = {
            "description": tfds.features.Sequence({"text": tfds.features.Text()}),
            "label": tfds.features.ClassLabel(names=["a", "b"]),
            "objects": tfds.features.Sequence({"box": tfds.features.Tensor(shape=(4,), dtype=np.float32)}),
        }
        if self.with_image:
            features["photo"] = tfds.features.Image(shape=(None, None, 3))
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(40):
            example = {
                "description": [{"text": f" number  {i}"}, {"text": "a picture"}],
                "label": i % 2,
                "objects": [{"box": np.zeros(4, np.float32)}] * (i % 3),
            }
            if self.with_image:
                mode = "CMYK" if i == 3 else "RGB"
                example["photo"] = miniatures.jpeg(miniatures.picture(i), mode)
            yield str(i), example


class Blind(Foreign):
    """The same without pictures."""

    with_image = False


class Ready(tfds.core.GeneratorBasedBuilder):
    """As coco_captions, scene_parse150 and mnist are: strings that are no Text, a map in a feature of three
    channels, a grey image, and a test split without classes."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, **kwargs):
        super().__init__(file_format="array_record", **kwargs)

    def _info(self):
        features = {
            "annotation": tfds.features.Image(encoding_format="png"),
            "captions": tfds.features.Sequence({"id": np.int64, "text": np.str_}),
            "image": tfds.features.Image(shape=(None, None, 1)),
            "label": tfds.features.ClassLabel(num_classes=3),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split):
        for i in range(6):
            yield (
                str(i),
                {
                    "annotation": miniatures.png(np.full((8, 8), i, np.uint8)),
                    "captions": [{"id": 1, "text": f"é {i}"}, {"id": 2, "text": "grey"}],
                    "image": miniatures.png(np.full((8, 8), 40 * i, np.uint8)),
                    "label": i % 3 if split == "train" else -1,
                },
            )


class Single(Foreign):
    """One split, which is not called train."""

    def _split_generators(self, dl_manager):
        return {"test": self._generate_examples()}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    for builder in (
        Emoji(data_dir=directory, config="64px"),
        Foreign(data_dir=directory),
        Blind(data_dir=directory),
        Ready(data_dir=directory),
        Single(data_dir=directory),
    ):
        builder.download_and_prepare()
    return str(directory)


def test_the_emoji_on_white_with_their_maps(data_dir):
    for split in ("train", "heldout"):
        source = make_source(
            "tfds:emoji/64px", split=split, image_size=64, num_label_classes=25, data_dir=data_dir
        )
        pack = load_pack(64)
        assert len(source) == len(pack.indices(split)) and source.has_text and source.has_labels
        captions = {pack.entries[i].caption: i for i in pack.indices(split)}
        element = pickle.loads(pickle.dumps(source))[5]
        index = captions[element["text"]]
        np.testing.assert_array_equal(element["labels"], pack.labels[index])
        alpha = pack.pictures[index][..., 3:] / 255
        expected = pack.pictures[index][..., :3] * alpha + 255 * (1 - alpha)
        assert np.abs(element["image"] - expected).max() < 2


def test_a_foreign_set_with_one_split(data_dir):
    train, heldout = (TfdsSource("foreign:1.2.0", split, data_dir=data_dir) for split in ("train", "heldout"))
    assert len(train) + len(heldout) == 40 and 1 <= len(heldout) <= 12
    assert train.num_classes == 2 and train.class_names == ("a", "b") and not train.has_labels
    numbers = []
    for source in (train, heldout):
        for i in range(len(source)):
            element = source[i]
            number = int(element["texts"][0].removeprefix("number "))
            assert element["texts"] == (f"number {number}", "a picture") and element["class"] == number % 2
            if number != 3:
                error = np.abs(element["image"].astype(int) - miniatures.picture(number)).mean()
                assert error < 4
            numbers.append(number)
    assert sorted(numbers) == list(range(40))
    assert train.fingerprint != heldout.fingerprint


def test_ready_made_sets(data_dir):
    source = make_source("tfds:ready", split="train", image_size=8, num_label_classes=6, data_dir=data_dir)
    for i in range(6):
        element = source[i]
        number = int(element["labels"][0, 0])
        assert element["texts"] == (f"é {number}", "grey") and element["class"] == number % 3
        assert element["image"].shape == (8, 8, 3) and (element["image"] == 40 * number).all()
    heldout = TfdsSource("ready", "heldout", data_dir=data_dir)
    with pytest.raises(UserError, match=r"ready/test\[0\] has the class -1, which is none of the 3"):
        heldout[0]
    train, heldout = (TfdsSource("single", split, data_dir=data_dir) for split in ("train", "heldout"))
    assert len(train) + len(heldout) == 40 and len(heldout) >= 1


def test_files_that_are_missing_or_cut_off(data_dir, tmp_path):
    shutil.copytree(f"{data_dir}/foreign", tmp_path / "foreign")
    (shard,) = (tmp_path / "foreign/1.2.0").glob("*array_record*")
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"More than 1 % .* The first: .*foreign/train\[\d+\]"):
        source = TfdsSource("foreign", "train", data_dir=tmp_path)
        [source[i] for i in range(len(source))]
    shard.unlink()
    with pytest.raises(UserError, match=r"lacks 1 of the 1 files of its split \"train\" \(foreign-train"):
        TfdsSource("foreign", "train", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("emojis", {}, r'"emojis" is not prepared in .* which has blind, emoji, foreign, ready, single'),
        ("emoji/128px", {}, "no prepared version"),
        ("emoji/64px:9.9.9", {}, "has versions 1.0.0, not 9.9.9"),
        ("foreign", {"heldout_split": "val"}, 'has no split "val": data.heldout_split can be train'),
        ("foreign", {"num_label_classes": 5}, "has no label maps"),
        ("ready", {"heldout_split": "train"}, 'is trained on its split "train"'),
        ("blind", {}, "has no image: its features are"),
    ],
)
def test_bad_input(spec, options, message, data_dir):
    with pytest.raises(UserError, match=message):
        TfdsSource(spec, "train", data_dir=data_dir, **options)


def test_images_smaller_than_the_crop(data_dir):
    with pytest.raises(UserError, match=r"More than 1 % .* data.upscale=True. .* is smaller"):
        TfdsSource("foreign", "train", data_dir=data_dir, image_size=60, upscale=False)[0]
    assert TfdsSource("foreign", "train", data_dir=data_dir, image_size=60, upscale=True)[0]
