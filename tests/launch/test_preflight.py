"""What is looked at before a training: a real run of two processes, and each failure with its sentence."""

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from regvq_jax import distributed
from regvq_jax.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def preflight():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("preflight", ROOT / "launch" / "preflight.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def launch(*command):
    """Runs a script of launch/ with the environment's Python, one device a process."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["launch/" + command[0], *command[1:]],
        cwd=ROOT,
        env={**os.environ, "PATH": path, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_two_processes_pass(tmp_path):
    arguments = ("--data=emoji", "--devices=2", "--platform=cpu", "--mebibytes=1")
    done = launch("local_multiprocess.sh", "2", "preflight", f"--workdir={tmp_path / 'run'}", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    # Each check once, by the first process.
    lines = [line.split()[:2] for line in done.stdout.splitlines() if line[:4] in ("PASS", "FAIL")]
    checks = ["devices", "software", "clock", "all-reduce", "workdir", "workdir", "data"]
    assert lines == [["PASS", name] for name in checks]
    assert "2 process(es), 2 device(s): 2 x cpu" in done.stdout and "3 everywhere" in done.stdout
    assert not list((tmp_path / "run").iterdir())


def test_a_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    done = launch("local.sh", "preflight", f"--workdir={tmp_path / 'file' / 'run'}", "--mebibytes=1")
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert line.startswith("FAIL  workdir     process 0 on ")
    assert f"Cannot write {tmp_path}/file/run: Not a directory" in line
    assert "PASS  all-reduce" in done.stdout


def test_too_few_or_other_devices(preflight):
    assert "8 x cpu" in preflight.check_devices(8, "cpu")
    with pytest.raises(UserError, match=r"--devices=16 are expected and 8 are there \(8 x cpu\)"):
        preflight.check_devices(16, None)
    with pytest.raises(UserError, match="--platform=gpu is expected and 8 x cpu is there"):
        preflight.check_devices(None, "gpu")


def test_a_sum_is_looked_at_everywhere(preflight, monkeypatch):
    # 1 to 7 and 1 again.
    assert preflight.check_all_reduce(1, 0.0).startswith("29 everywhere; 1 MiB in ")
    with pytest.raises(UserError, match="where --min-bandwidth=1e.09 are expected"):
        preflight.check_all_reduce(1, 1e9)
    whole = jax.make_array_from_callback
    monkeypatch.setattr(jax, "make_array_from_callback", lambda *args: whole(*args).at[3, 5].add(0.5))
    with pytest.raises(UserError, match=r"has 29.5 where the sum is 29, in 1 of 262144 places"):
        preflight.check_all_reduce(1, 0.0)


def test_clocks(preflight, monkeypatch):
    assert preflight.check_clock(1.0) == "at most 0.000 s apart"
    # Another process whose clock is an hour ahead.
    monkeypatch.setattr(distributed, "share_text", lambda text: [text, text and repr(float(text) + 3600)])
    with pytest.raises(UserError, match=r"clocks are 3600.0 s apart, --max-skew=1 or more"):
        preflight.check_clock(1.0)


def test_a_disk_that_is_not_shared(preflight, monkeypatch, tmp_path):
    workdir = str(tmp_path / "run")
    preflight.write_probe(workdir, "token")
    preflight.read_probes(workdir, "token")
    with pytest.raises(UserError, match="What process 0 wrote to .* is not there"):
        preflight.read_probes(workdir, "of another call")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="What process 1 wrote to .* not one disk that all hosts share"):
        preflight.read_probes(workdir, "token")
    with pytest.raises(UserError, match="gs://bucket/run is a URL"):
        preflight.write_probe("gs://bucket/run", "token")
    preflight.remove_probe(workdir)
    preflight.remove_probe(workdir)
    assert not list(Path(workdir).iterdir())


def test_every_failure_has_a_line(preflight, monkeypatch, capfd):
    def share(mine):
        """What two other processes answer: one like this one, one that finds other data."""
        passed, found, host = json.loads(mine)
        return [mine, mine, json.dumps([passed, f"other {found}", "on far"])]

    monkeypatch.setattr(distributed, "share_text", share)
    check = functools.partial(preflight.run_check, "data", seconds=60)
    assert check(lambda: "9 elements")
    assert not check(lambda: "9 elements", alike=True)
    assert not check(lambda: 1 / 0)
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "PASS  data        9 elements"
    assert lines[1] == "FAIL  data        process 2 on far: other 9 elements"
    assert len(lines) == 5 and all("ZeroDivisionError: division by zero" in line for line in lines[2:])


def test_a_check_that_hangs_ends_the_process():
    code = (
        "import sys, time; sys.path.append('launch'); import preflight;"
        "preflight.run_check('disk', lambda: time.sleep(60), seconds=1)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert done.returncode == 1 and "Timeout (0:00:01)!" in done.stderr and "run_check" in done.stderr
