import json
import os
import subprocess
import sys

import pytest

from regvq_jax.errors import UserError
from regvq_jax.workdir import load_config, lock_workdir, open_workdir


def test_a_workdir_remembers_its_config(tmp_path, tiny_config):
    directory = open_workdir(str(tmp_path / "a" / "run"), tiny_config)
    assert open_workdir(str(directory), tiny_config) == directory
    loaded = load_config(directory)
    assert loaded.quantizer.codebook_size == tiny_config.quantizer.codebook_size
    assert tuple(loaded.model.multipliers) == tuple(tiny_config.model.multipliers)


def test_another_config_is_refused_and_nothing_is_touched(tmp_path, tiny_config):
    directory = open_workdir(str(tmp_path / "run"), tiny_config)
    (directory / "tokenizer").mkdir()
    before = {p: p.stat().st_mtime_ns for p in directory.rglob("*")}
    tiny_config.optim.lr = 0.5
    tiny_config.model.channels = 12
    with pytest.raises(UserError, match=r"2 field\(s\) differ: model.channels \(8 there, 12 now\), optim.lr"):
        open_workdir(str(directory), tiny_config)
    assert before == {p: p.stat().st_mtime_ns for p in directory.rglob("*")}


def test_a_call_that_was_refused_does_not_lock_the_workdir(tmp_path, tiny_config):
    tiny_config.data.source = "folder:misspelt"
    directory = open_workdir(str(tmp_path / "run"), tiny_config)
    tiny_config.data.source = "folder:right"
    assert open_workdir(str(directory), tiny_config) == directory
    assert load_config(directory).data.source == "folder:right"


def test_where_a_run_goes_may_change(tmp_path, tiny_config):
    directory = open_workdir(str(tmp_path / "run"), tiny_config)
    (directory / "tokenizer").mkdir()
    tiny_config.mesh.fsdp = 2
    tiny_config.data.num_threads = 7
    assert open_workdir(str(directory), tiny_config) == directory
    assert json.loads((directory / "config.json").read_text())["mesh"]["fsdp"] == 1


def test_a_directory_of_something_else(tmp_path, tiny_config):
    with pytest.raises(UserError, match="no config.json"):
        load_config(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        open_workdir(str(tmp_path / "file" / "run"), tiny_config)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(tmp_path, tiny_config):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="(?i)permission"):
        open_workdir(str(tmp_path / "run"), tiny_config)


def test_a_config_of_another_version_names_what_it_lacks(tmp_path, tiny_config):
    directory = open_workdir(str(tmp_path / "run"), tiny_config)
    record = directory / "config.json"
    content = json.loads(record.read_text())
    del content["quantizer"], content["tokenizer"]
    record.write_text(json.dumps(content))
    with pytest.raises(UserError, match="config.json has no config.tokenizer, config.quantizer: .* version"):
        load_config(directory)


def test_a_workdir_is_locked_against_a_second_run(tmp_path):
    held = (
        "import sys, time; from pathlib import Path; from regvq_jax.workdir import lock_workdir\n"
        "with lock_workdir(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", held, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"in use by process {process.pid} on \S+: wait for it"):
            with lock_workdir(tmp_path):
                pytest.fail("it was given twice")
    finally:
        process.kill()
        process.wait()
    with lock_workdir(tmp_path):  # A kill leaves no lock behind.
        pass
