"""A workdir that a bucket follows: whole states only, whatever is killed when."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from regvq_jax import Tokenizer
from regvq_jax.errors import UserError
from regvq_jax.files import read_json
from regvq_jax.mirror import MANIFEST, Mirror, local_workdir

URL = "memory://bucket/runs/one"


@pytest.fixture(autouse=True)
def memory():
    storage = fsspec.filesystem("memory")
    yield storage
    if storage.exists("/bucket"):
        storage.rm("/bucket", recursive=True)


def write(mirror, **files):
    for name, text in files.items():
        path = mirror.local / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def content(mirror):
    files = (path for path in mirror.local.rglob("*") if path.is_file())
    return {path.relative_to(mirror.local).as_posix(): path.read_text() for path in files}


def test_another_machine_goes_on(tmp_path, memory):
    with Mirror(URL, tmp_path / "a" / "run", seconds=60) as first:
        write(first, config="1", checkpoints__1__state="one", metrics="row\n")
    with Mirror(URL, tmp_path / "b" / "run", seconds=60) as second:
        assert content(second) == content(first)
        write(second, checkpoints__2__state="two", metrics="row\nrow\n")
        shutil.rmtree(second.local / "checkpoints" / "1")
    assert not memory.exists("/bucket/runs/one/checkpoints/1/state")
    third = Mirror(URL, tmp_path / "c" / "run")
    third.pull()
    assert content(third) == {"config": "1", "checkpoints/2/state": "two", "metrics": "row\nrow\n"}
    # The first machine has been overtaken: what it has is brought up to date.
    first.pull()
    assert content(first) == content(third)


def test_a_machine_that_is_ahead_stays_ahead(tmp_path):
    mirror = Mirror(URL, tmp_path / "run")
    mirror.pull()
    write(mirror, checkpoints__1__state="one", result="12")
    mirror.push()
    write(mirror, checkpoints__2__state="two", result="34")  # And a kill -9 before the next minute.
    again = Mirror(URL, tmp_path / "run")
    again.pull()
    assert content(again)["checkpoints/2/state"] == "two"
    again.push()
    other = Mirror(URL, tmp_path / "other")
    other.pull()
    assert content(other) == content(again) and content(other)["result"] == "34"


def test_a_kill_while_sending_leaves_the_state_before(tmp_path, memory, monkeypatch):
    mirror = Mirror(URL, tmp_path / "run")
    mirror.pull()
    write(mirror, checkpoints__1__state="one")
    mirror.push()
    write(mirror, checkpoints__2__a="two", checkpoints__2__b="two")
    sent = []

    def put_and_die(self, local, path, *args, **kwargs):
        if len(sent) == 1:
            raise ConnectionError("gone")
        sent.append(path)
        self.pipe_file(path, Path(local).read_bytes())

    monkeypatch.setattr(type(memory), "put_file", put_and_die)
    with pytest.raises(UserError, match=r"Cannot write to memory://.*gone.*the same command sends it"):
        mirror.push()
    monkeypatch.undo()
    other = Mirror(URL, tmp_path / "other")
    other.pull()
    assert content(other) == {"checkpoints/1/state": "one"}
    mirror.push()
    other.pull()
    assert set(content(other)) == {"checkpoints/1/state", "checkpoints/2/a", "checkpoints/2/b"}


def test_what_could_not_be_deleted_hinders_nothing(tmp_path, memory, monkeypatch):
    mirror = Mirror(URL, tmp_path / "run")
    mirror.pull()
    write(mirror, a="1", b="2", c="3")
    mirror.push()
    for name in "ab":
        (mirror.local / name).unlink()
    delete, deleted = type(memory).rm_file, []

    def delete_and_die(self, path):
        if deleted:
            raise ConnectionError("gone")
        deleted.append(path)
        delete(self, path)

    monkeypatch.setattr(type(memory), "rm_file", delete_and_die)
    with pytest.raises(UserError, match="gone"):
        mirror.push()
    monkeypatch.undo()
    mirror.push()
    found = [path.rpartition("/")[2] for path in memory.find("/bucket/runs/one")]
    assert sorted(found) == ["c", MANIFEST]


def test_loading_leaves_a_running_run_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("REGVQ_JAX_CACHE", str(tmp_path))
    run = Mirror(URL)
    run.pull()
    write(run, config="1")
    run.push()
    write(run, checkpoints__9__state="not sent yet")
    loaded = local_workdir(URL)
    assert (loaded / "config").read_text() == "1" and loaded != run.local
    assert (run.local / "checkpoints" / "9" / "state").exists()


def test_what_is_being_written_is_not_sent(tmp_path, memory):
    mirror = Mirror(URL, tmp_path / "run")
    mirror.pull()
    write(mirror, checkpoints__3_orbax="x")
    (mirror.local / "checkpoints" / "3.orbax-checkpoint-tmp").mkdir()
    (mirror.local / "checkpoints" / "3.orbax-checkpoint-tmp" / "state").write_text("half")
    (mirror.local / "config.json.7.partial").write_text("half")
    mirror.push()
    found = [path.removeprefix("/bucket/runs/one/") for path in memory.find("/bucket/runs/one")]
    assert sorted(found) == ["checkpoints/3_orbax", MANIFEST]


def test_changes_are_sent_meanwhile(tmp_path, memory):
    with Mirror(URL, tmp_path / "run", seconds=0.01) as mirror:
        write(mirror, metrics="row\n")
        for _ in range(500):
            if memory.exists("/bucket/runs/one/metrics"):
                break
            mirror._stop.wait(0.01)
        assert memory.cat_file("/bucket/runs/one/metrics") == b"row\n"


def test_a_run_in_a_bucket_goes_on_on_another_machine(tmp_path, tiny_run):
    """main with a URL: what one machine has trained, another shows, and loads."""
    workdir, _ = tiny_run
    url = f"file://{tmp_path / 'bucket' / 'run'}"

    def run(machine):
        command = [sys.executable, "-m", "regvq_jax.main", "--config=configs/quickstart.py:tiny"]
        environment = os.environ | {"REGVQ_JAX_CACHE": str(tmp_path / machine), "XLA_FLAGS": ""}
        command += [f"--workdir={url}", f"--compilation_cache={os.environ['JAX_COMPILATION_CACHE_DIR']}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        return done

    first = run("machine_a")
    assert "all of it is in file://" in first.stderr
    second = run("machine_b")
    assert "codebook usage" in second.stdout and "compiling the step" not in second.stderr
    results = [read_json(path) for path in tmp_path.glob("machine_*/workdirs/*/prior/result.json")]
    assert len(results) == 2 and results[0] == results[1]
    assert results[0]["eval/prior/loss"] == read_json(workdir / "prior" / "result.json")["eval/prior/loss"]
    assert Tokenizer.load(url).codebook_size == Tokenizer.load(workdir).codebook_size
