"""The builder on three tiny packages: join, repeatability, and what a wrong package says."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from regvq_jax.data.emoji import build
from regvq_jax.errors import UserError

pytest.importorskip("resvg_py")

COLOURS = {"1f34e": "#ff0000", "1f34f": "#00ff00", "2764": "#0000ff"}


def write_package(directory, package, files, version=None):
    manifest = {"name": package.name, "version": version or package.version}
    files = {"package.json": json.dumps(manifest).encode(), **files}
    with tarfile.open(directory / package.filename, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def webp(colour):
    buffer = io.BytesIO()
    Image.new("RGBA", (256, 256), colour).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


@pytest.fixture
def packages(tmp_path, monkeypatch):
    directory = tmp_path / "packages"
    directory.mkdir()
    pictures = {f"assets/{point}.webp": webp(colour) for point, colour in COLOURS.items()}
    pictures["assets/2764-fe0f.webp"] = pictures.pop("assets/2764.webp")
    pictures["assets/1f44b-1f3fb.webp"] = webp("#ffff00")  # no annotation of its own
    write_package(directory, build.PICTURES, pictures)
    rows = [
        {
            "hexcode": hexcode,
            "label": label,
            "tags": ["fruit"],
            "order": order,
            "group": 0,
            "subgroup": 1,
        }
        for order, (hexcode, label) in enumerate(
            [("2764-FE0F", "red heart"), ("1F34E", "red apple"), ("1F34F", "green apple")]
        )
    ]
    rows.append({"hexcode": "1F1E6", "label": "regional indicator A"})
    groups = {"groups": {"0": "things"}, "subgroups": {"1": "small-things"}}
    write_package(
        directory,
        build.ANNOTATIONS,
        {
            "en/data.json": json.dumps(rows).encode(),
            "meta/groups.json": json.dumps(groups).encode(),
        },
    )
    icons = {
        point: {"body": f'<rect x="0" y="0" width="16" height="32" fill="{colour}"/>'}
        for point, colour in COLOURS.items()
    }
    write_package(
        directory,
        build.DRAWINGS,
        {
            "icons.json": json.dumps({"icons": icons, "width": 32, "height": 32}).encode(),
            "chars.json": json.dumps({point: point for point in COLOURS}).encode(),
        },
    )
    monkeypatch.setattr(build, "NUM_PICTURES", 3)
    monkeypatch.setattr(build, "NUM_CLASSES", 3)
    monkeypatch.setattr(build, "WEBP_QUALITY", {8: 90, 16: 90})
    return directory


def test_builds_aligned_sheets_and_twice_the_same_bytes(packages, tmp_path):
    for name in ("first", "second"):
        build.build(packages, tmp_path / name)
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert names == [
        "emoji.json",
        "labels_16.png",
        "labels_8.png",
        "pictures_16.webp",
        "pictures_8.webp",
    ]
    for name in names:
        first, second = ((tmp_path / run / name).read_bytes() for run in ("first", "second"))
        assert first == second
    index = json.loads((tmp_path / "first" / "emoji.json").read_text(encoding="utf-8"))
    assert [entry["caption"] for entry in index["entries"]] == [
        "red heart",
        "red apple",
        "green apple",
    ]
    assert index["entries"][0]["code_point"] == "2764"
    colours = [entry["colour"] for entry in index["palette"]]
    assert colours == ["#0000ff", "#ff0000", "#00ff00"]  # dark to light
    labels = np.asarray(Image.open(tmp_path / "first" / "labels_8.png"))
    assert labels.shape == (8, 40 * 8)
    np.testing.assert_array_equal(labels[0, :24], [1] * 4 + [0] * 4 + [2] * 4 + [0] * 4 + [3] * 4 + [0] * 4)
    pictures = np.asarray(Image.open(tmp_path / "first" / "pictures_16.webp").convert("RGB"))
    assert pictures[8, 8].argmax() == 2 and pictures[8, 24].argmax() == 0


def test_heldout_is_a_tenth_whatever_the_order():
    points = [f"{number:x}" for number in range(200)]
    heldout = build.heldout_code_points(points)
    assert len(heldout) == 20 and heldout == build.heldout_code_points(points[::-1])


def test_shrinking_takes_no_colour_from_clear_pixels():
    picture = Image.new("RGBA", (4, 4), (255, 0, 0, 255))
    picture.paste((0, 255, 0, 0), (0, 0, 1, 4))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    small = build.shrink_picture(buffer.getvalue(), 1)[0, 0]
    assert small.tolist() == [255, 0, 0, 191]


def test_missing_wrong_and_broken_packages_name_the_command(packages, tmp_path, capsys):
    command = r"npm pack emojibase-data@17\.0\.0"
    path = packages / build.ANNOTATIONS.filename
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=command):
        build.build(packages, tmp_path)
    write_package(packages, build.ANNOTATIONS, {}, version="16.0.0")
    with pytest.raises(UserError, match=f"16.0.0.*{command}"):
        build.build(packages, tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=command):
        build.build(packages, tmp_path)
    assert build.main([f"--packages={packages}"]) == 2
    assert "npm pack" in capsys.readouterr().err


def test_wrong_count_writes_nothing(packages, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "NUM_PICTURES", 4)
    with pytest.raises(UserError, match="3 pictures"):
        build.build(packages, tmp_path / "out")
    assert not (tmp_path / "out").exists()
