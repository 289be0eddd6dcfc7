"""ADE20K: scenes and the names of its classes are taken from the lists in the archive."""

import io

import numpy as np
import pytest
from PIL import Image

from regvq_jax.data.datasets.ade20k import Ade20k, Ade20kLayout
from regvq_jax.data.images import ImageError
from regvq_jax.data.tfds_source import TfdsSource
from regvq_jax.data.tree import open_trees
from regvq_jax.errors import UserError
from tests import miniatures

TOP = "ADEChallengeData2016"
CLASSES = (
    "Idx\tRatio\tTrain\tVal\tStuff\tName\n"
    "1\t0.1576\t11664\t1172\t1\twall\n"
    "2\t0.1072\t6046\t612\t1\tbuilding, edifice\n"
    "150 \t0.0001 \t60 \t10 \t0 \tpool table, billiard table\n"
)


def layout(tmp_path, files):
    return Ade20kLayout(open_trees([miniatures.write(files, tmp_path / "raw")]))


def test_items_and_what_they_hold(tmp_path):
    made = layout(tmp_path, miniatures.ade20k())
    splits = made.items()
    assert [item.key for item in splits["validation"]] == [f"ADE_val_0000000{i}" for i in (1, 2, 3, 4)]
    example = made.read(splits["train"][2])
    assert example["scene"] == "street corner" and example["name"] == "ADE_train_00000003"
    assert example["image"] == miniatures.jpeg(miniatures.picture(3))
    assert made.notes == []


def test_classes_are_called_as_in_the_archive(tmp_path):
    files = miniatures.ade20k() | {f"{TOP}/objectInfo150.txt": CLASSES.encode()}
    raw = miniatures.write_zip(files, tmp_path / "ADEChallengeData2016.zip")
    Ade20k(raw=[raw], data_dir=tmp_path, allow_count_mismatch=True).download_and_prepare()
    names = TfdsSource("ade20k", "train", data_dir=tmp_path).label_names
    assert len(names) == 151
    assert names[:4] == ("unknown", "wall", "building", "class 3") and names[150] == "pool table"


def test_without_the_lists_classes_have_numbers_and_scenes_no_name(tmp_path):
    files = miniatures.ade20k()
    del files[f"{TOP}/sceneCategories.txt"]
    made = layout(tmp_path, files)
    assert made.label_names() == {}
    assert made.read(made.items()["train"][0])["scene"] == ""


def test_the_folder_may_be_the_one_inside(tmp_path):
    files = {path.removeprefix(f"{TOP}/"): content for path, content in miniatures.ade20k().items()}
    assert len(layout(tmp_path, files).items()["train"]) == 12


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (np.full((48, 64), 151, np.uint8), UserError, "has the id 151, and the classes end at 150"),
        (np.zeros((48, 63), np.uint8), ImageError, "is 63 x 48, its image 64 x 48"),
        (np.zeros((48, 64, 3), np.uint8), ImageError, "colour mode RGB"),
        (None, ImageError, "no such file"),
    ],
)
def test_maps_that_cannot_be_used(labels, error, message, tmp_path):
    files = miniatures.ade20k()
    path = f"{TOP}/annotations/training/ADE_train_00000003.png"
    del files[path]
    if labels is not None:
        files[path] = miniatures.png(labels)
    made = layout(tmp_path, files)
    with pytest.raises(error, match=f"(?i){message}") as raised:
        made.read(made.items()["train"][2])
    assert path in str(raised.value)


def test_a_palette_is_read_as_ids(tmp_path):
    ids = miniatures.labels(3, 151)
    picture = Image.fromarray(ids)
    picture.putpalette(list(range(255, -1, -1)) * 3)
    content = io.BytesIO()
    picture.save(content, "png")
    files = miniatures.ade20k()
    files[f"{TOP}/annotations/training/ADE_train_00000003.png"] = content.getvalue()
    assert Image.open(content).mode == "P"
    made = layout(tmp_path, files)
    stored = made.read(made.items()["train"][2])["labels"]
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(stored))), ids)
