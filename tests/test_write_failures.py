"""A training that can no longer write: it ends with the cause, and goes on from the last good checkpoint."""

import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest

from regvq_jax import loop
from regvq_jax.errors import UserError
from regvq_jax.mirror import Mirror
from tests.test_loop import Rows, ToyTrainer, final_state

ROOT = Path(__file__).parents[1]
# Row 60 is in batch 7.
FAILING = """
import resource, sys
from pathlib import Path
from regvq_jax import loop, sharding
from regvq_jax.errors import UserError
from tests.test_loop import Rows, ToyTrainer
import jax, numpy as np
directory = Path(sys.argv[1])
def fail():
    {failure}
    return {{"x": np.full((3,), 60, np.float32)}}
mesh = sharding.make_mesh(devices=jax.devices()[:1])
try:
    loop.train(ToyTrainer(Rows(60, fail)), directory, mesh)
except UserError as error:
    print("said:", error)
"""
FAILURES = {
    # Batches are read ahead: step 6 may be saved by then or not; or a line of metrics.jsonl fails first.
    "full disk": (
        "resource.setrlimit(resource.RLIMIT_FSIZE, (128, 128))",
        "File too large; (step [46] is intact. F|f)ree some space",
    ),
    "permission": ("(directory / 'checkpoints').chmod(0o555)", "Permission denied; step [46] is intact"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_the_cause_is_said_and_the_training_goes_on_later(tmp_path, one_device_mesh, name):
    failure, words = FAILURES[name]
    command = [sys.executable, "-c", FAILING.format(failure=failure), str(tmp_path / "run")]
    if name == "permission" and os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root may write anywhere")
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = done.stdout.strip().splitlines()
    assert len(said) == 1 and re.search(words, said[0]), done.stdout
    (tmp_path / "run" / "checkpoints").chmod(0o755)
    for directory in ("run", "whole"):
        loop.train(ToyTrainer(Rows()), tmp_path / directory, one_device_mesh)
    states = [final_state(tmp_path / directory) for directory in ("run", "whole")]
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_a_bucket_that_fails_is_tried_again_and_at_the_end_an_error(tmp_path, caplog, monkeypatch):
    storage = fsspec.filesystem("memory")
    sent = storage.put_file

    def full(*args, **kwargs):
        raise OSError("quota exceeded")

    words = r"Cannot write to memory://full/run: OSError: quota exceeded; .* and the same command sends it"
    try:
        with caplog.at_level(logging.WARNING, "regvq_jax"), pytest.raises(UserError, match=words):
            with Mirror("memory://full/run", tmp_path / "run", seconds=0.01) as mirror:
                mirror.push()
                monkeypatch.setattr(storage, "put_file", full)
                (mirror.local / "checkpoint").write_text("new")
                while not caplog.records:  # Meanwhile the training goes on.
                    mirror._stop.wait(0.01)
        assert re.search(words, caplog.text)
        monkeypatch.setattr(storage, "put_file", sent)
        with Mirror("memory://full/run", tmp_path / "run", seconds=60):
            pass
        assert storage.cat_file("/full/run/checkpoint") == b"new"
    finally:
        storage.rm("/full", recursive=True)
