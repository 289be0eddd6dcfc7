"""kill -9 at random moments, many during a save: no checkpoint is ever broken, no start is ever fresh.

    python tests/kill_at_random.py --kills=20 --workdir=/tmp/killed

Trains the quickstart's tiny tokenizer with a checkpoint at every step, kills and calls it again, and at
the end compares the whole train state with that of an unbroken run, bit for bit. Too slow for the suite.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from regvq_jax.checkpoint import Checkpoints  # noqa: E402
from regvq_jax.trainers import build  # noqa: E402
from regvq_jax.workdir import load_config  # noqa: E402


def command(workdir: Path, steps: int) -> list[str]:
    """The training's command."""
    return [
        *(sys.executable, "-m", "regvq_jax.main", "--config=configs/quickstart.py:tiny", "--stage=tokenizer"),
        *(f"--workdir={workdir}", f"--config.train.total_steps={steps}", "--config.train.log_every_steps=1"),
        *("--config.train.checkpoint_every_steps=1", f"--config.evals.reconstruction.every_steps={steps}"),
        *("--config.train.accumulation_slices=2", "--config.loss.lecam_weight=0.1"),
    ]


def newest(workdir: Path) -> int:
    """The step of the newest complete checkpoint, -1 without one."""
    steps = [int(p.name) for p in (workdir / "tokenizer" / "checkpoints").glob("*") if p.name.isdigit()]
    return max(steps, default=-1)


def final_state(workdir: Path):
    """The state in the newest checkpoint."""
    trainer = build.make_tokenizer_trainer(load_config(workdir))
    with Checkpoints(workdir / "tokenizer" / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.restore(jax.eval_shape(trainer.init, jax.random.key(0)))[0]


def main() -> None:
    """Runs it; ends with an error where anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--workdir", type=Path, required=True)
    args = parser.parse_args()
    shutil.rmtree(args.workdir, ignore_errors=True)
    whole, killed = args.workdir / "unbroken", args.workdir / "killed"
    subprocess.run(command(whole, args.steps), cwd=ROOT, check=True, capture_output=True)
    rng, kills, half_saved, before = random.Random(0), 0, 0, -1
    while True:
        log = (args.workdir / "log.txt").open("w")
        process = subprocess.Popen(command(killed, args.steps), cwd=ROOT, stdout=log, stderr=log)
        # Into the training, not into the imports: from the first new checkpoint on.
        while kills < args.kills and process.poll() is None and newest(killed) <= before:
            time.sleep(0.02)
        if kills < args.kills and process.poll() is None:
            time.sleep(rng.uniform(0.0, 0.7))
            os.kill(process.pid, signal.SIGKILL)
        code = process.wait()
        said = (args.workdir / "log.txt").read_text()
        if before >= 0:
            assert f"going on from step {before}" in said, said
        if code != -signal.SIGKILL:
            assert code == 0, said
            break
        kills += 1
        names = [p.name for p in (killed / "tokenizer" / "checkpoints").iterdir()]
        half_saved += any("tmp" in name for name in names)
        before = newest(killed)
        print(f"kill {kills}: newest complete checkpoint {before}", flush=True)
    jax.tree.map(np.testing.assert_array_equal, final_state(killed), final_state(whole))
    print(f"{kills} kills, {half_saved} during a save: the final state equals the unbroken one bit for bit")


if __name__ == "__main__":
    main()
