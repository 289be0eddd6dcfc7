"""Every builder on a small copy of its true download, as a folder and as archives, read back."""

import io
import pickle
import tarfile

import numpy as np
import pytest

from regvq_jax.data.datasets.ade20k import Ade20k
from regvq_jax.data.datasets.celeba_hq_mask import PARTS, CelebaHqMask
from regvq_jax.data.datasets.coco_captions import CocoCaptions
from regvq_jax.data.datasets.coco_stuff import CocoStuff
from regvq_jax.data.datasets.cub_captions import CubCaptions
from regvq_jax.data.datasets.cub_species import SPECIES, TEST_SPECIES
from regvq_jax.data.images import read_image
from regvq_jax.data.tfds_source import TfdsSource
from regvq_jax.errors import UserError
from regvq_jax.files import read_json
from tests import miniatures

LISTS = {
    "cvpr2016_cub/trainvalclasses.txt": b"001.Black_footed_Albatross\n002.Laysan_Albatross\n",
    "cvpr2016_cub/testclasses.txt": b"150.Sage_Thrasher\n",
}


def prepare(cls, raw, tmp_path, **kwargs):
    """Prepares a miniature and returns the source of each split, and the report."""
    builder = cls(raw=raw, data_dir=tmp_path / "data", allow_count_mismatch=True, **kwargs)
    builder.download_and_prepare()
    spec = builder.info.full_name.replace("/1.0.0", "")
    sources = {s: TfdsSource(spec, s, data_dir=tmp_path / "data") for s in ("train", "heldout")}
    return sources, read_json(f"{builder.data_dir}/report.json")


def test_celeba_hq_mask(tmp_path):
    files = miniatures.celeba_hq()
    raw = [miniatures.write_zip(files, tmp_path / "CelebAMask-HQ.zip")]
    sources, report = prepare(CelebaHqMask, raw, tmp_path, config="official")
    counts = {split: facts["examples"] for split, facts in report["splits"].items()}
    # Of the ten places in the miniature, on both sides of CelebA's borders.
    assert counts == {"train": 5, "validation": 2, "test": 3}
    train = sources["train"]
    assert len(train) == 5 and train.num_label_classes == 19
    assert train.label_names == ("background", *PARTS)
    element = train[0]
    assert element["image"].shape == (32, 32, 3) and element["labels"].shape == (32, 32)
    # Skin 0 to 5, nose 4 to 9, left eye 8 to 13, right eye 12 to 17: later parts cover earlier ones.
    expected = np.repeat([1] * 4 + [2] * 4 + [4] * 4 + [5] * 6 + [0] * 14, 32).reshape(32, 32)
    np.testing.assert_array_equal(element["labels"], expected)
    shrunk = miniatures.picture(0, 64, 64).reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(element["image"] - shrunk).mean() < 4


def test_celeba_hq_mask_in_the_split_of_taming(tmp_path):
    files = miniatures.celeba_hq()
    raw = [miniatures.write(files, tmp_path / "raw")]
    with pytest.raises(UserError, match="has no celebahqtrain.txt"):
        prepare(CelebaHqMask, raw, tmp_path, config="taming")
    lists = {
        "celebahqtrain.txt": b"".join(b"imgHQ%05d.npy\n" % i for i in (0, 1, 2, 3, 4, 5, 6)),
        "celebahqvalidation.txt": b"imgHQ00007.npy\nimgHQ00008.npy\n",
    }
    raw.append(miniatures.write(lists, tmp_path / "lists"))
    sources, _ = prepare(CelebaHqMask, raw, tmp_path, config="taming")
    assert (len(sources["train"]), len(sources["heldout"])) == (7, 2)


