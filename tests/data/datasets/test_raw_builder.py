"""Preparing: parallel, resumable, counted; whatever the threads, the same bytes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regvq_jax.data.datasets import raw_files, raw_shards
from regvq_jax.data.datasets.ade20k import Ade20k, Ade20kLayout
from regvq_jax.data.images import ImageError, read_image
from regvq_jax.data.tree import open_trees
from regvq_jax.errors import UserError
from regvq_jax.files import read_json, write_json_atomic
from tests import miniatures


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(raw_shards, "SHARD_EXAMPLES", 3)


def builder(tmp_path, files=None, name="raw", **kwargs):
    raw = miniatures.write(files or miniatures.ade20k(), tmp_path / name)
    kwargs = {"allow_count_mismatch": True} | kwargs
    return Ade20k(raw=[raw], data_dir=tmp_path / f"{name}_data", **kwargs)


def shards(made):
    return {path.name: path.read_bytes() for path in Path(made.data_dir).glob("*.array_record*")}


def test_writes_what_can_be_read_without_tensorflow(tmp_path):
    made = builder(tmp_path)
    made.download_and_prepare()
    script = f"""
import tests.hide_tensorflow
import tensorflow_datasets as tfds
from regvq_jax.data.datasets.ade20k import Ade20k
made = Ade20k(data_dir={str(tmp_path / "raw_data")!r})
source = made.as_data_source("train")
example = source[0]
print(len(source), example["image"].shape, example["labels"].shape, made.info.metadata["num_label_classes"])
again = tfds.builder_from_directory({str(made.data_dir)!r})
print(len(again.as_data_source("validation")), again.info.metadata["label_names"][0])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "12 (48, 64, 3) (48, 64, 1) 151\n4 unknown" in done.stdout


def test_neither_threads_nor_the_process_change_anything(tmp_path, small_shards):
    one = builder(tmp_path, name="a", num_workers=1)
    four = builder(tmp_path, name="b", num_workers=4)
    one.download_and_prepare()
    four.download_and_prepare()
    assert shards(one) == shards(four) and len(shards(one)) == 4 + 2
    assert one.info.splits["train"].shard_lengths == [3, 3, 3, 3]
    script = f"""
from regvq_jax.data.datasets import raw_shards
from regvq_jax.data.datasets.ade20k import Ade20k
raw_shards.SHARD_EXAMPLES = 3
options = dict(data_dir={str(tmp_path / "c")!r}, allow_count_mismatch=True)
Ade20k(raw=[{str(tmp_path / "a")!r}], **options).download_and_prepare()
"""
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=120)
    other = Ade20k(data_dir=tmp_path / "c")
    assert shards(other) == shards(one)


def test_a_call_that_was_broken_off_goes_on(tmp_path, small_shards, monkeypatch):
    whole = builder(tmp_path, name="whole", num_workers=1)
    whole.download_and_prepare()
    made = builder(tmp_path, num_workers=1)
    read, asked = type(made.open_layout()).read, []

    def break_off(self, item):
        asked.append(item.key)
        if item.key == "ADE_train_00000008" and len(asked) == 8:
            raise KeyboardInterrupt
        return read(self, item)

    monkeypatch.setattr("regvq_jax.data.datasets.ade20k.Ade20kLayout.read", break_off)
    with pytest.raises(KeyboardInterrupt):
        made.download_and_prepare()
    assert not Path(made.data_dir).exists() and made.partial_dir.is_dir()
    broken_off = len(asked)

    again = Ade20k(
        raw=[tmp_path / "raw"], data_dir=tmp_path / "raw_data", num_workers=1, allow_count_mismatch=True
    )
    again.download_and_prepare()
    # The two shards that were whole are not made again.
    assert asked[broken_off] == "ADE_train_00000007"
    assert shards(again) == shards(whole)
    assert not again.partial_dir.exists()


TOP = "ADEChallengeData2016"
BROKEN = f"{TOP}/images/training/ADE_train_00000005.jpg"


def strict(tmp_path, monkeypatch, files):
    """A builder that lets nothing pass, of files that are written anew."""
    monkeypatch.setattr(Ade20k, "EXPECTED", {"": {"train": 12, "validation": 4}})
    return builder(tmp_path, files, allow_count_mismatch=False, num_workers=1)


def asked_for(monkeypatch):
    """The keys of the items that are read from here on."""
    read, asked = Ade20kLayout.read, []
    monkeypatch.setattr(Ade20kLayout, "read", lambda self, item: asked.append(item.key) or read(self, item))
    return asked


