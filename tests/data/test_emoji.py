"""The packaged files: counts, split rule, alignment, and what damage to them says."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import regvq_jax.data.emoji
from regvq_jax.data.emoji import SIZES, load_pack, read_pack
from regvq_jax.errors import UserError

PACKAGED = Path(regvq_jax.data.emoji.__file__).parent


@pytest.mark.parametrize("size", SIZES)
def test_pack_has_the_stated_shape(size):
    pack = load_pack(size)
    assert pack.pictures.shape == (1570, size, size, 4) and pack.pictures.dtype == np.uint8
    assert pack.labels.shape == (1570, size, size) and pack.labels.dtype == np.uint8
    assert np.unique(pack.labels).tolist() == list(range(25))
    assert len(pack.indices("train")) == 1413 and len(pack.indices("heldout")) == 157
    assert load_pack(size) is pack
    with pytest.raises(ValueError, match="read-only"):
        pack.pictures[0, 0, 0] = 1


def test_entries_are_the_same_at_both_sizes_and_unique():
    entries = load_pack(64).entries
    assert entries == load_pack(128).entries
    for field in ("name", "code_point", "caption"):
        assert len({getattr(entry, field) for entry in entries}) == 1570
    palette = entries[[entry.caption for entry in entries].index("artist palette")]
    assert palette.code_point == "1f3a8" and palette.group == "activities"
    assert {"museum", "painting"} <= set(palette.tags)
    assert not any(tone in entry.code_point for entry in entries for tone in ("1f3fb", "1f3ff"))


def test_heldout_pictures_are_the_tenth_with_the_smallest_hash():
    entries = load_pack(64).entries
    ranked = sorted(hashlib.sha256(entry.code_point.encode()).hexdigest() for entry in entries)
    for entry in entries:
        is_small = hashlib.sha256(entry.code_point.encode()).hexdigest() < ranked[157]
        assert (entry.split == "heldout") == is_small


def test_label_maps_lie_on_their_pictures():
    pack = load_pack(64)
    drawn, labelled = pack.pictures[..., 3] > 127, pack.labels > 0

    def overlap(labelled):
        return ((drawn & labelled).sum((1, 2)) / (drawn | labelled).sum((1, 2))).mean()

    assert overlap(labelled) > 0.93
    assert overlap(np.roll(labelled, 1, axis=0)) < 0.8  # another picture's map does not fit


@pytest.mark.parametrize(
    ("caption", "colour"),
    [("red heart", "red"), ("blue circle", "blue"), ("green square", "green")],
)
def test_classes_have_the_names_of_their_colours(caption, colour):
    pack = load_pack(64)
    labels = pack.labels[[entry.caption for entry in pack.entries].index(caption)]
    commonest = np.bincount(labels[labels > 0]).argmax()
    assert colour in pack.palette[commonest - 1].name
    assert len({entry.name for entry in pack.palette}) == 24


def test_sizes_show_the_same_pictures():
    small, large = load_pack(64).pictures, load_pack(128).pictures
    reduced = large.reshape(1570, 64, 2, 64, 2, 4)[..., 3].mean((2, 4))
    assert np.abs(reduced - small[..., 3]).mean() < 2.0


def test_unknown_size_and_split_are_user_errors():
    with pytest.raises(UserError, match="no size 100"):
        load_pack(100)
    with pytest.raises(UserError, match="'test'"):
        load_pack(64).indices("test")


@pytest.fixture
def copied(tmp_path):
    for name in ("emoji.json", "pictures_64.webp", "labels_64.png"):
        shutil.copy(PACKAGED / name, tmp_path)
    return tmp_path


def test_damaged_files_are_user_errors(copied):
    assert read_pack(copied, 64).digest == load_pack(64).digest
    index = json.loads((copied / "emoji.json").read_text(encoding="utf-8"))
    index["entries"].pop()
    (copied / "emoji.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(UserError, match="damaged"):
        read_pack(copied, 64)
    (copied / "emoji.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read"):
        read_pack(copied, 64)


def test_truncated_and_missing_sheets_are_user_errors(copied):
    sheet = copied / "pictures_64.webp"
    sheet.write_bytes(sheet.read_bytes()[:100_000])
    with pytest.raises(UserError, match="cannot be read"):
        read_pack(copied, 64)
    sheet.unlink()
    with pytest.raises(UserError, match=r"pictures_64\.webp"):
        read_pack(copied, 64)


def test_licence_notices_are_beside_the_data():
    assert "Microsoft Corporation" in (PACKAGED / "LICENSE-fluentui-emoji.txt").read_text()
    assert "Miles Johnson" in (PACKAGED / "LICENSE-emojibase.txt").read_text()
