"""What Hugging Face's datasets has saved, read back as elements."""

import pickle
import shutil
import sys

import numpy as np
import pytest

from regvq_jax.data.arrow import ArrowSource
from regvq_jax.data.sources import make_source
from regvq_jax.errors import UserError
from tests import miniatures

datasets = pytest.importorskip("datasets")


def table(count, **columns):
    pictures = [{"bytes": miniatures.png(miniatures.picture(i, 8, 8)), "path": None} for i in range(count)]
    features = {"image": datasets.Image()}
    values = {"image": pictures}
    for name, (feature, fn) in columns.items():
        features[name], values[name] = feature, [fn(i) for i in range(count)]
    return datasets.Dataset.from_dict(values, features=datasets.Features(features))


def test_splits_captions_classes_and_label_maps(tmp_path):
    labels = [miniatures.labels(i, 5, 8, 8) for i in range(6)]
    columns = {
        "caption": (datasets.Value("string"), lambda i: f" picture  {i}"),
        "label": (datasets.ClassLabel(names=["cat", "dog"]), lambda i: i % 2),
        "mask": (datasets.Image(), lambda i: {"bytes": miniatures.png(labels[i]), "path": None}),
    }
    saved = datasets.DatasetDict(train=table(6, **columns), test=table(3, **columns))
    saved.save_to_disk(str(tmp_path / "set"))
    spec = f"arrow:{tmp_path / 'set'}"
    train = make_source(spec, split="train", image_size=8, num_label_classes=5)
    heldout = make_source(spec, split="heldout", image_size=8)
    assert (len(train), len(heldout)) == (6, 3) and train.class_names == ("cat", "dog")
    for i in range(6):
        element = train[i]
        np.testing.assert_array_equal(element["image"], miniatures.picture(i, 8, 8))
        np.testing.assert_array_equal(element["labels"], labels[i])
        assert element["text"] == f"picture {i}" and element["class"] == i % 2
    assert not heldout.has_labels and heldout.fingerprint != train.fingerprint
    assert pickle.loads(pickle.dumps(train))[2]["text"] == "picture 2"
    again = make_source(spec, split="train", image_size=8, num_label_classes=5)
    assert again.fingerprint == train.fingerprint


def test_lists_of_captions_and_no_splits(tmp_path):
    column = {"texts": (datasets.List(datasets.Value("string")), lambda i: [f"a {i}", "", f"b {i}"])}
    table(60, **column).save_to_disk(str(tmp_path / "set"))
    train, heldout = (ArrowSource(str(tmp_path / "set"), split) for split in ("train", "heldout"))
    assert len(train) + len(heldout) == 60 and 1 <= len(heldout) < 20
    texts = [source[i]["texts"] for source in (train, heldout) for i in range(len(source))]
    assert sorted(texts) == sorted((f"a {i}", f"b {i}") for i in range(60))
    datasets.DatasetDict(test=table(20)).save_to_disk(str(tmp_path / "single"))
    parts = [len(ArrowSource(str(tmp_path / "single"), split)) for split in ("train", "heldout")]
    assert sum(parts) == 20 and min(parts) >= 1
    shutil.copytree(tmp_path / "set", tmp_path / "copy")
    assert ArrowSource(str(tmp_path / "copy"), "train").fingerprint == train.fingerprint


def test_bad_input(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="was not written by save_to_disk"):
        ArrowSource(str(tmp_path), "train")
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(str(tmp_path / "texts"))
    with pytest.raises(UserError, match="no column of images: it has text"):
        ArrowSource(str(tmp_path / "texts"), "train")
    label = (datasets.ClassLabel(names=["cat", "dog"]), lambda i: -1)
    saved = datasets.DatasetDict(dev=table(3), test=table(3, label=label))
    saved.save_to_disk(str(tmp_path / "split"))
    with pytest.raises(UserError, match='no split "train": it has dev, test'):
        ArrowSource(str(tmp_path / "split"), "train")
    saved = datasets.DatasetDict(train=table(3, label=label))
    saved.save_to_disk(str(tmp_path / "secret"))
    with pytest.raises(UserError, match=r"has the class -1, which is none of the 2"):
        ArrowSource(str(tmp_path / "secret"), "train")[0]
    with pytest.raises(UserError, match='is trained on its split "train"'):
        ArrowSource(str(tmp_path / "secret"), "train", heldout_split="train")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[arrow\]'"):
        ArrowSource(str(tmp_path / "split"), "train")
