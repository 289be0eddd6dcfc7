"""Whole runs of several real processes: what one does, to the end, whatever happens to one of them."""

import signal

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from regvq_jax.files import read_json
from regvq_jax.metric_writers import read_jsonl
from tests.processes import PROTOCOLS, arguments, finish, start_all, write_images


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("processes") / "images")


def run(images, workdir, count):
    """The workdir of a whole run."""
    for code, output in finish(start_all(count, arguments(images, workdir, *PROTOCOLS))):
        assert code == 0, output
    return workdir


@pytest.fixture(scope="module")
def of_two(images):
    return run(images, images.parent / "two", 2)


def assert_same_run(one, other):
    """The figures of the evaluations, and all of the first steps, before rounding has grown."""
    for stage in ("tokenizer", "prior"):
        first, second = (read_json(workdir / stage / "result.json") for workdir in (one, other))
        assert first.keys() == second.keys()
        for tag, value in first.items():
            if tag.startswith(("eval/", "codebook/")):
                assert second[tag] == pytest.approx(value, rel=2e-2, abs=2e-3), (stage, tag)
        first, second = (read_jsonl(workdir / stage / "metrics.jsonl")[0] for workdir in (one, other))
        assert first["step"] == second["step"] == 1 and first["optim/grad_norm"] > 0
        for tag, value in first.items():
            if tag.startswith(("train/", "optim/", "codebook/")):
                assert second[tag] == pytest.approx(value, rel=1e-4, abs=1e-6), (stage, tag)
    assert [path.name for path in (other / "results").iterdir()]


def test_two_processes_do_what_one_does(images, of_two):
    """Both stages, the token cache, evaluation, sampling: the same figures, losses and gradients."""
    assert_same_run(run(images, images.parent / "one", 1), of_two)


# `python -m regvq_jax.main`, whose second process gets a signal at a step of a stage.
INTERRUPTED = """
import os, signal, sys, time
import jax
from regvq_jax import loop, main
from tests import processes
def interrupted(trainer, batches, start, mesh, iterate=loop.iterate_batches):
    for step, batch in enumerate(iterate(trainer, batches, start, mesh), start):
        if (trainer.name, step, jax.process_index()) == ({stage!r}, {step}, 1):
            os.kill(os.getpid(), signal.{signal.name})
            time.sleep(1.5)  # SIGTERM is noticed within a second.
        yield batch
loop.iterate_batches = interrupted
sys.argv = ["regvq_jax.main", *{args}]
processes.keep_all_compiled()
main.run()
"""


def test_two_processes_go_on_to_the_bit(images, of_two, tmp_path):
    """One of them is asked to end in one stage and killed in the next; a whole run has the same states."""
    args = arguments(images, tmp_path / "run")[2:]

    def interrupt(stage, step, signal, seconds):
        code = INTERRUPTED.format(stage=stage, step=step, signal=signal, args=args)
        return finish(start_all(2, ["-c", code], {"REGVQ_HEARTBEAT_SECONDS": "5"}), seconds)

    # Both players have learned by then.
    for code, output in interrupt("tokenizer", 5, signal.SIGTERM, 240):
        assert code == 42 and "ended by SIGTERM: tokenizer is saved at step" in output, output
    assert not (tmp_path / "run" / "tokenizer" / "result.json").exists()

    (left, said), (killed, _) = interrupt("prior", 5, signal.SIGKILL, 240)
    assert "tokenizer: going on from step" in said and killed == -signal.SIGKILL, said
    assert left not in (0, 42), said  # It does not wait for the dead one.
    assert not (tmp_path / "run" / "prior" / "result.json").exists()

    (code, said), (other, output) = finish(start_all(2, arguments(images, tmp_path / "run")))
    assert code == other == 0 and "prior: going on from step" in said, said + output
    for stage in ("tokenizer", "prior"):
        unbroken, broken = (last_state(workdir / stage) for workdir in (of_two, tmp_path / "run"))
        jax.tree.map(np.testing.assert_array_equal, broken, unbroken)
        assert broken["step"] == 8
    assert "moving_logits" in last_state(of_two / "tokenizer")["statistics"]


def last_state(directory):
    """Every array of a stage's last checkpoint, by path."""
    path, checkpointer = directory / "checkpoints" / "8" / "state", ocp.PyTreeCheckpointer()
    # By default they would be put on the devices that they were saved from.
    names = checkpointer.metadata(path).item_metadata.tree
    args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), names)
    return checkpointer.restore(path, restore_args=args)
