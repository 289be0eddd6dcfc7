"""The command line of preparing: what it says, and what it does with mistakes."""

import pytest

from regvq_jax.data import __main__ as command
from regvq_jax.data import prepare
from regvq_jax.errors import UserError
from regvq_jax.files import read_json
from tests import miniatures

GO_ON = "--allow_count_mismatch"


@pytest.fixture
def archive(tmp_path):
    return miniatures.write_zip(miniatures.ade20k(), tmp_path / "ADEChallengeData2016.zip")


def test_every_data_set_can_be_loaded_and_says_what_it_needs():
    shown = prepare.describe_datasets()
    for name in prepare.DATASETS:
        cls = prepare.load_class(name)
        assert cls.name == name and cls.RAW_HELP and name in shown
        assert set(cls.EXPECTED) == ({config.name for config in cls.BUILDER_CONFIGS} or {""})


def test_it_ends_with_a_table_and_the_paths(archive, tmp_path, capsys):
    data_dir = tmp_path / "data"
    command.main(["prepare", "ade20k", "--raw", archive, f"--data_dir={data_dir}", GO_ON, "--num_workers=2"])
    shown = capsys.readouterr().out
    directory = data_dir / "ade20k" / "1.0.0"
    for path in ("contact_sheet.png", "report.json"):
        assert str(directory / path) in shown and (directory / path).stat().st_size > 0
    assert f"made from {archive}" in shown and "skipped.txt" not in shown
    report = read_json(directory / "report.json")
    assert report["raw"] == [archive] and report["seconds"] > 0
    # A second call shows the same, and of which files it is made, whatever is asked for now.
    command.main(["prepare", "ade20k", "--raw", str(tmp_path / "other"), f"--data_dir={data_dir}"])
    shown = capsys.readouterr().out
    assert "ade20k/1.0.0 is prepared already; delete" in shown and f"made from {archive}" in shown


def test_raw_paths_may_be_relative(archive, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    prepare.main(["ade20k", "--raw", "ADEChallengeData2016.zip", "--data_dir=data", GO_ON])
    assert f"--config.data.data_dir={tmp_path / 'data'}" in capsys.readouterr().out
    assert read_json(tmp_path / "data/ade20k/1.0.0/report.json")["raw"] == [archive]


def test_what_was_left_out_is_shown(tmp_path, capsys):
    files = miniatures.ade20k()
    path = "ADEChallengeData2016/images/training/ADE_train_00000005.jpg"
    raw = miniatures.write(files | {path: files[path][:500]}, tmp_path / "raw")
    prepare.main(["ade20k", "--raw", raw, f"--data_dir={tmp_path}", GO_ON])
    assert "skipped.txt  (what was left out, and why)" in capsys.readouterr().out
    assert "ADE_train_00000005" in (tmp_path / "ade20k/1.0.0/skipped.txt").read_text()


def test_a_count_that_differs_is_told_before_the_work(archive, tmp_path, monkeypatch):
    monkeypatch.setattr("regvq_jax.data.datasets.ade20k.Ade20kLayout.read", lambda *args: 1 / 0)
    with pytest.raises(UserError, match="20,210 examples, and 12 .* 20,198 missing; .*allow_count_mismatch"):
        prepare.main(["ade20k", "--raw", archive, f"--data_dir={tmp_path}"])


def test_an_archive_that_is_cut_off(archive, tmp_path):
    cut = tmp_path / "cut.zip"
    cut.write_bytes(open(archive, "rb").read()[:-3000])
    with pytest.raises(UserError, match="cut.zip is no zip file, or is cut off"):
        prepare.main(["ade20k", "--raw", str(cut), f"--data_dir={tmp_path}", GO_ON])


def test_a_list_that_is_damaged_in_its_archive(tmp_path):
    path = tmp_path / "ade.zip"
    miniatures.write_zip(miniatures.ade20k(), path)
    path.write_bytes(path.read_bytes().replace(b"ADE_train_00000007 street", b"ADE_train_00000007 xtreet"))
    with pytest.raises(UserError, match=r"Cannot read .*ade.zip: .*sceneCategories.txt.*; fetch it again"):
        prepare.main(["ade20k", "--raw", str(path), f"--data_dir={tmp_path}", GO_ON])


def test_data_dirs_that_cannot_be_written(archive, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"gs://bucket/data is a URL.*prepare there, then copy"):
        prepare.main(["ade20k", "--raw", archive, "--data_dir=gs://bucket/data"])
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UserError, match="Cannot write .*file.*: "):
        prepare.main(["ade20k", "--raw", archive, f"--data_dir={file}"])
    with pytest.raises(UserError, match="--num_workers.*0 is not a whole number"):
        prepare.main(["ade20k", "--raw", archive, f"--data_dir={tmp_path}", "--num_workers=0"])
    with pytest.raises(UserError, match="invalid choice: 'prepar'"):
        command.main(["prepar"])
