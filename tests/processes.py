"""Real processes on this machine, which find each other over the loopback, and a run small enough for them.

`python -m tests.processes ARGS` is `python -m regvq_jax.main ARGS`; it keeps the programs of all processes.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from regvq_jax import distributed

ROOT = Path(__file__).parents[1]
# As little as shows what is to be shown, with all that a state can hold: both players, their statistics, and
# gradients of several slices. Tests share it, and its programs: a changed field can mean to compile anew.
SMALL = (
    "--config=configs/quickstart.py:tiny",
    "--config.sample.captions=()",
    "--config.data.image_size=16",
    "--config.model.multipliers=(1,1)",
    "--config.model.middle_attention=False",
    "--config.loss.lecam_weight=0.1",
    "--config.train.accumulation_slices=2",
    "--config.train.checkpoint_every_steps=2",
    "--config.evals.reconstruction.every_steps=8",
    "--config.prior.train.accumulation_slices=2",
    "--config.prior.train.checkpoint_every_steps=2",
    "--config.prior.evals.prior_loss.every_steps=8",
)
PROTOCOLS = (
    "--config.evals.reconstruction.protocols=('efficientnet_lite0',)",
    "--config.prior.evals.generation.protocols=('efficientnet_lite0',)",
)


def write_images(folder: Path) -> Path:
    """Writes 24 training and 16 held-out images with captions; returns the folder."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 16)):
        (folder / split).mkdir(parents=True)
        for i in range(count):
            coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((32, 32)).save(folder / split / f"{i:02d}.png")
            (folder / split / f"{i:02d}.txt").write_text(f"picture {i}")
    return folder


def arguments(images: Path, workdir: Path, *more: str) -> list[str]:
    """Of the small run, for `start_all`."""
    source = f"--config.data.source=folder:{images}"
    return ["-m", "tests.processes", *SMALL, source, f"--workdir={workdir}", *more]


def start_all(
    count: int, args: Sequence[str] | Callable[[int], Sequence[str]], env: Mapping[str, str] = {}  # noqa: B006
) -> list[subprocess.Popen]:
    """`python ARGS` in processes of one device each that know of each other; one process knows of none.

    Args:
        count: of processes.
        args: of each, or a function of its index.
        env: more variables.
    """
    shared = {**os.environ, "XLA_FLAGS": "", **env}
    if count > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            shared[distributed.COORDINATOR] = f"127.0.0.1:{probe.getsockname()[1]}"
        shared[distributed.NUM_PROCESSES] = str(count)
    return [
        subprocess.Popen(
            [sys.executable, *(args(index) if callable(args) else args)],
            cwd=ROOT,
            env={**shared, distributed.PROCESS_ID: str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(count)
    ]


def finish(processes: list[subprocess.Popen], seconds: float = 600) -> list[tuple[int, str]]:
    """(exit code, output) of each; none is left behind."""
    try:
        return [(process.wait(seconds), process.stdout.read()) for process in processes]
    finally:
        for process in processes:
            process.kill()


def keep_all_compiled() -> None:
    """Lets every process write all that it compiles to the cache, as long as jax is built as it is.

    jax lets only the first; the others look for what it has written, but on CPUs under names of their own.
    """
    from jax._src import compiler
    from jax._src import distributed as state

    write = getattr(compiler, "_cache_write", None)
    if write is None:
        return

    def write_as_first(key, seconds, *args):
        own, state.global_state.process_id = state.global_state.process_id, 0
        try:
            write(key, max(seconds, 1.0), *args)  # Small ones are many.
        finally:
            state.global_state.process_id = own

    compiler._cache_write = write_as_first


if __name__ == "__main__":
    from regvq_jax import main

    keep_all_compiled()
    main.run()
