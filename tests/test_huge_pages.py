"""A command starts itself again in memory of huge pages, once, as the same process."""

import os
import subprocess
import sys

import pytest

from regvq_jax.huge_pages import TUNABLES

PROGRAM = f"""
import os, sys
from regvq_jax.huge_pages import start_anew_with_huge_pages
if "traced" in sys.argv:
    sys.settrace(print)
print("started", flush=True)
start_anew_with_huge_pages("program")
sys.settrace(None)
print(os.getpid(), os.environ.get("{TUNABLES}"), *sys.argv[1:])
"""


def run(tmp_path, *arguments, **environment):
    (tmp_path / "program.py").write_text(PROGRAM)
    plain = {name: value for name, value in os.environ.items() if name != TUNABLES}
    # Not by its path, as people call it, and with a flag of Python's own.
    process = subprocess.Popen(
        ["python", "-B", *arguments],
        executable=sys.executable,
        env={**plain, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{os.getcwd()}:{tmp_path}", **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    return process.pid, process.communicate()[0].splitlines()


@pytest.mark.skipif(sys.platform != "linux", reason="the setting is that of Linux' glibc")
def test_the_same_process_with_the_same_arguments(tmp_path):
    pid, lines = run(tmp_path, "-m", "program", "--a=1 2", "b")
    assert lines == ["started", "started", f"{pid} glibc.malloc.hugetlb=1 --a=1 2 b"]


@pytest.mark.parametrize("given", [{TUNABLES: ""}, {"JAX_PLATFORMS": "cuda"}])
def test_what_you_set_and_accelerators_are_left_alone(tmp_path, given):
    pid, lines = run(tmp_path, "-m", "program", **given)
    assert lines == ["started", f"{pid} {given.get(TUNABLES)}"]


@pytest.mark.parametrize("arguments", [("-m", "program", "traced"), ("-c", "import program", "-m")])
def test_debuggers_and_other_programs_are_not_started_again(tmp_path, arguments):
    lines = run(tmp_path, *arguments)[1]
    assert lines.count("started") == 1 and " None" in lines[-1]
