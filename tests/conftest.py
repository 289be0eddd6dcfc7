"""Eight fake devices, compiled programs kept between runs, and one tiny config for all."""

import os
from pathlib import Path

# Before jax starts. Programs that name no device run on the first, as on a machine with one.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Also for the processes that tests start. Compiling is most of the suite's time.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "compilation")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

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
