"""The scripts that start a training: sound by static checks, and right where stubs play other programs."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch"), *LAUNCH.glob("env/*.sh")])
STARTERS = [path for path in SCRIPTS if path.parent == LAUNCH]
MANIFESTS = sorted([LAUNCH / "skypilot.yaml", *LAUNCH.glob("kubernetes/*.yaml")])


def tool(name):
    """A linter of the environment, or a skipped test."""
    path = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    return path or pytest.skip(f"{name} is not installed")


def run(command, path=None, **env):
    """Runs a script to its end; `path` holds stubs that go before the system's programs."""
    bin_path = f"{path or ''}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": "", **env, "PATH": bin_path},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def stub(tmp_path):
    """A function that puts a bash script in the place of a program; returns the directory of all stubs."""
    directory = tmp_path / "bin"
    directory.mkdir()

    def write(name, body):
        path = directory / name
        # The scripts' own small uses of Python stay.
        real = f'[[ ${{1:-}} != -c ]] || exec "{sys.executable}" "$@"\n' if name == "python" else ""
        path.write_text(f"#!/usr/bin/env bash\n{real}{body}\n")
        path.chmod(0o755)
        return directory

    return write


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_can_be_called(path):
    subprocess.run(["bash", "-n", path], check=True)
    assert path.parent.name == "env" or os.access(path, os.X_OK)


def test_shellcheck():
    done = run([tool("shellcheck"), *SCRIPTS])
    assert done.returncode == 0, done.stdout


def test_hadolint():
    done = run([tool("hadolint"), *LAUNCH.glob("Dockerfile.*")])
    assert done.returncode == 0 and not done.stdout, done.stdout


def test_one_script_starts_the_training_and_all_others_call_it():
    """So that all of them take the same arguments, and signals arrive."""
    assert (LAUNCH / "local.sh").read_text().endswith('exec python -m regvq_jax.main "$@"\n')
    for path in [*STARTERS, LAUNCH / "skypilot.yaml", *LAUNCH.glob("Dockerfile.*")]:
        text = path.read_text()
        assert path.name == "local.sh" or "python -m regvq_jax" not in text
        assert "launch/local.sh" in text or path.name == "tpu_vm.sh"


def test_the_readme_names_every_file():
    text = (LAUNCH / "README.md").read_text()
    missing = [path.name for path in LAUNCH.rglob("*.*") if path.is_file() and path.name not in text]
    assert not [name for name in missing if not name.endswith((".pyc", "README.md"))]


def test_dockerfiles_copy_what_is_there_and_hand_signals_on():
    for extra, path in (("cuda", LAUNCH / "Dockerfile.gpu"), ("tpu", LAUNCH / "Dockerfile.tpu")):
        text = path.read_text()
        assert 'ENTRYPOINT ["launch/local.sh"]' in text and f"'.[{extra}]'" in text
        for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE):
            assert all((ROOT / source).exists() for source in line.split()[:-1])


def test_local_passes_arguments_and_flags_on(stub):
    path = stub("python", 'printf "%s|" "$@" "$XLA_FLAGS" "$JAX_PLATFORMS"')
    done = run([LAUNCH / "local.sh", "--config=a b", "--workdir=c"], path, JAX_PLATFORMS="")
    assert done.stdout == "-m|regvq_jax.main|--config=a b|--workdir=c|||"
    env = {"REGVQ_ENV": "gpu", "XLA_FLAGS": "--mine", "JAX_PLATFORMS": ""}
    done = run([LAUNCH / "local.sh", "preflight", "--data=d"], path, **env)
    script, data, flags, platforms = done.stdout.split("|")[:4]
    assert (script, data, platforms) == ("launch/preflight.py", "--data=d", "cuda,cpu")
    assert flags.split() == ["--xla_gpu_enable_latency_hiding_scheduler=true", "--mine"]


def test_xla_knows_the_flags():
    """An unknown one ends the process; XLA for CPU knows those for GPU, too."""
    code = "import jax; print(jax.device_count(), jax.default_backend())"
    command = f"source launch/env/gpu.sh; unset JAX_PLATFORMS; source launch/env/cpu.sh; python -c '{code}'"
    done = run(["bash", "-euc", command], REGVQ_CPU_DEVICES="3")
    assert done.stdout == "3 cpu\n", done.stderr