@pytest.mark.parametrize("damage", ("shorter", "same size"))
def test_what_was_fetched_again_is_read_again(damage, tmp_path, small_shards, monkeypatch):
    files = miniatures.ade20k()
    good = files[BROKEN]
    bad = good[: len(good) // 2] if damage == "shorter" else bytes(len(good))
    with pytest.raises(UserError, match="1 of the 12 .*00000005.jpg: [^;]*: fetch the data again"):
        strict(tmp_path, monkeypatch, files | {BROKEN: bad}).download_and_prepare()
    made, asked = strict(tmp_path, monkeypatch, files), asked_for(monkeypatch)
    made.download_and_prepare()
    assert made.info.splits["train"].num_examples == 12
    # Only the shard of the broken file, and then the contact sheet.
    assert asked[:-12] == [f"ADE_train_0000000{i}" for i in (4, 5, 6)]


def test_an_image_that_has_changed_since_is_read_again(tmp_path, small_shards, monkeypatch):
    files = miniatures.ade20k()
    late = f"{TOP}/images/validation/ADE_val_00000003.jpg"
    with pytest.raises(UserError):
        strict(tmp_path, monkeypatch, files | {late: b"x"}).download_and_prepare()
    files[BROKEN] = miniatures.jpeg(np.zeros((48, 64, 3), np.uint8))
    made = strict(tmp_path, monkeypatch, files)
    made.download_and_prepare()
    assert made.as_data_source("train")[4]["image"].max() == 0


def test_one_split_that_fails_does_not_lose_the_other(tmp_path, small_shards, monkeypatch):
    late = f"{TOP}/images/validation/ADE_val_00000003.jpg"
    files = miniatures.ade20k() | {late: b"x"}
    with pytest.raises(UserError, match="1 of the 4 examples .* go on with --allow_count_mismatch"):
        strict(tmp_path, monkeypatch, files).download_and_prepare()
    made, asked = builder(tmp_path, files, num_workers=1), asked_for(monkeypatch)
    made.download_and_prepare()
    assert asked[:-12] == [f"ADE_val_0000000{i}" for i in (1, 2, 3)]
    counts = {split: info.num_examples for split, info in made.info.splits.items()}
    assert counts == {"train": 12, "validation": 3}


def test_a_failure_after_the_shards_loses_none(tmp_path, small_shards, monkeypatch):
    made = builder(tmp_path, num_workers=1)
    with monkeypatch.context() as broken:
        broken.setattr(made, "_report", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            made.download_and_prepare()
    left = made.partial_dir.parent / "incomplete.ABCDEF_1.0.0"  # Of a call that was killed.
    left.mkdir()
    again, asked = builder(tmp_path, num_workers=1), asked_for(monkeypatch)
    again.download_and_prepare()
    assert len(asked) == 12  # for the contact sheet
    assert len(again.as_data_source("train")) == 12
    assert not again.partial_dir.exists() and not left.exists()


def test_shards_that_are_not_those_of_these_files_are_made_anew(tmp_path, small_shards):
    made = builder(tmp_path)
    shards_dir = made.partial_dir / "shards"
    shards_dir.mkdir(parents=True)
    (shards_dir / "train-00000").write_bytes(b"stale")
    stale = {"examples": 99, "bytes": 5, "skipped": [], "items": "of others"}
    write_json_atomic(shards_dir / "train-00000.json", stale)
    made.download_and_prepare()
    assert made.info.splits["train"].num_examples == 12
    assert made.as_data_source("train")[0]["name"] == b"ADE_train_00000001"


def test_a_shard_without_any_example_left(tmp_path, small_shards):
    files = miniatures.ade20k()
    files |= {f"{TOP}/images/training/ADE_train_0000000{i}.jpg": b"x" for i in (4, 5, 6)}
    made = builder(tmp_path, files)
    made.download_and_prepare()
    names = [example["name"][-2:] for example in made.as_data_source("train")]
    assert names == [b"01", b"02", b"03", b"07", b"08", b"09", b"10", b"11", b"12"]


def test_a_split_of_which_nothing_is_left_is_refused(tmp_path):
    files = miniatures.ade20k()
    files |= {path: b"x" for path in files if "images/validation" in path}
    with pytest.raises(UserError, match="4 of the 4 examples .* cannot be read"):
        builder(tmp_path, files).download_and_prepare()


def test_a_full_disk_is_one_sentence(tmp_path):
    raw = miniatures.write(miniatures.ade20k(), tmp_path / "raw")
    script = f"""
import resource
from regvq_jax import files
from regvq_jax.data import prepare
from regvq_jax.errors import UserError

files.PROBE_BYTES = 1  # There is room for that.
resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))
try:
    prepare.main(["ade20k", "--raw", {raw!r}, "--data_dir={tmp_path / "data"}", "--allow_count_mismatch"])
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert "Cannot write" in done.stdout and "/shards/" in done.stdout, done.stderr[-2000:]
    assert "File too large" in done.stdout and "free some space" in done.stdout


def test_counts_are_those_of_the_official_set_or_one_says_so(tmp_path):
    made = builder(tmp_path, allow_count_mismatch=False)
    with pytest.raises(UserError, match=r"20,210 examples, and 12 are .*: 20,198 missing.*--allow"):
        made.download_and_prepare()


def test_what_cannot_be_read_is_listed(tmp_path):
    files = miniatures.ade20k()
    files[BROKEN] = files[BROKEN][: len(files[BROKEN]) // 2]
    del files[f"{TOP}/annotations/training/ADE_train_00000006.png"]
    maps = f"{TOP}/annotations/training"
    files[f"{maps}/ADE_train_00000007.png"] = miniatures.png(miniatures.labels(7, 151, 40))
    files[f"{maps}/ADE_train_99999999.png"] = miniatures.png(miniatures.labels(7, 151))
    made = builder(tmp_path, files)
    made.download_and_prepare()
    directory = Path(made.data_dir)
    report = read_json(directory / "report.json")
    assert report["splits"]["train"]["examples"] == 9
    reasons = dict(report["splits"]["train"]["skipped"])
    assert set(reasons) == {f"ADE_train_0000000{i}" for i in (5, 6, 7)}
    assert "truncated" in reasons["ADE_train_00000005"]
    assert "no such file" in reasons["ADE_train_00000006"].lower()
    assert "64 x 40, its image 64 x 48" in reasons["ADE_train_00000007"]
    assert "1 label maps of train have no image" in report["notes"][0]
    assert len((directory / "skipped.txt").read_text().splitlines()) == 3
    assert Image.open(directory / "contact_sheet.png").width > 500
    # Without being told to, it does not go on.
    with pytest.raises(UserError, match="3 of the 12 examples .* cannot be read"):
        refused = builder(tmp_path, files, name="strict", allow_count_mismatch=False)
        refused.EXPECTED = {}
        refused.download_and_prepare()


def test_images_are_kept_unless_readers_would_differ(tmp_path):
    pixels = miniatures.picture(0)
    files = {
        "plain.jpg": miniatures.jpeg(pixels),
        "grey.jpg": miniatures.jpeg(pixels, "L"),
        "cmyk.jpg": miniatures.jpeg(pixels, "CMYK"),
        "turned.jpg": miniatures.rotated_jpeg(pixels),
    }
    tree = open_trees([miniatures.write(files, tmp_path / "x")])
    for name in ("plain.jpg", "grey.jpg"):
        assert raw_files.checked_image(tree, name) == files[name]
    for name in ("cmyk.jpg", "turned.jpg"):
        kept = raw_files.checked_image(tree, name)
        assert kept != files[name]
        np.testing.assert_array_equal(read_image(kept), read_image(files[name]))
    assert read_image(raw_files.checked_image(tree, "turned.jpg")).shape == pixels.shape
    with pytest.raises(ImageError, match="none.jpg"):
        raw_files.checked_image(tree, "none.jpg")


def test_a_wrong_folder_says_what_was_expected_and_found(tmp_path):
    made = builder(tmp_path, {"photos/a.jpg": b"x", "images/training/a.jpg": b"x"})
    with pytest.raises(UserError, match=r"lacks images/validation/.*expected images/train.*found .*photos"):
        made.download_and_prepare()
    with pytest.raises(UserError, match="ADEChallengeData2016.zip"):
        Ade20k(data_dir=tmp_path / "data").download_and_prepare()


def test_a_label_outside_of_the_classes_ends_it(tmp_path):
    files = miniatures.ade20k()
    path = "ADEChallengeData2016/annotations/training/ADE_train_00000009.png"
    files[path] = miniatures.png(np.full((48, 64), 151, np.uint8))
    with pytest.raises(UserError, match="ADE_train_00000009.png .* has the id 151"):
        builder(tmp_path, files).download_and_prepare()


def test_zip_and_folder_give_the_same(tmp_path):
    folder = builder(tmp_path)
    folder.download_and_prepare()
    archive = miniatures.write_zip(miniatures.ade20k(), tmp_path / "ADEChallengeData2016.zip")
    zipped = Ade20k(raw=[archive], data_dir=tmp_path / "zipped", allow_count_mismatch=True)
    zipped.download_and_prepare()
    assert shards(folder) == shards(zipped)
    assert zipped.as_data_source("train")[0]["scene"] == b"street corner"
