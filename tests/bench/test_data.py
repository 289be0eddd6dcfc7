"""The benchmark of reading, in small."""

import pytest

from regvq_jax.bench import data
from regvq_jax.files import read_json


def test_every_reader_gives_its_images(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "NAMES", 64)
    output = tmp_path / "data.json"
    args = ["--sizes", "500 x 375", "--files=4", "--images=32", "--repeats=1", f"--output={output}"]
    data.main(args)
    rows = {row["reader"]: row for row in read_json(output)["rows"]}
    assert {data.PILLOW, data.OURS} <= set(rows)
    assert rows[data.PILLOW]["ratio"] == 1 and all(row["per_second"] > 0 for row in rows.values())
    # What training decodes small looks like what it would be shrunk from.
    assert 30 < rows[data.OURS]["psnr"] < 60


def test_files_differ_and_have_many_names(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "NAMES", 10)
    data.write_files(tmp_path / "x", 300, 400, 4)
    contents = [path.read_bytes() for path in sorted((tmp_path / "x").iterdir())]
    assert len(contents) == 10 and len(set(contents)) == 4 and contents[1] == contents[5]
    with pytest.raises(FileExistsError):
        data.write_files(tmp_path / "x", 300, 400, 4)
