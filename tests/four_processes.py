"""Four real processes of one device each do what one does.

    python tests/four_processes.py --workdir=/tmp/four

First one step of every trainer, all terms of the whole batch on: losses, gradients and statistics.
Then both stages of the quickstart's tiny form: first steps, and the figures of the evaluations. Too slow for
the suite on two cores.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

import numpy as np

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.processes import finish, start_all, write_images  # noqa: E402
from tests.test_processes import assert_same_run, run  # noqa: E402

# Adam's first moments of what has no gradient, but for rounding.
NOTHING = 1e-7


def run_steps(count: int, file: Path) -> dict[str, np.ndarray]:
    """What `tests.one_step` finds with `count` processes."""
    for code, output in finish(start_all(count, ["-m", "tests.one_step", str(file)])):
        assert code == 0, output
    return dict(np.load(file))


def main() -> None:
    """Runs it; ends with an error where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    workdir = parser.parse_args().workdir
    shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir(parents=True)

    one, four = (run_steps(count, workdir / f"step_of_{count}.npz") for count in (1, 4))
    assert one.keys() == four.keys()
    largest = 0.0
    for name, value in one.items():
        scale = max(np.abs(value).max(), NOTHING)
        difference = np.abs(four[name] - value).max() / scale
        assert scale == NOTHING or difference < 1e-3, f"{name} differs by {difference:.1e} of {scale:.3g}"
        largest = max(largest, difference if scale > NOTHING else 0.0)
    print(f"one step: {len(one)} numbers and arrays, relative differences up to {largest:.1e}", flush=True)

    images = write_images(workdir / "images")
    assert_same_run(*(run(images, workdir / f"run_of_{count}", count) for count in (1, 4)))
    print("both stages: equal first steps, and evaluations within 2 %")


if __name__ == "__main__":
    main()
