"""The list of what was left out."""

from PIL import Image

from regvq_jax.data.folder import FolderSource
from regvq_jax.data.skipped import write_skipped


def test_every_thing_left_out_has_its_line(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(400):
        Image.new("RGB", (8, 8), (i % 256, 0, 0)).save(folder / f"{i:03d}.png")
    sources = {split: FolderSource(folder, split, 8) for split in ("train", "heldout")}
    path = tmp_path / "skipped.txt"
    assert write_skipped(path, sources) == 0 and not path.exists()

    (folder / "400.png").write_bytes(b"no image")
    cut = (folder / "007.png").read_bytes()[:45]
    (folder / "007.png").write_bytes(cut)
    sources = {split: FolderSource(folder, split, 8) for split in ("train", "heldout")}
    for source in sources.values():
        for i in range(len(source)):
            source[i]
    # Both splits are of one folder, and both did without what its scan could not read.
    assert write_skipped(path, sources) == 3
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    assert [line[1] for line in lines if line[0] == "heldout"] == ["400.png"]
    train = {line[1]: line[2] for line in lines if line[0] == "train"}
    assert set(train) == {"007.png", "400.png"} and "decode" in train["007.png"]
