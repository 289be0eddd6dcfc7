"""SIGTERM to one of two real processes, in the middle of what has no steps: both stop there, and go on."""

import pytest

from regvq_jax import preemption
from regvq_jax.preemption import PreemptionSignal, stop_if_requested
from tests.processes import arguments, finish, start_all, write_images

# `python -m regvq_jax.main`, whose second process gets SIGTERM where `function` of `module` is called.
INTERRUPTED = """
import os, signal, sys, time
import jax
from regvq_jax import main
from regvq_jax.{package} import {module}
from tests import processes
function = {module}.{function}
def interrupted(*args, **kwargs):
    if jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)  # It is noticed within a second.
    return function(*args, **kwargs)
{module}.{function} = interrupted
sys.argv = ["regvq_jax.main", *{args}]
processes.keep_all_compiled()
main.run()
"""


# What is interrupted (package, module, function), in the order of a run, and what is said of it.
PLACES = {
    ("evaluate", "reconstruction", "stop_if_requested"): "the evaluation will begin again",
    ("data", "token_shards", "pack_record"): "the complete shards are saved",
    ("evaluate", "drawn", "image_path"): "what was drawn is kept",
}


def test_one_run_ended_between_steps_again_and_again(tmp_path):
    args = arguments(
        write_images(tmp_path / "images"),
        tmp_path / "run",
        "--config.train.batch_size=2",
        "--config.train.accumulation_slices=1",
        "--config.prior.train.batch_size=2",
        "--config.prior.train.accumulation_slices=1",
        "--config.tokens.batch_size=2",
        "--config.tokens.shard_size=4",
    )
    for (package, module, function), words in PLACES.items():
        code = INTERRUPTED.format(package=package, module=module, function=function, args=args[2:])
        for status, output in finish(start_all(2, ["-c", code]), 240):
            assert status == 42 and words in output, output
    for status, output in finish(start_all(2, args), 240):
        assert status == 0, output


def test_processes_that_asked_unequally_often_agree_again(monkeypatch):
    monkeypatch.setattr(preemption.jax, "process_count", lambda: 2)
    monkeypatch.setattr(preemption.multihost_utils, "process_allgather", lambda own: [own, 7])
    seen = []
    monkeypatch.setattr(
        preemption.multihost_utils, "reached_preemption_sync_point", lambda n: seen.append(n) or n == 9
    )
    monkeypatch.setattr(PreemptionSignal, "_asked", 0)
    monkeypatch.setattr(PreemptionSignal, "_agreed", False)
    with PreemptionSignal() as signal:
        assert not signal.stop_requested()
        signal.align()
        assert not signal.stop_requested()
        # Asked by what knows of no signal, too; and whoever asks later is told the same.
        with pytest.raises(preemption.Preempted, match="here"):
            stop_if_requested("here")
        assert signal.stop_requested()
    assert seen == [1, 8, 9, 10]
    stop_if_requested("nobody listens")