class TestLocalMultiprocess:
    SCRIPT = LAUNCH / "local_multiprocess.sh"

    def test_processes_find_each_other(self, stub, tmp_path):
        said = '"$REGVQ_COORDINATOR $REGVQ_NUM_PROCESSES $JAX_LOCAL_DEVICE_IDS $*"'
        path = stub("python", f"echo {said} > $OUT/$REGVQ_PROCESS_ID")
        done = run([self.SCRIPT, "3", "--config=c"], path, OUT=str(tmp_path))
        assert done.returncode == 0
        said = [(tmp_path / str(index)).read_text().split() for index in range(3)]
        assert len({coordinator for coordinator, *_ in said}) == 1
        assert [rest for _, *rest in said] == [
            ["3", str(index), "-m", "regvq_jax.main", "--config=c"] for index in range(3)
        ]

    @pytest.mark.parametrize(("codes", "expected"), [("0 42 42", 42), ("42 2 42", 2), ("42 0 137", 137)])
    def test_runs_again_only_if_nobody_ended_worse(self, stub, codes, expected):
        path = stub("python", f"codes=({codes}); i=$REGVQ_PROCESS_ID; sleep 0.$i; exit ${{codes[i]}}")
        assert run([self.SCRIPT, "3", "--config=c"], path).returncode == expected

    def test_a_dead_peer_ends_the_others(self, stub):
        # One that waits for its peer and does not hear SIGTERM.
        wait = "for _ in {1..20}; do sleep 1; done"
        path = stub("python", f'trap "" TERM; [[ $REGVQ_PROCESS_ID == 0 ]] || kill -9 $$; {wait}')
        start = time.monotonic()
        done = run([self.SCRIPT, "2", "--config=c"], path, REGVQ_GRACE_SECONDS="1")
        assert done.returncode == 137 and "process 1 ended with 137" in done.stderr
        assert time.monotonic() - start < 10

    def test_sigterm_reaches_all(self, stub, tmp_path):
        wait = "for _ in {1..200}; do sleep 0.1; done"
        path = stub("python", f'trap "exit 42" TERM; touch $OUT/$REGVQ_PROCESS_ID; {wait}')
        process = subprocess.Popen(
            [self.SCRIPT, "2", "--config=c"],
            env={**os.environ, "PATH": f"{path}:{os.environ['PATH']}", "OUT": str(tmp_path)},
        )
        while not all((tmp_path / str(index)).exists() for index in range(2)):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 42


class TestSlurm:
    def submit(self, stub, tmp_path, srun="", **env):
        """Runs the batch script as SLURM would, with 2 nodes of 4 GPUs; returns (code, calls)."""
        log = tmp_path / "calls"
        log.write_text("")
        stub("scontrol", f'echo "scontrol $*" >> {log}')
        path = stub("srun", f'echo "srun ${{JAX_LOCAL_DEVICE_IDS:-}} $*" >> {log}; {srun}')
        slurm = {
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_GPUS_ON_NODE": "4",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_CPUS_ON_NODE": "32",
            "SLURM_JOB_ID": "7",
        }
        copy = shutil.copy(LAUNCH / "slurm.sbatch", tmp_path / "slurm_script")
        done = run(["bash", copy, "--config=c"], path, **slurm, **env)
        return done.returncode, log.read_text().splitlines()

    def test_one_process_a_gpu_or_a_node(self, stub, tmp_path):
        code, (call,) = self.submit(stub, tmp_path)
        assert code == 0 and call.startswith("srun  --ntasks=8 --ntasks-per-node=4 --cpus-per-task=8 ")
        assert call.endswith("launch/local.sh --config=c --distributed")
        code, (call,) = self.submit(stub, tmp_path, REGVQ_PROCESS_PER="node")
        assert call.startswith("srun 0,1,2,3 --ntasks=2 --ntasks-per-node=1 --cpus-per-task=32 ")
        assert self.submit(stub, tmp_path, REGVQ_PROCESS_PER="rack")[0] == 2

    def test_requeues_what_was_saved_unless_it_was_cancelled(self, stub, tmp_path):
        assert self.submit(stub, tmp_path, "exit 42")[1][1:] == ["scontrol requeue 7"]
        code, calls = self.submit(stub, tmp_path, "exit 2")
        assert code == 2 and len(calls) == 1
        # scancel signals the batch script, too.
        code, calls = self.submit(stub, tmp_path, "kill -TERM $PPID; exit 42")
        assert code == 42 and len(calls) == 1

    def test_sigterm_comes_in_time(self):
        text = (LAUNCH / "slurm.sbatch").read_text()
        options = re.findall(r"^#SBATCH (\S+)", text, re.MULTILINE)
        assert {"--signal=TERM@120", "--requeue", "--open-mode=append"} <= set(options)
        # Directives after the first command are ignored.
        assert text.index("set -euo") > text.rindex("#SBATCH")


