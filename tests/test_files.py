import os
from pathlib import Path

import fsspec
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax.errors import UserError
from regvq_jax.files import check_writable, local_copy, read_json, to_jsonable, write_json_atomic


def test_json_round_trip_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "result.json"
    write_json_atomic(path, {"old": 1})
    value = {"loss": np.float32(0.5), "step": jnp.int32(3), "best": float("nan"), "grid": (8, 8)}
    write_json_atomic(path, value)
    assert read_json(path) == {"loss": 0.5, "step": 3, "best": "nan", "grid": [8, 8]}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_to_jsonable_of_arrays_and_infinities():
    assert to_jsonable({1: np.array([1.0, -np.inf])}) == {"1": [1.0, "-inf"]}
    assert float(to_jsonable(float("inf"))) == float("inf")


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    write_json_atomic(path, {"old": 1})

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(UserError, match="Cannot write .*config.json: No space left on device"):
        write_json_atomic(path, {"new": 1})
    monkeypatch.undo()
    assert read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_read_json_names_the_file(tmp_path):
    with pytest.raises(UserError, match="Cannot read .*nothing.json: No such file"):
        read_json(tmp_path / "nothing.json")
    (tmp_path / "broken.json").write_text('{"a": ')
    with pytest.raises(UserError, match="broken.json is not valid JSON"):
        read_json(tmp_path / "broken.json")


def test_check_writable(tmp_path):
    check_writable(tmp_path / "new" / "run")
    assert list((tmp_path / "new" / "run").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write .*file/run: Not a directory"):
        check_writable(tmp_path / "file" / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_check_writable_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied"):
        check_writable(tmp_path)


def test_a_url_is_fetched_once_and_again_when_it_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("REGVQ_JAX_CACHE", str(tmp_path))
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/bucket/weights.bin", b"first")
    try:
        copy = local_copy("memory://bucket/weights.bin")
        assert copy.read_bytes() == b"first" and copy.is_relative_to(tmp_path)
        assert local_copy("memory://bucket/weights.bin") == copy
        with pytest.raises(UserError, match="Cannot fetch memory://bucket/none"):
            local_copy("memory://bucket/none")
    finally:
        memory.rm("/bucket", recursive=True)
    assert local_copy("~/x") == Path("~/x").expanduser()
