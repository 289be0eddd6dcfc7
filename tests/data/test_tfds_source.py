"""Sets that tensorflow-datasets prepared: ours in tests/data/datasets, others here."""

import pickle

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


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    for builder in (
        Emoji(data_dir=directory, config="64px"),
        Foreign(data_dir=directory),
        Blind(data_dir=directory),
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


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("emojis", {}, r'"emojis" is not prepared in .* which has blind, emoji, foreign'),
        ("emoji/128px", {}, "no prepared version"),
        ("emoji/64px:9.9.9", {}, "has versions 1.0.0, not 9.9.9"),
        ("foreign", {"heldout_split": "val"}, 'has no split "val": data.heldout_split can be train'),
        ("foreign", {"num_label_classes": 5}, "has no label maps"),
        ("blind", {}, "has no image: its features are"),
    ],
)
def test_bad_input(spec, options, message, data_dir):
    with pytest.raises(UserError, match=message):
        TfdsSource(spec, "train", data_dir=data_dir, **options)


def test_images_smaller_than_the_crop(data_dir):
    with pytest.raises(UserError, match=r"More than 1 % .* cannot be decoded"):
        TfdsSource("foreign", "train", data_dir=data_dir, image_size=60, upscale=False)[0]
    assert TfdsSource("foreign", "train", data_dir=data_dir, image_size=60, upscale=True)[0]
