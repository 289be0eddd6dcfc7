"""What processes owe to each other at their start; with real ones, which find each other by the loopback."""

import json
import os
import subprocess
import sys

import jax
import pytest

from regvq_jax import distributed
from regvq_jax.errors import UserError
from tests.processes import ROOT, arguments, finish, start_all, write_images


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("processes") / "images")


def test_processes_that_differ_end_together(images, tmp_path):
    different = lambda index: arguments(images, tmp_path / "run", f"--config.optim.lr={1e-3 + index * 1e-3}")
    for code, output in finish(start_all(2, different), 120):
        assert code == 2, output
        assert "Processes 0 and 1 were not started alike; they differ in optim.lr (0.001 and 0.002)" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["the code of regvq_jax", "the version of jax", "optim.lr"])
def test_what_the_third_of_three_has_otherwise_is_named(monkeypatch, name):
    def of_three(text):
        return [text, text, json.dumps(json.loads(text) | {name: "other"})]

    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(distributed, "share_text", of_three)
    with pytest.raises(distributed.SharedError, match=rf"0 and 2 were not .* {name} \(\S+ and other\): give"):
        distributed.check_same({"optim": {"lr": 0.1}})


def test_a_mistake_that_one_process_finds_ends_all(images, tmp_path):
    # Only the first process opens the workdir before the others; a file stands in its way.
    (tmp_path / "taken").write_text("no directory")
    for code, output in finish(start_all(2, arguments(images, tmp_path / "taken")), 120):
        assert code == 2 and "cannot be made" in output, output


def test_a_mistake_of_one_process_alone_ends_the_others_soon(images, tmp_path):
    # The second does not find its images, which it needs only when the training begins.
    def args(index):
        folder = tmp_path / "gone" if index else images
        return ["-c", LONE.format(folder=folder, args=arguments(images, tmp_path / "run")[2:])]

    (one, said), (two, output) = finish(start_all(2, args, {"REGVQ_HEARTBEAT_SECONDS": "5"}), 180)
    assert two == 2 and "gone" in output, output
    assert one != 0, said


# `python -m regvq_jax.main`, with another folder of images than the config says.
LONE = """
import sys
from regvq_jax import main
from regvq_jax.data import sources
make_source = sources.make_source
from regvq_jax.trainers import build_data
build_data.make_source = lambda spec, **options: make_source("folder:{folder}", **options)
from tests import processes
sys.argv = ["regvq_jax.main", *{args}]
processes.keep_all_compiled()
main.run()
"""


@pytest.mark.parametrize(
    "variables, words",
    [
        ({"REGVQ_COORDINATOR": "127.0.0.1:1"}, "REGVQ_NUM_PROCESSES must be a whole number, not ''"),
        (
            {"REGVQ_COORDINATOR": "x:1", "REGVQ_NUM_PROCESSES": "2", "REGVQ_PROCESS_ID": "2"},
            "REGVQ_PROCESS_ID=2 must be from 0 to below REGVQ_NUM_PROCESSES=2",
        ),
    ],
)
def test_variables_that_are_wrong(monkeypatch, variables, words):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=words):
        distributed.start()


def test_a_coordinator_that_cannot_be_reached():
    env = {**os.environ, "XLA_FLAGS": "", "REGVQ_COORDINATOR": "127.0.0.1:9", "REGVQ_NUM_PROCESSES": "2"}
    done = subprocess.run(
        [sys.executable, "-m", "regvq_jax.main", "--config=configs/quickstart.py:tiny", "--workdir=unused"],
        cwd=ROOT,
        env=env | {"REGVQ_PROCESS_ID": "1", "REGVQ_START_SECONDS": "3"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "waits for the others at 127.0.0.1:9, at most 3 s" in done.stderr
    assert done.returncode == 2 and "did not find each other at 127.0.0.1:9 within 3 s" in done.stderr


def test_nothing_starts_where_nothing_is_asked_for(monkeypatch):
    monkeypatch.delenv("REGVQ_COORDINATOR", raising=False)
    distributed.start()
    assert distributed.share_text("alone") == ["alone"]
    assert distributed.fail_together(lambda: 3) == 3
    distributed.check_same({"a": 1})
    assert len(distributed.code_digest()) == 12
