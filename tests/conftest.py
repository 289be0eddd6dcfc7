"""Eight fake devices, compiled programs kept between runs, and one tiny config for all."""

import os
import subprocess
import sys
from pathlib import Path

# Before jax starts. Programs that name no device run on the first, as on a machine with one.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Also for the processes that tests start. Compiling is most of the suite's time.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "compilation")
)
os.environ.setdefault("REGVQ_JAX_CACHE", str(Path(__file__).parents[1] / ".pytest_cache" / "regvq_jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Several workers with several threads each wait for one another more than they work.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax  # noqa: E402
import pytest  # noqa: E402

from configs import quickstart  # noqa: E402


@pytest.fixture
def tiny_config():
    """The quickstart's smallest form; a fresh copy for each test."""
    return quickstart.get_config("tiny")


@pytest.fixture(scope="session")
def one_device_mesh():
    """A mesh of the first fake device."""
    from regvq_jax import sharding

    return sharding.make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="session")
def run_main():
    """A function that runs `python -m regvq_jax.main ARGS` on one device, from the project's root."""

    def run(*args: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "regvq_jax.main", *args],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "XLA_FLAGS": ""},
            capture_output=True,
            text=True,
            timeout=600,
        )

    return run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, run_main):
    """(workdir, output) of one whole run of the quickstart's tiny form."""
    workdir = tmp_path_factory.mktemp("tiny") / "run"
    done = run_main("--config=configs/quickstart.py:tiny", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """Forty small photographs of noise, without captions."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(40):
        pixels = rng.integers(0, 256, (40, 36 + i % 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return folder
