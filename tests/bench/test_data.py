"""The benchmark of reading, in small."""

import numpy as np
import pytest

from regvq_jax.bench import __main__ as bench
from regvq_jax.bench import data, flags
from regvq_jax.bench.measure import Measurement
from regvq_jax.files import read_json


def test_tiny_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "NAMES", 64)
    output = tmp_path / "data.json"
    bench.main(["data", "--against=none", "--tiny", f"--json={output}"])
    assert "medians of up to 2 repeats in turns, seed 0" in " ".join(capsys.readouterr().out.split())
    rows = {row["reader"]: row for row in read_json(output)["rows"]}
    assert list(rows) == [data.PILLOW, data.OURS]
    for row in rows.values():
        assert (row["images"], row["size"], row["repeats"]) == (32, "500 x 375", 2)
        assert row["per_second"] == pytest.approx(32 / np.median(row["all_seconds"]))
        assert row["rss_bytes"] > 2**20
    assert rows[data.PILLOW]["ratio"] == 1
    # What training decodes small looks like what it would be shrunk from.
    assert 30 < rows[data.OURS]["psnr"] < 60


def test_torch_reads_the_same_files(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(data, "NAMES", 64)
    data.write_files(tmp_path / "x", 300, 400, 4)
    batch = data.torch_loader(tmp_path / "x", 1, seed=0)().run()["last"]
    assert batch.shape == (data.BATCH, data.CROP, data.CROP, 3) and batch.dtype == np.uint8
    # Of four pictures, as of four seeds.
    assert batch.std() > 10 and len(np.unique(batch[:, 0, 0], axis=0)) > 4


@pytest.mark.parametrize("against, readers", [("none", 2), ("torch", 3)])
def test_the_rival_runs_where_it_is_asked_for(against, readers, monkeypatch):
    seen = []

    def measure(programs, limits):
        seen.extend(programs)
        return {name: Measurement(failure="left out") for name in programs}

    monkeypatch.setattr(data, "NAMES", 8)
    monkeypatch.setattr(data, "measure_in_turns", measure)
    monkeypatch.setattr(flags.importlib.util, "find_spec", lambda name: name)
    bench.main(["data", f"--against={against}", "--sizes", "500 x 375", "--files=1"])
    assert seen == [data.PILLOW, data.OURS, data.TORCH][:readers]


def test_figures_by_hand(tmp_path):
    measured = {
        data.PILLOW: Measurement((2.0, 1.0, 4.0), peak_bytes=5),
        data.TORCH: Measurement((0.5,), peak_bytes=7),
    }
    row = data.make_row("500 x 375", tmp_path, data.TORCH, 64, measured)
    assert (row["per_second"], row["ratio"], row["rss_bytes"]) == (128, 4.0, 7) and "psnr" not in row
    row = data.make_row("500 x 375", tmp_path, data.PILLOW, 64, measured)
    assert (row["seconds"], row["all_seconds"], row["repeats"]) == (2.0, (2.0, 1.0, 4.0), 3)
    measured[data.PILLOW] = Measurement(failure="not done in 5 s")
    assert "ratio" not in data.make_row("500 x 375", tmp_path, data.TORCH, 64, measured)
    row = data.make_row("500 x 375", tmp_path, data.PILLOW, 64, measured)
    assert row["failure"] == "not done in 5 s" and "seconds" not in row


def test_files_differ_and_have_many_names(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "NAMES", 10)
    data.write_files(tmp_path / "x", 300, 400, 4)
    contents = [path.read_bytes() for path in sorted((tmp_path / "x").iterdir())]
    data.write_files(tmp_path / "y", 300, 400, 1, seed=1)
    assert (tmp_path / "y" / "00000.jpg").read_bytes() not in contents
    assert len(contents) == 10 and len(set(contents)) == 4 and contents[1] == contents[5]
    with pytest.raises(FileExistsError):
        data.write_files(tmp_path / "x", 300, 400, 4)
