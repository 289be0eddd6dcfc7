"""Tar shards: order, splits, parts of a sample, and what can be wrong with them."""

import io
import json
import pickle
import tarfile

import fsspec
import numpy as np
import pytest

from regvq_jax.data import tar_shards
from regvq_jax.data.sources import make_source
from regvq_jax.data.tar_shards import expand, split_by_name
from regvq_jax.data.webdataset import WebdatasetSource
from regvq_jax.errors import UserError
from tests import miniatures


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REGVQ_JAX_CACHE", str(tmp_path / "cache"))


def write_shard(path, samples):
    """Samples are dicts of members by extension, by key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, members in samples.items():
            for extension, content in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def sample(i, **members):
    picture = miniatures.png(miniatures.picture(i, 8, 8))
    return {"png": picture, "txt": f"picture {i}\nimage {i}".encode()} | members


def write_shards(folder, count=3, each=4, **options):
    for s in range(count):
        rows = {f"{s:02d}{i:03d}": sample(each * s + i, **options) for i in range(each)}
        write_shard(folder / f"shard-{s:03d}.tar", rows)
    return f"{folder}/shard-{{000..{count - 1:03d}}}.tar"


def test_samples_come_in_the_order_of_the_shards(tmp_path):
    pattern = write_shards(tmp_path)
    train, heldout = (WebdatasetSource(f"{pattern}|{pattern}", split) for split in ("train", "heldout"))
    assert len(train) == len(heldout) == 12 and train.has_text and not train.has_labels
    for i in range(12):
        element = train[i]
        np.testing.assert_array_equal(element["image"], miniatures.picture(i, 8, 8))
        assert element["texts"] == (f"picture {i}", f"image {i}")
        assert element["text"] == element["texts"][i % 2]
    assert train.fingerprint == WebdatasetSource(f"{tmp_path}/*.tar|x", "train").fingerprint
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(train))[7]["image"], train[7]["image"])


def test_a_tenth_is_held_out_by_key(tmp_path):
    pattern = write_shards(tmp_path, 4, 25)
    spec = f"webdataset:{pattern}"
    train, heldout = (make_source(spec, split=s, image_size=8) for s in ("train", "heldout"))
    texts = [source[i]["texts"][0] for source in (train, heldout) for i in range(len(source))]
    assert sorted(texts) == sorted(f"picture {i}" for i in range(100)) and 3 <= len(heldout) <= 20


def test_captions_in_json_classes_and_label_maps(tmp_path):
    labels = miniatures.labels(0, 5, 8, 8)
    rows = {}
    for i in range(4):
        members = {"jpg": miniatures.jpeg(miniatures.picture(i, 8, 8)), "cls": b"%d\n" % (i % 3)}
        caption = {"caption": f"é {i}"} if i % 2 else {"captions": [f"one {i}", "two"]}
        members |= {"json": json.dumps(caption).encode(), "seg.png": miniatures.png(labels), "tags": b"x"}
        rows[f"a/b/{i}"] = members
    path = write_shard(tmp_path / "x.tar", rows)
    source = WebdatasetSource(f"{path}|{path}", "train", num_label_classes=5)
    assert (source.num_classes, source.num_label_classes) == (3, 5)
    assert [int(source[i]["class"]) for i in range(4)] == [0, 1, 2, 0]
    assert source[1]["texts"] == ("é 1",) and source[2]["texts"] == ("one 2", "two")
    np.testing.assert_array_equal(source[3]["labels"], labels)
    with pytest.raises(UserError, match="has the id 4"):
        WebdatasetSource(f"{path}|{path}", "train", num_label_classes=4)[0]


def test_shards_in_a_bucket_are_listed_once(tmp_path, monkeypatch):
    write_shards(tmp_path / "local", 2)
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "local"), "/bucket/shards", recursive=True)
    try:
        pattern = "memory://bucket/shards/*.tar|x"
        source = WebdatasetSource(pattern, "train")
        assert len(source) == 8 and source[5]["texts"][0] == "picture 5"
        monkeypatch.setattr(tar_shards, "tar_index", None)
        assert WebdatasetSource(pattern, "train").fingerprint == source.fingerprint
    finally:
        memory.rm("/bucket", recursive=True)


def test_numbers_and_commas(tmp_path):
    write_shards(tmp_path / "a", 3)
    write_shards(tmp_path / "b", 1)
    pattern = f"{tmp_path}/b/*.tar,{tmp_path}/a/shard-{{001..002}}.tar"
    assert [path.rpartition("/")[2] for path in expand(pattern)] == [f"shard-00{i}.tar" for i in (0, 1, 2)]
    with pytest.raises(UserError, match="No shard matches .*/c/"):
        expand(f"{tmp_path}/c/*.tar")
    words = expand(f"{tmp_path}/{{b,a}}/shard-{{000..000}}.tar,{tmp_path}/a/shard-00[12].tar")
    assert [path.removeprefix(f"{tmp_path}/")[0] for path in words] == ["a", "b", "a", "a"]
    with pytest.raises(UserError, match=r"2 of the 5 shards .* do not exist .*shard-003.tar, .*shard-004"):
        expand(f"{tmp_path}/a/shard-{{000..004}}.tar")
    with pytest.raises(UserError, match=r"nosuchstorage://b/x\.tar is in no storage that fsspec knows"):
        expand("nosuchstorage://b/x.tar")


def test_shards_that_name_their_split(tmp_path):
    for split, start in (("train", 0), ("val", 4), ("extra", 8)):
        write_shard(tmp_path / split / "0.tar", {f"{i:03d}": sample(i) for i in range(start, start + 4)})
    train, heldout = (WebdatasetSource(f"{tmp_path}/*/*.tar", split) for split in ("train", "heldout"))
    assert [source[i]["texts"][0] for source in (train, heldout) for i in range(4)] == [
        f"picture {i}" for i in range(8)
    ]
    assert len(train) == len(heldout) == 4
    assert train.skipped == ((f"{tmp_path}/extra/0.tar", "It is of neither split, by its path."),)
    names = ["/train/a/cc-train-0.tar", "/train/a/cc-test-0.tar", "/train/a/cc-validation-0.tar"]
    assert split_by_name(names) == ([names[0]], [names[2]], [names[1]])
    # What is common to all says nothing, and one split alone is none.
    for names in (["/val/train/0.tar", "/val/train/1.tar"], ["x/val-0.tar"], ["value.tar", "trainer.tar"]):
        assert split_by_name(names) == ([], [], names)


def test_both_splits_have_the_same_classes(tmp_path):
    rows = {f"{i:03d}": sample(i, cls=b"%d\n" % i) for i in range(30)}
    path = write_shard(tmp_path / "x.tar", rows)
    train, heldout = (WebdatasetSource(str(path), split) for split in ("train", "heldout"))
    assert train.num_classes == heldout.num_classes == 30
    other = write_shard(tmp_path / "y.tar", {"z": sample(0, cls=b"40")})
    for split in ("train", "heldout"):
        assert WebdatasetSource(f"{path}|{other}", split).num_classes == 41


def test_json_without_a_caption_is_none(tmp_path):
    rows = {f"{i:03d}": {"png": sample(i)["png"], "json": b'{"width": 8}'} for i in range(4)}
    path = write_shard(tmp_path / "x.tar", rows)
    source = WebdatasetSource(f"{path}|x", "train")
    assert not source.has_text and "text" not in source[0]


def test_damage_is_named(tmp_path):
    path = write_shard(tmp_path / "x.tar", {str(i): sample(i) for i in range(4)})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"x\.tar .*cut off after"):
        WebdatasetSource(f"{path}|{path}", "train")
    write_shard(tmp_path / "y.tar", {"1": sample(1)})
    write_shard(tmp_path / "z.tar", {"1": sample(1)})
    with pytest.raises(UserError, match=r"Sample 1 is in both .*y\.tar and .*z\.tar"):
        WebdatasetSource(f"{tmp_path}/y.tar,{tmp_path}/z.tar|x", "train")
    rows = {str(i): sample(i) for i in range(3)}
    del rows["2"]["txt"]
    path = write_shard(tmp_path / "v.tar", rows)
    with pytest.raises(UserError, match=r"1 of the 3 samples .* have no \.txt"):
        WebdatasetSource(f"{path}|x", "train")
    path = write_shard(tmp_path / "w.tar", {"1": sample(1, cls=b"dog"), "2": sample(2, cls=b"1")})
    with pytest.raises(UserError, match="w.tar/1.cls holds 'dog'"):
        WebdatasetSource(f"{path}|x", "train")
    path = write_shard(tmp_path / "u.tar", {"1": sample(1, jpg=b"")})
    with pytest.raises(UserError, match=r"u\.tar/1 has more than one image"):
        WebdatasetSource(f"{path}|x", "train")


def test_samples_without_an_image_are_left_out(tmp_path):
    rows = {f"{i:03d}": sample(i) for i in range(150)}
    del rows["007"]["png"]
    path = write_shard(tmp_path / "x.tar", rows)
    source = WebdatasetSource(f"{path}|x", "train")
    assert len(source) == 149 and source.skipped == ((f"{path}/007", "It has no image, only txt."),)
    for i in range(3):
        rows.pop(f"00{i}")
        rows[f"00{i}"] = {"txt": b"x"}
    path = write_shard(tmp_path / "y.tar", rows)
    with pytest.raises(UserError, match="4 of the 150 samples .* have no image"):
        WebdatasetSource(f"{path}|x", "train")


def test_an_image_that_cannot_be_decoded_is_replaced(tmp_path):
    rows = {f"{i:03d}": sample(i) for i in range(120)}
    rows["005"]["png"] = rows["005"]["png"][:45]
    path = write_shard(tmp_path / "x.tar", rows)
    source = WebdatasetSource(f"{path}|x", "train")
    np.testing.assert_array_equal(source[5]["image"], source[6]["image"])
    assert source.undecodable[0][0].endswith("x.tar/005")