def test_celeba_hq_mask_with_missing_and_strange_files(tmp_path):
    files = miniatures.celeba_hq()
    top = "CelebAMask-HQ"
    del files[f"{top}/CelebA-HQ-img/0.jpg"]
    for path in [path for path in files if "/00001_" in path]:
        del files[path]
    _, report = prepare(CelebaHqMask, [miniatures.write(files, tmp_path / "a")], tmp_path, config="official")
    reasons = dict(report["splits"]["train"]["skipped"])
    assert "no image 00000" in reasons["00000"] and "no mask" in reasons["00001"]
    assert "1 images have masks only, such as number 0" in report["notes"]
    files[f"{top}/CelebAMask-HQ-mask-anno/0/00002_tail.png"] = files[
        f"{top}/CelebAMask-HQ-mask-anno/0/00002_skin.png"
    ]
    with pytest.raises(UserError, match="00002_tail.png .* is of no known part"):
        CelebaHqMask(
            raw=[miniatures.write(files, tmp_path / "b")], data_dir=tmp_path / "d", config="official"
        ).download_and_prepare()


@pytest.mark.parametrize("lists", ("classes", "names"))
def test_cub_captions(lists, tmp_path):
    files = miniatures.cub()
    if lists == "names":
        stems = sorted(path[5:-4] for path in files if path.startswith("text/"))
        split = {"train": [s for s in stems if s[:3] != "150"], "test": [s for s in stems if s[:3] == "150"]}
        files |= {f"birds/{name}/filenames.pickle": pickle.dumps(stems) for name, stems in split.items()}
    else:
        files |= LISTS
    files["text/001.Black_footed_Albatross/Lonely_1_1.txt"] = b"a bird"
    archive = tmp_path / "CUB_200_2011.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    sources, report = prepare(CubCaptions, [archive], tmp_path)
    assert (len(sources["train"]), len(sources["heldout"])) == (6, 3)
    assert {int(sources["train"][i]["class"]) for i in range(6)} == {0, 1}
    element = sources["heldout"][1]
    assert int(element["class"]) == 149 and element["image"].shape == (48, 64, 3)
    assert len(element["texts"]) == 10 and element["texts"][9] == "a café bird"
    assert "1 caption files have no image" in report["notes"][0]


def test_cub_captions_without_a_list_of_their_split(tmp_path):
    raw = [miniatures.write(miniatures.cub(), tmp_path / "raw")]
    sources, report = prepare(CubCaptions, raw, tmp_path)
    # Of the three species in the miniature the first is of the test split.
    assert {int(sources["train"][i]["class"]) for i in range(6)} == {1, 149}
    assert [int(sources["heldout"][i]["class"]) for i in range(3)] == [0, 0, 0]
    assert sources["train"].class_names[149] == "Sage Thrasher"
    assert "no list of the test split" in report["notes"][0]


def test_cub_captions_with_a_list_of_other_classes(tmp_path):
    files = miniatures.cub() | {"testclasses.txt": b"Sage Thrasher"}
    with pytest.raises(UserError, match="By testclasses.txt, no image of .* is of the test split"):
        prepare(CubCaptions, [miniatures.write(files, tmp_path / "raw")], tmp_path)


def test_cub_species():
    assert len(set(SPECIES)) == 200 and len(TEST_SPECIES) == 50
    # Numbers as in classes.txt of CUB-200-2011.
    numbers = {1: "Black footed Albatross", 66: "Western Gull", 100: "Brown Pelican"}
    numbers |= {134: "Cape Glossy Starling", 150: "Sage Thrasher", 200: "Common Yellowthroat"}
    assert {number: SPECIES[number - 1] for number in numbers} == numbers
    # Most species have 60 images; these have fewer.
    fewer = {6: 41, 8: 48, 9: 59, 23: 59, 33: 59, 34: 59, 37: 59, 43: 59, 84: 53, 101: 50, 119: 59, 135: 59}
    fewer |= {166: 59, 187: 50}
    assert fewer.keys() <= TEST_SPECIES
    assert sum(fewer.get(number, 60) for number in TEST_SPECIES) == 2933


