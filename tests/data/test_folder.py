import os
import pickle
import shutil
import threading

import fsspec
import numpy as np
import pytest
from PIL import Image

from regvq_jax.data import listing
from regvq_jax.data.folder import FolderSource
from regvq_jax.data.sources import Source
from regvq_jax.errors import UserError


@pytest.fixture(autouse=True)
def fresh_scans():
    listing.scan_headers.cache_clear()


def write_image(path, value=0, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value % 256, value // 256, 0)).save(path)


def write_images(folder, count, **options):
    for i in range(count):
        write_image(folder / f"{i:04d}.png", i, **options)


def truncate(path):
    path.write_bytes(path.read_bytes()[:45])  # PNG: the header is whole, of the pixels some are.


def values(source):
    return [int(source[i]["image"][0, 0] @ [1, 256, 0]) for i in range(len(source))]


def both(path, **options):
    return [FolderSource(path, split, 8, **options) for split in ("train", "heldout")]


def test_extensions_nesting_and_order(tmp_path):
    names = ["b.PNG", "a/x.jpg", "a/b/y.jpeg", "c.webp", "d.bmp", "e.tif", "f.tiff", "g.gif"]
    for i, name in enumerate(names):
        write_image(tmp_path / name, i)
    for name in (".hidden.png", "notes.md", ".thumbs/x.png"):
        write_image(tmp_path / "q.png")
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(tmp_path / "q.png", tmp_path / name)
    (tmp_path / "q.png").unlink()
    train, heldout = both(tmp_path)
    assert isinstance(train, Source) and train.name == f"folder:{tmp_path}"
    assert sorted(train._paths + heldout._paths) == sorted(names)
    assert train._paths == sorted(train._paths)
    assert not train.has_text and not train.has_labels
    element = train[0]
    assert element.keys() == {"image"} and element["image"].shape == (8, 8, 3)
    with pytest.raises(IndexError):
        train[len(train)]


def test_hash_split_is_a_stable_tenth(tmp_path):
    write_images(tmp_path, 400)
    train, heldout = both(tmp_path)
    assert sorted(values(train) + values(heldout)) == list(range(400))
    assert 25 <= len(heldout) <= 55
    before = set(heldout._paths)
    write_image(tmp_path / "one_more.png")
    assert set(FolderSource(tmp_path, "heldout", 8)._paths) - {"one_more.png"} == before


def test_heldout_has_at_least_one_and_never_all():
    for count in range(2, 40):
        paths = [f"{count}/{i}.png" for i in range(count)]
        assert 1 <= len(listing.heldout_paths(paths)) < count


@pytest.mark.parametrize("heldout_name", listing.HELDOUT_FOLDERS)
def test_split_folders(tmp_path, heldout_name):
    write_images(tmp_path / "train" / "cats", 3)
    write_images(tmp_path / heldout_name, 1)
    write_image(tmp_path / "elsewhere.png")
    train, heldout = both(tmp_path)
    assert train._paths == [f"train/cats/{i:04d}.png" for i in range(3)]
    assert heldout._paths == [f"{heldout_name}/0000.png"]


def test_train_folder_alone_is_split_by_hash(tmp_path):
    write_images(tmp_path / "train", 4)
    assert sorted(map(len, both(tmp_path))) == [1, 3]


def test_missing_empty_and_single(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        FolderSource(tmp_path / "absent", "train", 8)
    with pytest.raises(UserError, match=r"0 images.*\.png \.jpg.*found no files"):
        FolderSource(tmp_path, "train", 8)
    (tmp_path / "a.pdf").write_text("x")
    (tmp_path / "b.pdf").write_text("x")
    write_image(tmp_path / "c.png")
    with pytest.raises(UserError, match=r"1 images.*at least 2.*found 2 x \.pdf, 1 x \.png"):
        FolderSource(tmp_path, "train", 8)
    write_images(tmp_path / "train", 2)
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "notes.md").write_text("to be filled")
    with pytest.raises(UserError, match=r"val has 0 images"):
        FolderSource(tmp_path, "heldout", 8)


def test_link_loop_ends(tmp_path):
    write_images(tmp_path / "real", 3)
    os.symlink(tmp_path, tmp_path / "real" / "loop")
    elsewhere = tmp_path.parent / f"{tmp_path.name}_other"
    write_images(elsewhere, 2)
    os.symlink(elsewhere, tmp_path / "linked")
    assert sum(map(len, both(tmp_path))) == 5


def test_captions_from_text_files(tmp_path):
    write_images(tmp_path / "train", 3)
    write_images(tmp_path / "val", 1)
    for i in range(3):
        (tmp_path / "train" / f"{i:04d}.txt").write_text(f"first {i}\nsecond {i}\n")
    train, heldout = both(tmp_path)
    assert train.has_text and not heldout.has_text
    assert [train[i]["text"] for i in range(3)] == ["first 0", "second 1", "first 2"]
    assert train[2]["texts"] == ("first 2", "second 2")


def test_metadata_wins_over_text_files(tmp_path):
    write_images(tmp_path, 3)
    (tmp_path / "0000.txt").write_text("from text")
    (tmp_path / "0001.txt").write_text("from text")
    rows = [f'{{"file_name": "{name}", "text": "from table"}}' for name in ("0001.png", "0002.png")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    texts = {source._paths[i]: source[i]["text"] for source in both(tmp_path) for i in range(len(source))}
    assert texts == {"0000.png": "from text", "0001.png": "from table", "0002.png": "from table"}


def test_metadata_inside_the_split_folder(tmp_path):
    write_images(tmp_path / "train", 2)
    write_images(tmp_path / "test", 1)
    (tmp_path / "train" / "metadata.csv").write_text("file_name,text\n0000.png,a\n0001.png,b\n")
    (tmp_path / "metadata.csv").write_text("file_name,text\ntest/0000.png,c\n")
    train, heldout = both(tmp_path)
    assert [train[i]["text"] for i in range(2)] + [heldout[0]["text"]] == ["a", "b", "c"]


def test_some_without_captions(tmp_path):
    write_images(tmp_path, 5)
    (tmp_path / "0000.txt").write_text("x")
    (tmp_path / "0003.txt").write_text("\n \n")
    with pytest.raises(UserError, match=r"4 of the 5 images.*0001\.png.*\.\.\."):
        FolderSource(tmp_path, "train", 8)


def test_metadata_of_missing_images(tmp_path):
    write_images(tmp_path, 2)
    (tmp_path / "metadata.csv").write_text("file_name,text\n0000.png,a\nnope.png,b\n")
    with pytest.raises(UserError, match=r"1 images that do not exist \(nope\.png\)"):
        FolderSource(tmp_path, "train", 8)


def test_fingerprint_follows_the_data_not_the_place(tmp_path):
    write_images(tmp_path / "a", 6)
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copy)
    os.utime(tmp_path / "b" / "0000.png", (0, 0))
    prints = [source.fingerprint for source in both(tmp_path / "a")]
    assert prints == [source.fingerprint for source in both(tmp_path / "b")]
    assert prints[0] != prints[1] and all(len(p) == 16 and int(p, 16) for p in prints)
    for i in range(6):
        (tmp_path / "b" / f"{i:04d}.txt").write_text("a caption")
    with_text = FolderSource(tmp_path / "b", "train", 8).fingerprint
    (tmp_path / "a" / "0005.png").rename(tmp_path / "a" / "renamed.png")
    renamed = {source.fingerprint for source in both(tmp_path / "a")}
    assert with_text != prints[0] and renamed != set(prints)


def test_one_bad_header_in_a_hundred_is_skipped_and_named(tmp_path, caplog):
    write_images(tmp_path, 100)
    (tmp_path / "0042.png").write_bytes(b"no image")
    with caplog.at_level("WARNING"):
        train, heldout = both(tmp_path)
    assert sorted(values(train) + values(heldout)) == [i for i in range(100) if i != 42]
    assert caplog.text.count("0042.png") == 1 and "1 of the 100 images" in caplog.text


def test_more_than_one_percent_skipped_is_an_error(tmp_path):
    write_images(tmp_path, 100)
    (tmp_path / "0042.png").write_bytes(b"no image")
    write_image(tmp_path / "0050.png", size=(20, 7))
    with pytest.raises(UserError, match=r"1 are smaller.*0050\.png.*1 are unreadable.*0042\.png"):
        FolderSource(tmp_path, "train", 8)


def test_small_images_and_upscale(tmp_path):
    write_images(tmp_path, 3, size=(7, 30))
    with pytest.raises(UserError, match=r"3 are smaller than the crop of 8.*data\.upscale=True"):
        FolderSource(tmp_path, "train", 8)
    assert sum(map(len, both(tmp_path, upscale=True))) == 3


def test_truncated_image_is_replaced_by_the_next(tmp_path, caplog):
    write_images(tmp_path / "train", 200)
    write_images(tmp_path / "val", 1)
    for i in (7, 199):
        (tmp_path / "train" / f"{i:04d}.txt").write_text("x")
        truncate(tmp_path / "train" / f"{i:04d}.png")
    for i in range(200):
        (tmp_path / "train" / f"{i:04d}.txt").write_text(f"caption {i}")
    source = FolderSource(tmp_path / "", "train", 8)
    with caplog.at_level("WARNING"):
        expected = [8 if i == 7 else 0 if i == 199 else i for i in range(200)]
        assert values(source) == expected and values(source) == expected
    assert source[7]["text"] == "caption 8"
    assert caplog.text.count("0007.png") == 1 and caplog.text.count("0199.png") == 1
    copy = pickle.loads(pickle.dumps(source))
    assert values(copy) == expected and copy.fingerprint == source.fingerprint


def test_too_many_truncated_images_end_in_an_error(tmp_path):
    write_images(tmp_path / "train", 3)
    write_images(tmp_path / "val", 1)
    for i in range(3):
        truncate(tmp_path / "train" / f"{i:04d}.png")
    source = FolderSource(tmp_path, "train", 8)
    for _ in range(6):  # Also when all are known to be bad: no endless search.
        with pytest.raises(UserError, match=r"1 % of the 3 train images.*0000\.png.*repair"):
            source[0]


def test_threads_agree(tmp_path):
    write_images(tmp_path / "train", 120)
    write_images(tmp_path / "val", 1)
    truncate(tmp_path / "train" / "0003.png")
    source = FolderSource(tmp_path, "train", 8)
    results = []
    threads = [threading.Thread(target=lambda: results.append(values(source))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = [4 if i == 3 else i for i in range(120)]
    assert len(results) == 4 and all(result == expected for result in results)
    assert np.array_equal(source[3]["image"], source[4]["image"])


def write_map(path, ids, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(ids, np.uint8))
    if mode == "P":
        image.putpalette([255 - i // 3 for i in range(768)])
    image.save(path)


def write_pairs(root, names, maps="annotations", size=(8, 8)):
    """Images whose green channel is their label map."""
    for number, name in enumerate(names):
        ids = np.random.default_rng(number).integers(0, 5, size[::-1]).astype(np.uint8)
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        rgb = np.stack([np.zeros_like(ids), ids, np.zeros_like(ids)], -1)
        Image.fromarray(rgb).save(root / "images" / name)
        path = (root / maps / name).with_suffix(".png")
        write_map(path, ids, "P" if number % 2 else "L")


@pytest.mark.parametrize(
    ("train", "heldout", "maps"),
    [("training", "validation", "annotations"), ("train", "val", "labels")],
)
def test_label_maps_in_the_layout_of_sceneparse(tmp_path, train, heldout, maps):
    names = [f"{train}/{i}.png" for i in range(3)] + [f"{train}/a/b.png", f"{heldout}/0.png"]
    write_pairs(tmp_path, names, maps, size=(11, 9))
    sources = both(tmp_path, num_label_classes=5)
    assert [source._paths for source in sources] == [
        sorted(f"images/{name}" for name in names if name.startswith(train)),
        [f"images/{heldout}/0.png"],
    ]
    for source in sources:
        assert source.has_labels and source.num_label_classes == 5 and isinstance(source, Source)
        for i in range(len(source)):
            element = source[i]
            assert element["labels"].dtype == np.uint8 and element["labels"].shape == (9, 11)
            np.testing.assert_array_equal(element["labels"], element["image"][..., 1])
    # Without the setting the maps are neither read nor taken for images.
    plain = both(tmp_path)
    assert [source._paths for source in plain] == [source._paths for source in sources]
    assert not plain[0].has_labels and plain[0].num_label_classes == 0 and plain[0][0].keys() == {"image"}
    assert plain[0].fingerprint != sources[0].fingerprint
    write_map(tmp_path / maps / train / "0.png", np.arange(99).reshape(9, 11) % 5)
    listing.scan_headers.cache_clear()
    assert FolderSource(tmp_path, "train", 8, num_label_classes=5).fingerprint != sources[0].fingerprint


def test_label_maps_with_captions_and_a_split_by_hash(tmp_path):
    write_pairs(tmp_path, [f"{i}.png" for i in range(30)], "labels")
    for i in range(30):
        (tmp_path / "images" / f"{i}.txt").write_text(f"number {i}")
    train, heldout = both(tmp_path, num_label_classes=5)
    assert len(train) + len(heldout) == 30 and len(heldout) >= 1
    for source in (train, heldout):
        element = source[0]
        np.testing.assert_array_equal(element["labels"], element["image"][..., 1])
        assert source._paths[0] == f"images/{element['text'].removeprefix('number ')}.png"
    (tmp_path / "images" / "metadata.csv").write_text("file_name,text\n0.png,zero\n")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "images/1.png", "text": "one"}')
    texts = {s._paths[i]: s[i]["text"] for s in both(tmp_path) for i in range(len(s))}
    assert [texts[f"images/{i}.png"] for i in range(3)] == ["zero", "one", "number 2"]


def test_images_without_a_map_of_their_size(tmp_path, caplog):
    names = [f"{i:03d}.png" for i in range(200)]
    write_pairs(tmp_path, names)
    (tmp_path / "annotations" / "004.png").unlink()
    with caplog.at_level("WARNING"):
        train, heldout = both(tmp_path, num_label_classes=5)
    assert len(train) + len(heldout) == 199 and "annotations/004.png" in caplog.text
    write_map(tmp_path / "annotations" / "005.png", np.zeros((8, 9)))
    Image.new("RGB", (8, 8)).save(tmp_path / "annotations" / "006.png")
    listing.scan_headers.cache_clear()
    message = r"3 have no label map of their size \(images/004\.png, images/005.*data\.num_label_classes=0"
    with pytest.raises(UserError, match=message):
        FolderSource(tmp_path, "train", 8, num_label_classes=5)
    assert "annotations/005.png is 9 x 8, its image 8 x 8" in caplog.text
    assert "not one byte a pixel" in caplog.text
    assert sum(map(len, both(tmp_path))) == 200


def test_a_damaged_map_is_replaced_like_a_damaged_image(tmp_path, caplog):
    names = [f"train/{i:03d}.png" for i in range(150)] + ["val/0.png"]
    write_pairs(tmp_path, names)
    truncate(tmp_path / "annotations" / "train" / "007.png")
    source = FolderSource(tmp_path, "train", 8, num_label_classes=5)
    with caplog.at_level("WARNING"):
        np.testing.assert_array_equal(source[7]["labels"], source[8]["labels"])
    assert "label map" in caplog.text and "007.png" in caplog.text


def test_maps_of_photographs_that_lie_on_their_side(tmp_path):
    names = [f"train/{i:03d}.jpg" for i in range(150)] + ["val/0.jpg"]
    write_pairs(tmp_path, names)
    turned = Image.Exif()
    turned[0x0112] = 6  # Stored 12 x 8, shown 8 x 12.
    for name in ("003", "005"):
        Image.new("RGB", (12, 8)).save(tmp_path / "images" / "train" / f"{name}.jpg", exif=turned)
    write_map(tmp_path / "annotations" / "train" / "003.png", np.ones((12, 8)))
    write_map(tmp_path / "annotations" / "train" / "005.png", np.ones((8, 12)))
    source = FolderSource(tmp_path, "train", 8, num_label_classes=5)
    assert len(source) == 150
    assert source[3]["image"].shape == (12, 8, 3) and source[3]["labels"].shape == (12, 8)
    np.testing.assert_array_equal(source[5]["labels"], source[6]["labels"])  # Its own does not fit.


def test_a_label_outside_of_the_classes_is_named(tmp_path):
    write_pairs(tmp_path, ["train/0.png", "val/0.png"])
    source = FolderSource(tmp_path, "train", 8, num_label_classes=4)
    with pytest.raises(UserError, match=r"annotations/train/0\.png has the id 4.*classes=4 allows 0 to 3"):
        source[0]
    with pytest.raises(UserError, match="must be 0 to 256, got 257"):
        FolderSource(tmp_path, "train", 8, num_label_classes=257)
    write_images(tmp_path / "elsewhere", 3)
    with pytest.raises(UserError, match=r"no folder of them.*images/.*labels/ or annotations/"):
        FolderSource(tmp_path / "elsewhere", "train", 8, num_label_classes=4)


def test_classes_are_the_sorted_sub_folders_in_both_splits(tmp_path):
    for name in ("n02", "n01", "n10"):
        write_images(tmp_path / "train" / name, 2)
    write_images(tmp_path / "val" / "n10" / "deeper", 1)
    (tmp_path / "train" / ".hidden").mkdir()
    (tmp_path / "train" / "n11").mkdir()
    (tmp_path / "train" / "n11" / "notes.md").write_text("without an image yet")
    train, heldout = both(tmp_path, class_folders=True)
    assert train.class_names == heldout.class_names == ("n01", "n02", "n10", "n11")
    assert train.num_classes == heldout.num_classes == 4
    assert [int(train[i]["class"]) for i in range(6)] == [0, 0, 1, 1, 2, 2]
    assert heldout[0]["class"] == 2 and heldout[0]["class"].dtype == np.int32
    assert both(tmp_path)[0].fingerprint != train.fingerprint and "class" not in both(tmp_path)[0][0]


def test_classes_of_a_folder_that_is_split_by_hash(tmp_path):
    for i, name in enumerate(("b", "a")):
        for j in range(10):
            write_image(tmp_path / name / f"{j}.png", i)
    for source in both(tmp_path, class_folders=True):
        assert source.class_names == ("a", "b")
        assert all(source[i]["class"] == 1 - source[i]["image"][0, 0, 0] for i in range(len(source)))


def test_images_outside_of_the_class_folders(tmp_path):
    write_images(tmp_path / "train", 2)
    write_images(tmp_path / "val" / "cats", 1)
    with pytest.raises(UserError, match=r"class_folders=True needs one sub-folder a class.*train has none"):
        FolderSource(tmp_path, "train", 8, class_folders=True)
    (tmp_path / "train" / "dogs").mkdir()
    (tmp_path / "train" / "dogs" / "notes.md").write_text("without an image yet")
    with pytest.raises(UserError, match=r"2 images lie in none of the 1 sub-folders.*train/0000\.png"):
        FolderSource(tmp_path, "train", 8, class_folders=True)
    with pytest.raises(UserError, match=r"1 images lie in none.*val/cats/0000\.png"):
        FolderSource(tmp_path, "heldout", 8, class_folders=True)


def test_archives_and_buckets_are_folders_too(tmp_path):
    folder = tmp_path / "data"
    for split, count in (("train", 5), ("val", 2)):
        write_images(folder / "images" / split, count)
        for i in range(count):
            write_map(folder / "labels" / split / f"{i:04d}.png", np.full((8, 8), i % 3))
        (folder / "images" / split / "metadata.csv").write_text(
            "file_name,text\n" + "".join(f"{i:04d}.png,picture {i}\n" for i in range(count))
        )
    local = both(folder, num_label_classes=3)
    archive = shutil.make_archive(str(tmp_path / "data"), "zip", folder)
    tar = shutil.make_archive(str(tmp_path / "data"), "tar", folder)
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/bucket/data", recursive=True)
    try:
        for path in (archive, tar, "memory://bucket/data"):
            for source, other in zip(both(path, num_label_classes=3), local, strict=True):
                assert source.fingerprint == other.fingerprint and len(source) == len(other)
                for i in range(len(source)):
                    assert source[i]["text"] == f"picture {i}"
                    np.testing.assert_array_equal(source[i]["image"], other[i]["image"])
                    np.testing.assert_array_equal(source[i]["labels"], other[i]["labels"])
                pickle.loads(pickle.dumps(source))[0]
    finally:
        memory.rm("/bucket", recursive=True)


def test_images_that_would_share_a_caption(tmp_path):
    write_images(tmp_path, 3)
    write_image(tmp_path / "0001.jpg")
    assert sum(map(len, both(tmp_path))) == 4
    for i in range(3):
        (tmp_path / f"{i:04d}.txt").write_text("a picture")
    with pytest.raises(UserError, match=r"0001\.jpg and 0001\.png .* rename or remove one"):
        both(tmp_path)


def test_what_is_skipped_is_known_and_lonely_captions_are_named(tmp_path, caplog):
    write_images(tmp_path, 120)
    (tmp_path / "0003.png").write_bytes(b"no image")
    for i in range(121):
        (tmp_path / f"{i:04d}.txt").write_text("a picture")
    source = both(tmp_path)[0]
    ((path, reason),) = source.skipped
    assert path == "0003.png" and "Cannot read image" in reason
    assert "caption files of" in caplog.text and "0120.txt" in caplog.text
