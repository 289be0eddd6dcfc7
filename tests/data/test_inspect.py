"""What inspect says of data whose figures are known, and the pictures that it draws."""

import contextlib
import csv
import io

import numpy as np
import pytest
from PIL import Image

from regvq_jax.data import inspect, inspect_tables, statistics
from regvq_jax.data.sources import make_source
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
    assert match["heldout_name"] == "val/cat/002.png" and match["train_name"] == "train/cat/020.png"
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
    with pytest.raises(UserError, match="folder .*none.* does not exist|none"):
        inspect.main([CONFIG, f"--config.data.source=folder:{tmp_path / 'none'}", f"--output={tmp_path}"])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="Cannot write"):
        inspect.main([CONFIG, f"--output={tmp_path / 'file' / 'look'}"])
    with pytest.raises(UserError, match="--examples"):
        inspect.main([CONFIG, "--examples=0"])


@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
    """(directory, what was printed) for the emoji, with label maps and without a search for duplicates."""
    output = tmp_path_factory.mktemp("emoji")
    printed = io.StringIO()
    arguments = ["--config.data.flip", "True", "--examples=20", "--no-duplicates", "--seconds=1"]
    with contextlib.redirect_stdout(printed):
        inspect.main([CONFIG, *arguments, f"--output={output}"])
    return output, printed.getvalue()


def test_label_maps_and_sizes_of_the_emoji(emoji):
    output, _ = emoji
    figures = read_json(output / "inspect.json")
    assert figures["overrides"] == ["--config.data.flip", "True"] and figures["data"]["flip"] is True
    assert figures["train"]["examples"] == 14130 and figures["train"]["looked_at"] == 20
    assert figures["train"]["shapes"] == [[32, 32, 3]] and figures["train"]["dtypes"] == ["uint8"]
    labels = figures["train"]["labels"]
    assert len(labels["shares"]) == 25 and sum(labels["shares"]) == pytest.approx(1)
    assert labels["shares"][0] == max(labels["shares"])  # the ground
    assert figures["train"]["captions"]["per_image"] == [2, 2, 2]
    assert "duplicates" not in figures


def test_what_is_printed_names_what_was_written_and_nothing_else(emoji):
    output, printed = emoji
    names = ["train.png", "heldout.png", "classes.png", "labels.png", "inspect.json"]
    assert [line for line in printed.splitlines() if line.startswith(str(output))] == [
        str(output / name) for name in names
    ]
    assert sorted(path.name for path in output.iterdir()) == sorted(names)
    assert "14,130" in printed and "Duplicates" not in printed


def test_pictures_are_shown_as_they_are_fed(emoji, inspected):
    sheet = np.asarray(Image.open(emoji[0] / "train.png"))
    # Enlarged three times, with their maps beside: 32 pictures in rows of five.
    assert sheet.shape[1] == 12 + 5 * (3 * (32 + 4 + 32) + 12)
    first = sheet[12 : 12 + 96 : 3, 12 : 12 + 96 : 3]
    source = make_source("emoji-grounds", split="train", image_size=32)
    index = int(statistics.spread(len(source), 32)[0])
    image = source[index]["image"]
    assert np.array_equal(first, image) or np.array_equal(first, image[:, ::-1])


def test_an_earlier_search_does_not_pass_for_a_later_one(tmp_path, emoji):
    for name in ("duplicates.csv", "duplicates.png"):
        (tmp_path / name).write_text("old")
    inspect.write_duplicates(tmp_path, None, {}, None, [])
    assert not list(tmp_path.iterdir())


def test_changed_fields_are_parted_from_the_rest():
    argv = ["c.py", "--config.a=1", "--config.b", "2", "--examples=3", "--config.c", "--no-duplicates"]
    argv += ["--x", "y"]
    rest, overrides = inspect.split_overrides(argv)
    assert rest == ["c.py", "--examples=3", "--no-duplicates", "--x", "y"]
    assert overrides == ["--config.a=1", "--config.b", "2", "--config.c"]


def test_remarks_name_what_is_lost():
    captions = {"captions": 100, "empty": 3, "longer": 6, "length": 24, "ids": [9, 31, 40]}
    skipped = [[f"{i}.png", "cut off"] for i in range(7)]
    split = {"examples": 900, "grey": 0.5, "captions": captions, "skipped": skipped}
    fine = {"examples": 90, "grey": 0.0, "captions": captions | {"empty": 0, "longer": 5}, "skipped": []}
    sought = {
        "matches": [{}, {}],
        "pairs": 5,
        "train_compared": 500,
        "heldout_compared": 90,
        "train_blank": 4,
        "heldout_blank": 1,
    }
    lines = inspect_tables.remarks({"train": split, "heldout": fine, "duplicates": sought})
    text = "\n".join(lines)
    assert lines[0].endswith("0.png: cut off") and "5.png" not in text and "2 more" in text
    assert "50.0 % of the training pictures are grey" in text
    assert "3 of 100 training captions have no words" in text
    assert "6 of 100 training captions lose words" in text and "held-out captions" not in text
    assert "2 of 90 held-out pictures (2.2 %) have a near-duplicate among 500 training pictures, 5" in text
    assert "4 in training, 1 held out" in text and "Not all were compared: there are 900 + 90" in text
    none = inspect_tables.duplicate_remark(sought | {"matches": [], "train_compared": 900}, 900, 90)
    assert "none of 90 held-out pictures" in none and "Not all" not in none
