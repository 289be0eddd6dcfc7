"""What inspect says of data whose figures are known, and the pictures that it draws."""

import csv

import numpy as np
import pytest
from PIL import Image

from regvq_jax.data import inspect, statistics
from regvq_jax.data.throughput import images_per_second
from regvq_jax.errors import UserError
from regvq_jax.files import read_json
from tests import miniatures

CONFIG = "configs/quickstart.py:tiny"


@pytest.fixture(scope="module")
def inspected(tmp_path_factory):
    """A folder with captions, classes, a damaged file, a long caption and a copy in the held-out split."""
    root = tmp_path_factory.mktemp("inspect")
    files = {}
    for split, count in (("train", 150), ("val", 6)):
        for i in range(count):
            seed = i if split == "train" else 1000 + i
            picture = miniatures.picture(seed, 40, 60)
            name = f"photos/{split}/{'cat' if i % 3 else 'dog'}/{i:03d}"
            files[f"{name}.png"] = miniatures.png(picture)
            files[f"{name}.txt"] = f"a picture number {i}".encode()
    files["photos/train/cat/007.png"] = b"no image"
    files["photos/train/cat/008.txt"] = b"word " * 90
    files["photos/val/cat/002.png"] = miniatures.png(miniatures.picture(20, 40, 60))
    files["photos/train/cat/020.png"] = miniatures.png(miniatures.picture(20, 80, 120))
    miniatures.write(files, root)
    arguments = [f"--config.data.source=folder:{root / 'photos'}", "--config.data.class_folders=True"]
    inspect.main([CONFIG, *arguments, f"--output={root / 'look'}", "--seconds=1"])
    return root / "look"


def test_figures(inspected):
    figures = read_json(inspected / "inspect.json")
    train, heldout = figures["train"], figures["heldout"]
    assert train["examples"] == 149 and heldout["examples"] == 6
    assert [name for name, _ in train["skipped"]] == ["train/cat/007.png"]
    assert figures["throughput"][0]["images_per_second"] > 10
    # Ten ids a caption at most but one, of 90 words and start and end.
    captions = train["captions"]
    assert captions["captions"] == 149 and captions["words"] == [4, 4, 90] and captions["ids"][2] == 92
    assert captions["longer"] == 1 and captions["frequent"][0] == ["a", 148]
    classes = dict(zip(train["classes"]["names"], train["classes"]["shares"], strict=True))
    assert classes["cat"] == pytest.approx(99 / 149) and classes["dog"] == pytest.approx(50 / 149)
    assert train["labels"] is None and train["height"] == [40, 40, 80]


def test_the_copy_in_the_held_out_split_is_found(inspected):
    (match,) = read_json(inspected / "inspect.json")["duplicates"]["matches"]
    assert match["heldout_name"] == "a picture number 2" and match["train_name"] == "a picture number 20"
    with (inspected / "duplicates.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 1
    assert Image.open(inspected / "duplicates.png").width > 100


def test_pictures(inspected):
    for name in ("train.png", "heldout.png", "classes.png"):
        assert np.asarray(Image.open(inspected / name).convert("RGB")).std() > 5


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match="nowhere.py does not exist"):
        inspect.main(["configs/nowhere.py"])
    with pytest.raises(UserError, match='Did you mean "source"'):
        inspect.main([CONFIG, "--config.data.sorce=x", f"--output={tmp_path}"])
    with pytest.raises(UserError, match="emojis"):
        inspect.main([CONFIG, "--config.data.source=emojis", f"--output={tmp_path}"])


def test_statistics_of_captions():
    texts = [("a red heart", "one"), ("two words here now",)]
    figures = statistics.describe_captions(texts, lambda captions: np.array([len(c) for c in captions]), 10)
    assert figures and "heart" in str(figures)
    assert list(statistics.spread(5, 10)) == [0, 1, 2, 3, 4]
    chosen = statistics.spread(1000, 10)
    assert len(chosen) == 10 and np.array_equal(chosen // 100, np.arange(10))


def test_throughput_reads_for_the_time_asked_for():
    class Fast:
        name = "fast"

        def __len__(self):
            return 100

        def __getitem__(self, index):
            return {"image": np.zeros((4, 4, 3), np.uint8)}

    assert images_per_second(Fast(), [], batch_size=8, num_threads=0, seconds=0.2) > 100