@pytest.mark.parametrize("year", ("2014", "2017"))
def test_coco_captions_from_three_archives(year, tmp_path):
    files = miniatures.coco(year)
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in (f"train{year}", f"val{year}", "annotations"):
        inside = {path: content for path, content in files.items() if path.startswith(f"{name}/")}
        miniatures.write_zip(inside, raw / f"{name}.zip")
    sources, _ = prepare(CocoCaptions, [raw], tmp_path, config=year)
    assert (len(sources["train"]), len(sources["heldout"])) == (8, 4)
    element = sources["train"][1]
    assert element["texts"][0] == "A dog 2 near a ☕ number 0." and len(element["texts"]) == 5
    assert len(sources["train"][0]["texts"]) == 6
    # The CMYK photograph, as a viewer shows it.
    stored = next(content for path, content in files.items() if path.endswith("0002.jpg"))
    np.testing.assert_array_equal(element["image"], read_image(stored))


def test_coco_captions_without_partners_and_without_sense(tmp_path):
    files = miniatures.coco("2017")
    del files["train2017/000000000003.jpg"]
    files["train2017/000000000099.jpg"] = miniatures.jpeg(miniatures.picture(99))
    _, report = prepare(CocoCaptions, [miniatures.write(files, tmp_path / "a")], tmp_path, config="2017")
    assert "1 train images have no caption: 000000000099" in report["notes"]
    assert "1 train captions have no image: 000000000003" in report["notes"]
    files["annotations/captions_val2017.json"] = b'{"images": []'
    with pytest.raises(UserError, match="captions_val2017.json .* is no caption file of COCO"):
        prepare(CocoCaptions, [miniatures.write(files, tmp_path / "b")], tmp_path / "b", config="2017")
    files["more/train2017/000000000001.jpg"] = files["train2017/000000000001.jpg"]
    with pytest.raises(UserError, match="has both more/train2017/0.*1.jpg and train2017/0.*1.jpg"):
        prepare(CocoCaptions, [miniatures.write(files, tmp_path / "e")], tmp_path / "e", config="2017")
    wrong = miniatures.write({"val2017/1.jpg": b"x"}, tmp_path / "c")
    with pytest.raises(UserError, match=r"lacks train2014/\*.jpg; expected .*, found val2017"):
        prepare(CocoCaptions, [wrong], tmp_path / "c", config="2014")


def test_coco_stuff(tmp_path):
    files = miniatures.coco_stuff()
    sources, _ = prepare(CocoStuff, [miniatures.write(files, tmp_path / "a")], tmp_path)
    train = sources["train"]
    names = train.label_names
    # Ids of COCO-Stuff's own list, labels.txt.
    ids = {1: "person", 70: "toilet", 91: "hair brush", 92: "banner", 157: "sky-other", 182: "wood"}
    assert train.num_label_classes == 183 and {i: names[i] for i in ids} == ids
    stored = miniatures.labels(1, 182)
    element = train[0]
    assert element["labels"][0, 0] == 0
    np.testing.assert_array_equal(element["labels"][1:], stored[1:] + 1)
    assert len(element["texts"]) == 6
    files["stuffthingmaps/train2017/000000000001.png"] = miniatures.png(np.full((48, 64), 190, np.uint8))
    with pytest.raises(UserError, match="000000000001.png .* has the value 190"):
        prepare(CocoStuff, [miniatures.write(files, tmp_path / "b")], tmp_path / "b")


def test_ade20k(tmp_path):
    raw = miniatures.write(miniatures.ade20k(), tmp_path / "raw")
    sources, _ = prepare(Ade20k, [raw], tmp_path)
    assert (len(sources["train"]), len(sources["heldout"])) == (12, 4)
    element = sources["train"][3]
    assert element["image"].shape == (1, 64, 3), "one pixel high"
    np.testing.assert_array_equal(sources["train"][0]["labels"], miniatures.labels(1, 151))
