"""Several processes: how they find each other, that they run the same thing, and that they fail together."""

import hashlib
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

import regvq_jax
from regvq_jax.command_line import USER_ERROR
from regvq_jax.errors import UserError
from regvq_jax.workdir import flatten

T = TypeVar("T")
log = logging.getLogger("regvq_jax")
# Explicit addresses, where jax cannot find them in the cluster's environment.
COORDINATOR, NUM_PROCESSES, PROCESS_ID = "REGVQ_COORDINATOR", "REGVQ_NUM_PROCESSES", "REGVQ_PROCESS_ID"
# So long processes wait for each other at the start, and so long a silent one is taken for alive.
START_SECONDS = int(os.environ.get("REGVQ_START_SECONDS", "300"))
HEARTBEAT_SECONDS = int(os.environ.get("REGVQ_HEARTBEAT_SECONDS", "100"))
MAX_SHOWN = 8


def start(requested: bool = False) -> None:
    """Starts jax.distributed, where it is asked for; before any other use of jax.

    By REGVQ_COORDINATOR=HOST:PORT with REGVQ_NUM_PROCESSES and REGVQ_PROCESS_ID; or, `requested`, from what
    SLURM, Open MPI, Kubernetes or a TPU's metadata say. A process that is silent for
    REGVQ_HEARTBEAT_SECONDS ends all others.

    Raises:
        UserError: the variables are wrong, no cluster is found, or the others do not come in time.
    """
    arguments: dict[str, Any] = {}
    if COORDINATOR in os.environ:
        arguments = {
            "coordinator_address": os.environ[COORDINATOR],
            "num_processes": _number(NUM_PROCESSES),
            "process_id": _number(PROCESS_ID),
            # All is said: jax need not ask a cluster, which may refuse to answer.
            "cluster_detection_method": "deactivate",
        }
        if not 0 <= arguments["process_id"] < arguments["num_processes"]:
            raise UserError(
                f"{PROCESS_ID}={arguments['process_id']} must be from 0 to below "
                f"{NUM_PROCESSES}={arguments['num_processes']}."
            )
        log.info(
            "process %d of %d waits for the others at %s, at most %d s",
            arguments["process_id"], arguments["num_processes"], os.environ[COORDINATOR], START_SECONDS,
        )  # fmt: skip
    elif not requested:
        return
    else:
        log.info("waits for the other processes of the cluster, at most %d s", START_SECONDS)
    mistake = (
        f"The processes did not find each other at {os.environ.get(COORDINATOR, 'the coordinator')} within "
        f"{START_SECONDS} s: start as many as are expected, let all hosts reach the port, or set "
        f"{COORDINATOR}=HOST:PORT, {NUM_PROCESSES} and {PROCESS_ID}."
    )
    # jax itself would abort without a word for people.
    timer = threading.Timer(START_SECONDS, _give_up, (mistake,))
    timer.start()
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=START_SECONDS + 60,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{mistake} ({str(error).splitlines()[0]})") from error
    finally:
        timer.cancel()


def _give_up(mistake: str) -> None:
    print(f"error: {mistake}", file=sys.stderr, flush=True)
    os._exit(USER_ERROR)


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    if not text.isdecimal():
        raise UserError(f"{COORDINATOR} is set, so {name} must be a whole number, not {text!r}.")
    return int(text)


def is_started() -> bool:
    """Whether this process is one of several; may be asked before jax has started."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_lead() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def share_text(text: str) -> list[str]:
    """What every process says, by its index; all must call."""
    content = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array(len(content)))
    padded = np.zeros(max(int(np.max(lengths)), 1), np.uint8)
    padded[: len(content)] = content
    rows = np.atleast_2d(multihost_utils.process_allgather(padded))
    pairs = zip(rows, np.atleast_1d(lengths), strict=True)
    return [row[:length].tobytes().decode() for row, length in pairs]


class SharedError(UserError):
    """A mistake that every process ends with, so that none has to be left waiting."""


def fail_together(action: Callable[[], T], *, lead_first: bool = False) -> T:
    """Calls `action` in every process; the mistake that one of them finds ends all.

    Otherwise the others would wait for it in their next collective operation.

    Args:
        action: may raise UserError.
        lead_first: the other processes begin when the first has finished.

    Raises:
        SharedError: what this process, or the first that has one, raised as UserError.
    """
    if jax.process_count() == 1:
        return action()

    def attempt() -> tuple[T | None, str]:
        try:
            return action(), ""
        except UserError as error:
            return None, str(error)

    result, mistake = None, ""
    if not lead_first or is_lead():
        result, mistake = attempt()
    if lead_first:
        first = share_text(mistake)[0]
        if first:
            raise SharedError(mistake or f"Process 0: {first}")
        if not is_lead():
            result, mistake = attempt()
    for index, other in enumerate(share_text(mistake)):
        if other:
            raise SharedError(mistake or f"Process {index}: {other}")
    return result


def check_same(config: Mapping[str, Any]) -> None:
    """Makes sure that all processes have the same config and the same code.

    Args:
        config: JSON of the run's config.

    Raises:
        SharedError: names the fields or versions in which the first other process differs from process 0.
    """
    if jax.process_count() == 1:
        return
    mine = flatten(dict(config)) | {
        "the version of regvq_jax": regvq_jax.__version__,
        "the code of regvq_jax": code_digest(),
        "the version of jax": jax.__version__,
    }
    everybody = [json.loads(text) for text in share_text(json.dumps(mine, default=str))]
    first = everybody[0]
    for index, other in enumerate(everybody[1:], 1):
        differing = [
            f"{name} ({first.get(name)} and {other.get(name)})"
            for name in sorted(first.keys() | other.keys())
            if first.get(name) != other.get(name)
        ]
        if differing:
            raise SharedError(
                f"Processes 0 and {index} were not started alike; they differ in "
                f"{', '.join(differing[:MAX_SHOWN])}: give all of them the same command, config files and "
                "installed packages."
            )


def leave_alone() -> None:
    """Ends this process of several at once, after a mistake that only it has found.

    jax would wait for the others to end, too, for minutes; so they notice within REGVQ_HEARTBEAT_SECONDS.
    """
    sys.stderr.flush()
    os._exit(USER_ERROR)


def code_digest() -> str:
    """12 hex digits of the package's Python files."""
    root = Path(regvq_jax.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]
