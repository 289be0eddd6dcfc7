"""What processes owe to each other; with real ones, which find each other over the loopback."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regvq_jax import distributed
from regvq_jax.errors import UserError
from regvq_jax.files import read_json
from regvq_jax.metric_writers import read_jsonl

ROOT = Path(__file__).parents[1]


def start_all(count, args, env=(), **options):
    """`python ARGS` in `count` processes that know of each other."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {**os.environ, "XLA_FLAGS": "", distributed.COORDINATOR: f"127.0.0.1:{port}", **dict(env)}
    shared[distributed.NUM_PROCESSES] = str(count)
    return [
        subprocess.Popen(
            [sys.executable, *(args(index) if callable(args) else args)],
            cwd=ROOT,
            env={**shared, distributed.PROCESS_ID: str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )
        for index in range(count)
    ]


def finish(processes, seconds=600):
    """[(exit code, output)] of all; none is left behind."""
    try:
        return [(process.wait(seconds), process.stdout.read()) for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of 24 training and 16 held-out images with captions."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 16)):
        (folder / split).mkdir()
        for i in range(count):
            coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((32, 32)).save(folder / split / f"{i:02d}.png")
            (folder / split / f"{i:02d}.txt").write_text(f"picture {i}")
    return folder


def arguments(images, workdir, *more):
    return [
        *("-m", "regvq_jax.main", "--config=configs/quickstart.py:tiny", f"--workdir={workdir}"),
        *(f"--config.data.source=folder:{images}", "--config.sample.captions=()"),
        "--config.evals.reconstruction.protocols=('efficientnet_lite0',)",
        "--config.prior.evals.generation.protocols=('efficientnet_lite0',)",
        *more,
    ]


def test_two_processes_do_what_one_does(images, tmp_path):
    """Both stages, the token cache, evaluation, sampling; the same figures, the same images."""
    alone = subprocess.run(
        [sys.executable, *arguments(images, tmp_path / "one")],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert alone.returncode == 0, alone.stderr
    for code, output in finish(start_all(2, arguments(images, tmp_path / "two"))):
        assert code == 0, output
    for stage in ("tokenizer", "prior"):
        one, two = (read_json(tmp_path / name / stage / "result.json") for name in ("one", "two"))
        assert one.keys() == two.keys()
        for tag, value in one.items():
            if tag.startswith(("eval/", "codebook/")):
                assert two[tag] == pytest.approx(value, rel=2e-2, abs=2e-3), (stage, tag)
    first, second = (
        next(line for line in read_jsonl(tmp_path / name / "tokenizer" / "metrics.jsonl"))["train/loss"]
        for name in ("one", "two")
    )
    # The first step before rounding has grown.
    assert second == pytest.approx(first, rel=1e-5)
    assert [path.name for path in (tmp_path / "two" / "results").iterdir()]


def test_processes_that_differ_end_together(images, tmp_path):
    different = lambda index: arguments(images, tmp_path / "run", f"--config.optim.lr={1e-3 + index * 1e-3}")
    for code, output in finish(start_all(2, different), 120):
        assert code == 2, output
        assert "Processes 0 and 1 were not started alike; they differ in optim.lr (0.001 and 0.002)" in output
    assert not (tmp_path / "run").exists()


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

    (one, said), (two, output) = finish(start_all(2, args, env={"REGVQ_HEARTBEAT_SECONDS": "10"}), 180)
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
sys.argv = ["regvq_jax.main", *{args}]
main.run()
"""


def test_a_dead_peer_ends_the_others(images, tmp_path):
    processes = start_all(
        2,
        arguments(images, tmp_path / "run", "--config.train.total_steps=100000", "--stage=tokenizer"),
        env={"REGVQ_HEARTBEAT_SECONDS": "10"},
    )
    try:
        wait_for(tmp_path / "run" / "tokenizer" / "checkpoints" / "4", processes)
        processes[1].send_signal(signal.SIGKILL)
        assert processes[0].wait(90) != 0
    finally:
        finish(processes)


def test_sigterm_to_one_process_saves_in_all(images, tmp_path):
    args = arguments(images, tmp_path / "run", "--config.train.total_steps=100000", "--stage=tokenizer")
    processes = start_all(2, args)
    try:
        wait_for(tmp_path / "run" / "tokenizer" / "checkpoints" / "4", processes)
        processes[1].send_signal(signal.SIGTERM)
        for code, output in finish(processes, 120):
            assert code == 42, output
            assert "ended by SIGTERM: tokenizer is saved at step" in output
    finally:
        finish(processes)


def wait_for(path, processes, seconds=240):
    """Until a file is there, and all processes are still alive."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        for process in processes:
            assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.2)


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