class TestTpuVm:
    """Two workers whose homes are directories here; gcloud is a stub that runs their commands."""

    GCLOUD = r"""
        echo "$4 ${*:5}" >> $CLOUD/calls
        case $4 in
        describe) [[ -s $CLOUD/state ]] && cat $CLOUD/state ;;
        create) echo READY > $CLOUD/state ;;
        delete) rm $CLOUD/state ;;
        ssh)
            for argument in "$@"; do [[ $argument == --command=* ]] && command=${argument#--command=}; done
            [[ $command != *install* && $command != *"tar -x"* ]] || exit 0
            for worker in 0 1; do (export HOME=$CLOUD/$worker; cd $HOME && bash -c "$command") || exit; done
            ;;
        esac
    """

    def cloud(self, stub, tmp_path, python, state="READY"):
        """Makes the workers, whose training is `python`; returns a function that calls the script."""
        for worker in range(2):
            venv = tmp_path / str(worker) / "regvq_venv" / "bin"
            venv.mkdir(parents=True)
            (venv / "python").write_text(f"#!/usr/bin/env bash\n{python}\n")
            (venv / "python").chmod(0o755)
            (tmp_path / str(worker) / "regvq_jax").symlink_to(ROOT)
        (tmp_path / "state").write_text(state)
        path = stub("gcloud", self.GCLOUD)
        env = {"NAME": "n", "ZONE": "z", "TYPE": "v6e-8", "RUNTIME": "r", "TMPDIR": str(tmp_path)}

        def call(*command):
            env["CLOUD"] = str(tmp_path)
            done = run([LAUNCH / "tpu_vm.sh", *command], path, POLL_SECONDS="0.2", TRIES="3", **env)
            calls = (tmp_path / "calls").read_text().splitlines()
            return done, [line for line in calls if not line.startswith("describe")]

        return call

    def test_runs_again_after_42(self, stub, tmp_path):
        # The first life of each worker ends with 42, the second with 0.
        call = self.cloud(stub, tmp_path, 'echo "$*" >> ~/lives; [[ $(wc -l < ~/lives) == 2 ]] || exit 42')
        done, _ = call("run", "--config=a b")
        assert done.returncode == 0, done.stderr
        assert "ended: 42\n" in done.stdout and done.stdout.endswith("ended: 0\n")
        for worker in "01":
            lives = (tmp_path / worker / "lives").read_text().splitlines()
            assert lives == ["-m regvq_jax.main --config=a b --distributed"] * 2

    def test_a_mistake_is_not_tried_again(self, stub, tmp_path):
        call = self.cloud(stub, tmp_path, 'echo "error: no such config"; [[ $HOME != */1 ]] || exit 2')
        done, _ = call("run", "--config=c")
        assert done.returncode == 2 and "error: no such config" in done.stdout

    def test_a_preempted_slice_is_made_anew(self, stub, tmp_path):
        done, calls = self.cloud(stub, tmp_path, "exit 0", "PREEMPTED")("run", "--config=c")
        assert done.returncode == 0, done.stderr
        assert [line.split()[0] for line in calls[:3]] == ["delete", "create", "scp"]
        assert "--worker=all" in calls[2] and "--accelerator-type=v6e-8" in calls[1]

    def test_stop_lets_the_training_save_and_is_final(self, stub, tmp_path):
        wait = "for _ in {1..200}; do sleep 0.1; done"
        call = self.cloud(stub, tmp_path, f'trap "touch ~/saved; exit 42" TERM; {wait}')
        worker = {**os.environ, "HOME": str(tmp_path / "0")}
        subprocess.run([LAUNCH / "tpu_worker.sh", "start", "--config=c"], env=worker, check=True)
        done, _ = call("status")
        assert done.stdout == "regvq: running\nregvq: absent\n"
        call("stop")
        assert (tmp_path / "0" / "saved").exists()
        done, _ = call("status")
        assert done.stdout == "regvq: stopped\nregvq: absent\n"


