"""A command starts itself again in memory of huge pages, once, as the same process."""

import os
import subprocess
import sys

import pytest

from regvq_jax.huge_pages import TUNABLES

PROGRAM = f"""
import os, sys
from regvq_jax.huge_pages import start_anew_with_huge_pages
print("started", flush=True)
start_anew_with_huge_pages()
print(os.getpid(), os.environ.get("{TUNABLES}"), *sys.argv[1:])
"""


def run(tmp_path, **environment):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    plain = {name: value for name, value in os.environ.items() if name != TUNABLES}
    # Not by its path, as people call it, and with a flag of Python's own.
    process = subprocess.Popen(
        ["python", "-B", program, "--a=1 2", "b"],
        executable=sys.executable,
        env={**plain, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd(), **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    return process.pid, process.communicate()[0].splitlines()


@pytest.mark.skipif(sys.platform != "linux", reason="the setting is that of Linux' glibc")
def test_the_same_process_with_the_same_arguments(tmp_path):
    pid, lines = run(tmp_path)
    assert lines == ["started", "started", f"{pid} glibc.malloc.hugetlb=1 --a=1 2 b"]


@pytest.mark.parametrize("given", [{TUNABLES: ""}, {"JAX_PLATFORMS": "cuda"}])
def test_what_you_set_and_accelerators_are_left_alone(tmp_path, given):
    pid, lines = run(tmp_path, **given)
    assert lines == ["started", f"{pid} {given.get(TUNABLES)} --a=1 2 b"]
