"""Trains what a config describes, stage by stage, and goes on where an earlier call stopped.

    python -m regvq_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Any field of the config can be set from the command line, and a config may take a choice after a colon:

    python -m regvq_jax.main --config=configs/quickstart.py:tiny --config.optim.lr=1e-4 --workdir=runs/try

Exit codes: 0 done, 2 a mistake in the input (one sentence says which), 42 ended by SIGTERM with all saved:
run the same command again.
"""

from regvq_jax.huge_pages import start_anew_with_huge_pages

# Before the other imports, which take seconds and would be done twice.
if __name__ == "__main__":
    start_anew_with_huge_pages("regvq_jax.main")

import contextlib
import json
import logging
import sys
from collections.abc import Iterator

import jax
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from regvq_jax import config_file, distributed, dry_run, sharding, stages
from regvq_jax.command_line import DEFAULT_COMPILATION_CACHE, keep_compiled
from regvq_jax.distributed import SharedError, check_same, fail_together
from regvq_jax.errors import UserError
from regvq_jax.files import local_copy
from regvq_jax.mirror import Mirror
from regvq_jax.preemption import Preempted
from regvq_jax.progress import setup_logging
from regvq_jax.workdir import check_groups, lock_workdir, open_workdir

log = logging.getLogger("regvq_jax")
USER_ERROR, RUN_AGAIN = 2, 42
HELP_FLAGS = ("--help", "-h", "-help", "--helpshort", "--helpfull", "-?")
_CONFIG = config_flags.DEFINE_config_file("config", None, "Python file with get_config().")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory, or the URL of one in a bucket, for all that the run makes."
)
_STAGE = flags.DEFINE_string(
    "stage", None, f"Run only this stage: {', '.join(stages.STAGES)}. By default all of config.stages."
)
_COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache",
    DEFAULT_COMPILATION_CACHE,
    'Keeps compiled programs between runs; "" keeps none.',
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "Several processes, found in the environment of SLURM, Open MPI, Kubernetes or a TPU; elsewhere set "
    f"{distributed.COORDINATOR}=HOST:PORT, {distributed.NUM_PROCESSES} and {distributed.PROCESS_ID}.",
)
_PROFILE = flags.DEFINE_list(
    "profile", ["0", "0"], "FIRST,COUNT: traces COUNT steps of each training from step FIRST on."
)
_DRY_RUN = flags.DEFINE_string(
    "dry_run",
    None,
    "Trains nothing: compiles each training's step for so many fake devices, or for a TPU topology such as "
    "v5e:16x16, and prints its memory, FLOPs, collectives and largest batch.",
)
_DRY_RUN_MEMORY = flags.DEFINE_float("dry_run_memory", 80.0, "GiB of a device, for the largest batch.")
flags.register_validator(
    _PROFILE,
    lambda value: len(value) == 2 and all(part.isdigit() for part in value),
    message="must be two whole numbers, such as --profile=20,5",
)


def main(argv: list[str]) -> int:
    """Runs the stages; returns the exit code."""
    del argv
    if _DRY_RUN.value:
        prepare_config(_CONFIG.value)
        chosen = chosen_stages(_CONFIG.value)
        return dry_run.run(_CONFIG.value, _DRY_RUN.value, _DRY_RUN_MEMORY.value, chosen, _WORKDIR.value)
    distributed.start(_DISTRIBUTED.value)
    if jax.process_count() > 1:
        setup_logging(process_index=jax.process_index())
    keep_compiled(_COMPILATION_CACHE.value)
    config = _CONFIG.value
    fail_together(lambda: prepare_config(config))
    check_same(json.loads(config.to_json_best_effort()))
    with local_directory(_WORKDIR.value) as directory:
        workdir = fail_together(lambda: open_workdir(directory, config), lead_first=True)
        with lock_workdir(workdir):
            mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.get("tensor", 1))
            profile_steps = tuple(int(x) for x in _PROFILE.value)
            stages.run(config, workdir, mesh, chosen_stages(config), profile_steps=profile_steps)
    return 0


def chosen_stages(config: ConfigDict) -> tuple[str, ...]:
    """The stages to run: that of --stage, or all of the config."""
    return (_STAGE.value,) if _STAGE.value else tuple(config.stages)


def prepare_config(config: ConfigDict) -> None:
    """Checks a config's groups, and makes the path of its tokenizer absolute, in place.

    Raises:
        UserError: a group is missing, or there is no such tokenizer.
    """
    check_groups(config, "The config file")
    if config.tokenizer:
        # The run remembers it, wherever it is called from.
        path = local_copy(config.tokenizer).absolute()
        if not path.is_file():
            raise UserError(
                f"config.tokenizer={config.tokenizer} is no file; give the path of a tokenizer file."
            )
        with config.unlocked():
            config.tokenizer = str(path)


@contextlib.contextmanager
def local_directory(workdir: str) -> Iterator[str]:
    """The workdir on this machine: itself, or, where it is a URL, a directory that the bucket follows."""
    if "://" not in workdir:
        yield workdir
        return
    if jax.process_count() > 1:
        raise UserError(
            f"--workdir={workdir} is a URL, which a run of one process can have: for {jax.process_count()} "
            "processes name a disk that they share, or a bucket mounted as one (gcsfuse, mountpoint-s3)."
        )
    with Mirror(workdir) as mirror:
        log.info("works in %s, which %s follows", mirror.local, workdir)
        yield str(mirror.local)
    log.info("all of it is in %s", workdir)


def parse_flags(argv: list[str]) -> list[str]:
    """absl's flags, with one sentence for each mistake."""
    wants_help = any(flag in argv for flag in HELP_FLAGS)
    if not wants_help:
        spec = config_file.find_spec(argv)
        if not spec:
            raise UserError(
                "--config is missing: name a config file, such as --config=configs/quickstart.py."
            )
        config_file.check_config_file(spec)
    rest = config_file.parse_flags(flags.FLAGS, argv)
    if len(rest) > 1:
        raise UserError(f"Unexpected argument {rest[1]!r}; flags begin with -- (see --help).")
    if flags.FLAGS.workdir is None and flags.FLAGS.dry_run is None and not wants_help:
        raise UserError("--workdir is missing: name a directory, such as --workdir=runs/quickstart.")
    return rest


def run() -> None:
    """The entry point: mistakes of the user end in one sentence, others keep their traceback."""
    setup_logging()
    try:
        app.run(main, flags_parser=parse_flags)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        if distributed.is_started() and not isinstance(error, SharedError):
            distributed.leave_alone()
        sys.exit(USER_ERROR)
    except Preempted as preempted:
        print(f"ended by SIGTERM: {preempted}; run the same command to go on", file=sys.stderr)
        sys.exit(RUN_AGAIN)


if __name__ == "__main__":
    run()