def test_xpk_gets_a_command_that_restarts_and_hears_sigterm(stub):
    path = stub("xpk", 'printf "%s\\n" "$@"')
    env = {"CLUSTER": "c", "TPU_TYPE": "v6e-16", "IMAGE": "i:tpu"}
    done = run([LAUNCH / "xpk.sh", "name", "--config=a b"], path, **env)
    *options, command = done.stdout.splitlines()
    assert options[:2] == ["workload", "create"] and "--workload=name" in options
    assert int(dict(o.split("=") for o in options[2:])["--max-restarts"]) > 0
    assert command == "--command=REGVQ_ENV=tpu exec launch/local.sh --config=a\\ b --distributed"


def documents():
    """{(kind, file name): document} of all manifests."""
    found = {}
    for path in MANIFESTS:
        for document in yaml.safe_load_all(path.read_text()):
            found[document.get("kind", "SkyPilot"), path.name] = document
    return found


class TestManifests:
    def test_pods_find_each_other(self):
        found = documents()
        jobset, service = found["JobSet", "jobset.yaml"], found["Service", "service.yaml"]
        name, (job,) = jobset["metadata"]["name"], jobset["spec"]["replicatedJobs"]
        subdomain = jobset["spec"]["network"]["subdomain"]
        assert service["metadata"]["name"] == subdomain and service["spec"]["clusterIP"] == "None"
        assert service["spec"]["selector"] == {"jobset.sigs.k8s.io/jobset-name": name}
        spec = job["template"]["spec"]
        pod = spec["template"]["spec"]
        (container,) = pod["containers"]
        env = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert env["REGVQ_COORDINATOR"].rpartition(":")[0] == f"{name}-{job['name']}-0-0.{subdomain}"
        assert spec["completions"] == spec["parallelism"] == int(env["REGVQ_NUM_PROCESSES"])
        assert spec["completionMode"] == "Indexed" and job["replicas"] == 1
        index = next(entry for entry in container["env"] if entry["name"] == "REGVQ_PROCESS_ID")
        assert "job-completion-index" in index["valueFrom"]["fieldRef"]["fieldPath"]
        gpus = container["resources"]["limits"]["nvidia.com/gpu"]
        assert env["JAX_LOCAL_DEVICE_IDS"] == ",".join(map(str, range(gpus)))
        assert pod["serviceAccountName"] == found["ServiceAccount", "rbac.yaml"]["metadata"]["name"]

    def test_42_begins_again_and_2_does_not(self):
        spec = documents()["JobSet", "jobset.yaml"]["spec"]
        job = spec["replicatedJobs"][0]["template"]["spec"]
        assert job["backoffLimit"] == 0 and job["template"]["spec"]["restartPolicy"] == "Never"
        (container,) = job["template"]["spec"]["containers"]
        codes = [rule["onExitCodes"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
        assert [code["values"] for code in codes] == [[42], [2]]
        assert all(code["containerName"] == container["name"] for code in codes)

        def action(code):
            # As Kubernetes words it and JobSet matches it.
            message = f"Container train for pod default/p failed with exit code {code} matching FailJob rule"
            for rule in spec["failurePolicy"]["rules"]:
                patterns = rule.get("onJobFailureMessagePatterns", [""])
                if any(re.search(pattern, message) for pattern in patterns):
                    return rule["action"]

        assert action(42) == "RestartJobSetAndIgnoreMaxRestarts" and action(2) == "FailJobSet"

    def test_rights_are_those_that_jax_needs_to_look(self):
        role = documents()["Role", "rbac.yaml"]
        granted = {(*rule["resources"], *rule["verbs"]) for rule in role["rules"]}
        assert granted == {("pods", "services", "list"), ("jobs", "get")}

    def test_skypilot_comes_back_after_42(self):
        task = documents()["SkyPilot", "skypilot.yaml"]
        assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [42]
        for name in ("REGVQ_COORDINATOR", "REGVQ_NUM_PROCESSES", "REGVQ_PROCESS_ID"):
            assert name in task["run"]
        subprocess.run(["bash", "-nc", task["setup"] + task["run"]], check=True)
        # What it mounts is where the run is.
        (mount,) = task["file_mounts"]
        assert f"--workdir={mount}/" in json.dumps(task["envs"])
