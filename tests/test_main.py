"""The command line: the whole road, going on after a kill, and one sentence for each mistake."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from regvq_jax import main
from regvq_jax.files import read_json
from regvq_jax.preemption import Preempted

TINY = "--config=configs/quickstart.py:tiny"
ROOT = Path(__file__).parents[1]


def last_state(stage_directory):
    """Every array of the newest checkpoint, by path."""
    step = max(int(p.name) for p in (stage_directory / "checkpoints").iterdir() if p.name.isdigit())
    state = ocp.PyTreeCheckpointer().restore(stage_directory / "checkpoints" / str(step) / "state")
    return step, {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree.leaves_with_path(state)}


def test_the_whole_road(tiny_run):
    workdir, output = tiny_run
    for name in ("reconstructions.png", "samples.png", "codebook.png"):
        assert (workdir / name).stat().st_size > 1000
    for stage in ("tokenizer", "prior"):
        assert (workdir / stage / "metrics.jsonl").exists()
        assert list((workdir / stage).glob("events.out.tfevents*"))
    for words in ("codebook usage", "PSNR", "bits a token", "conditions shuffled", "samples.png"):
        assert words in output
    assert read_json(workdir / "tokens" / "train" / "meta.json")["num_examples"] == 64


def test_a_second_call_says_that_all_is_done(run_main, tiny_run):
    workdir, output = tiny_run
    again = run_main(TINY, f"--workdir={workdir}")
    assert again.returncode == 0
    assert "tokenizer is done already" in again.stderr and "prior is done already" in again.stderr
    assert again.stdout == output


def test_kill_9_in_each_stage_changes_nothing(run_main, tiny_run, tmp_path):
    """Killed once in every stage and started again: the final states of an unbroken run, to the bit."""
    unbroken, _ = tiny_run
    workdir = tmp_path / "run"
    # What shows that a stage is under way, and what shows that it is over.
    stages = {
        "tokenizer": ("tokenizer/checkpoints/4", "tokenizer/result.json"),
        "tokens": ("tokens/train", "tokens/heldout/meta.json"),
        "prior": ("prior/checkpoints/4", "prior/result.json"),
    }
    for stage, (under_way, over) in stages.items():
        process = subprocess.Popen(
            [sys.executable, "-m", "regvq_jax.main", TINY, f"--workdir={workdir}"],
            cwd=ROOT,
            env={**os.environ, "XLA_FLAGS": ""},
            stderr=subprocess.PIPE,
        )
        while not (workdir / under_way).exists():
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (workdir / over).exists(), f"{stage} ended before it could be killed"
    done = run_main(TINY, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    for stage in ("tokenizer", "prior"):
        (step, state), (other_step, other) = (last_state(d / stage) for d in (workdir, unbroken))
        assert step == other_step == 8 and state.keys() == other.keys()
        for name in state:
            np.testing.assert_array_equal(state[name], other[name], err_msg=name)
    for figure in ("eval/prior/loss", "eval/prior/loss_shuffled"):
        values = [read_json(d / "prior" / "result.json")[figure] for d in (workdir, unbroken)]
        assert values[0] == values[1]


def test_a_folder_without_captions_gets_an_unconditional_prior(run_main, image_folder, tmp_path):
    done = run_main(
        "--config=configs/folder.py:tiny",
        f"--config.data.source=folder:{image_folder}",
        f"--workdir={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "samples.png").exists() and "shuffled" not in done.stdout


# (arguments, words of the one sentence)
MISTAKES = {
    "no config": (["--workdir=W"], "--config is missing"),
    "no workdir": ([TINY], "--workdir is missing"),
    "unknown config file": (
        ["--config=configs/quikstart.py", "--workdir=W"],
        "does not exist.*quickstart.py",
    ),
    "unknown field": ([TINY, "--workdir=W", "--config.optim.lrr=1"], 'Did you mean "lr"'),
    "wrong type": ([TINY, "--workdir=W", "--config.optim.lr=fast"], "config.optim.lr.*fast"),
    "unknown choice": (
        ["--config=configs/quickstart.py:tinny", "--workdir=W"],
        'Did you mean "tiny"',
    ),
    "unknown flag": ([TINY, "--workdir=W", "--stages=prior"], "stage"),
    "unknown stage": ([TINY, "--workdir=W", "--stage=priors"], 'Did you mean "prior"'),
    "missing predecessor": (
        [TINY, "--workdir=W", "--stage=prior"],
        'stage "tokenizer" of .* is not finished',
    ),
    "unknown source": ([TINY, "--workdir=W", "--config.data.source=emojis"], "emoji"),
    "folder without images": (
        [TINY, "--workdir=W", "--config.data.source=folder:W"],
        "has 0 images",
    ),
    "batch size": ([TINY, "--workdir=W", "--config.train.batch_size=0"], "batch_size=0"),
    "image size": ([TINY, "--workdir=W", "--config.data.image_size=30"], "multiple of 4"),
    "mesh": ([TINY, "--workdir=W", "--config.mesh.fsdp=3"], "mesh.fsdp=3 does not fit 1 device"),
    "workdir in no storage": ([TINY, "--workdir=nonsense://bucket/run"], "in no storage"),
    "workdir is a file": ([TINY, "--workdir=W/file"], "cannot be made"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_sentence(run_main, name, tmp_path):
    arguments, words = MISTAKES[name]
    (tmp_path / "file").write_text("")
    done = run_main(*(argument.replace("W", str(tmp_path)) for argument in arguments))
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert lines[-1].startswith("error: ") and re.search(words, lines[-1]), done.stderr
    assert "Traceback" not in done.stderr


def test_another_config_leaves_the_workdir_alone(run_main, tiny_run):
    workdir, _ = tiny_run
    done = run_main(TINY, f"--workdir={workdir}", "--config.optim.lr=0.5")
    assert done.returncode == 2 and "optim.lr" in done.stderr and "0.5 now" in done.stderr


def test_help(run_main):
    done = run_main("--help")
    for words in ("--config", "--workdir", "--stage", "run the same command again"):
        assert words in done.stdout


def test_a_run_that_was_asked_to_end_says_run_me_again(monkeypatch, capsys):
    def preempted(*args, **kwargs):
        raise Preempted("tokenizer is saved at step 5")

    monkeypatch.setattr(main.app, "run", preempted)
    with pytest.raises(SystemExit) as ended:
        main.run()
    assert ended.value.code == 42
    assert "tokenizer is saved at step 5; run the same command to go on" in capsys.readouterr().err
