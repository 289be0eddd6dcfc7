"""Looks at every worker before a training: devices, sums over all of them, disk, data, clocks.

    launch/local.sh preflight --workdir=runs/mine --data=folder:PATH
    launch/local_multiprocess.sh 2 preflight --workdir=runs/mine

All processes of a run call it as they would call the training; the first prints a line for each check:

    PASS  devices     2 process(es), 16 device(s): 16 x NVIDIA H100 80GB HBM3
    FAIL  workdir     process 1 on node7: Cannot write /shared/mine: Permission denied; ...

Exit codes: 0 all passed, 1 something failed, 2 a mistake in the arguments.
"""

import argparse
import collections
import contextlib
import faulthandler
import functools
import json
import socket
import sys
import time
import uuid
from collections.abc import Callable, Sequence

import jax
import numpy as np

from regvq_jax import __version__, distributed, sharding
from regvq_jax.command_line import Parser, positive, run_command
from regvq_jax.data.sources import make_source
from regvq_jax.errors import UserError
from regvq_jax.files import filesystem, report_write_errors
from regvq_jax.progress import setup_logging

FAILED = 1
MAX_SHOWN = 8
TIMED_CALLS = 5
# Devices contribute 1 to 7, so that the sum stays exact in float32 for millions of them.
CYCLE = 7
# Mirrors and checkpoints pass such names over.
PROBE = ".write_test.preflight"


def check_devices(expected: int | None, platform: str | None) -> str:
    """Counts the devices of all processes.

    Args:
        expected: so many there should be.
        platform: so jax should call them.

    Raises:
        UserError: there are more, fewer or other ones, or processes have unequal numbers of them.
    """
    devices = jax.devices()
    kinds = collections.Counter(device.device_kind for device in devices)
    found = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    if platform and {device.platform for device in devices} != {platform}:
        raise UserError(
            f"--platform={platform} is expected and {found} is there: jax did not find the accelerator; look "
            "at the driver and at which jax is installed (pip install -e '.[cuda]' or '.[tpu]')."
        )
    if expected and len(devices) != expected:
        raise UserError(
            f"--devices={expected} are expected and {len(devices)} are there ({found}): start every worker, "
            "and look at CUDA_VISIBLE_DEVICES and JAX_LOCAL_DEVICE_IDS."
        )
    local = collections.Counter(device.process_index for device in devices)
    if len(set(local.values())) > 1 or len(kinds) > 1:
        by_process = ", ".join(f"process {index}: {count}" for index, count in sorted(local.items()))
        raise UserError(f"The processes do not have devices alike ({by_process}; {found}).")
    return f"{jax.process_count()} process(es), {len(devices)} device(s): {found}"


def check_software() -> str:
    """Compares the code of all processes; raises UserError where they differ."""
    distributed.check_same({})
    return f"regvq_jax {__version__} ({distributed.code_digest()}), jax {jax.__version__}"


def check_clock(limit: float) -> str:
    """Compares the time of all processes; raises UserError where it differs by `limit` seconds or more."""
    apart = float("inf")
    for _ in range(TIMED_CALLS):
        distributed.share_text("")  # All begin the next line at nearly the same time.
        times = [float(text) for text in distributed.share_text(repr(time.time()))]
        apart = min(apart, max(times) - min(times))
    if apart >= limit:
        raise UserError(
            f"The clocks are {apart:.1f} s apart, --max-skew={limit:g} or more: start ntpd or chronyd on "
            "every host."
        )
    return f"at most {apart:.3f} s apart"


def check_all_reduce(mebibytes: int, min_bandwidth: float) -> str:
    """Sums an array over all devices, compares it with what must come out, and takes the time.

    Args:
        mebibytes: of float32 on each device.
        min_bandwidth: GB/s a device, 0 for any; counted as 2 (n - 1) / n times the array, which is what each
            device must send whatever the algorithm.

    Raises:
        UserError: the sum is wrong or too slow.
    """
    mesh = sharding.make_mesh()
    shape = (mesh.size, mebibytes * 2**18)

    def fill(index: tuple[slice, ...]) -> np.ndarray:
        return np.full((1, shape[1]), 1 + (index[0].start or 0) % CYCLE, np.float32)

    parts = jax.make_array_from_callback(shape, sharding.batch_sharding(mesh), fill)
    add = jax.jit(lambda x: x.sum(0), out_shardings=sharding.replicated(mesh))
    expected = sum(1 + index % CYCLE for index in range(mesh.size))
    for shard in add(parts).addressable_shards:
        values = np.asarray(shard.data)
        if (wrong := np.flatnonzero(values != expected)).size:
            raise UserError(
                f"{shard.device} has {values[wrong[0]]:g} where the sum is {expected}, in {wrong.size} of "
                f"{values.size} places: a device, its memory or a link is broken; take its host out."
            )
    if mesh.size == 1:
        return "one device, nothing to exchange"
    seconds = min(_seconds(lambda: jax.block_until_ready(add(parts))) for _ in range(TIMED_CALLS))
    sent = 2 * (mesh.size - 1) / mesh.size * shape[1] * 4
    speed = sent / seconds / 1e9
    if speed < min_bandwidth:
        raise UserError(
            f"{speed:.2f} GB/s where --min-bandwidth={min_bandwidth:g} are expected: look at which network "
            "the hosts use (NCCL_DEBUG=INFO names it)."
        )
    return f"{expected} everywhere; {mebibytes} MiB in {seconds * 1e3:.1f} ms, {speed:.2f} GB/s a device"


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def write_probe(workdir: str, token: str) -> str:
    """Writes a small file of this process's own.

    Raises:
        UserError: it cannot, or `workdir` is a URL, which several processes cannot have.
    """
    if "://" in workdir and jax.process_count() > 1:
        raise UserError(
            f"{workdir} is a URL, which a run of one process can have: name a disk that all hosts share."
        )
    fs, root = filesystem(workdir)
    with report_write_errors(workdir):
        fs.makedirs(root, exist_ok=True)
        fs.pipe_file(f"{root}/{PROBE}.{jax.process_index()}", _content(token, jax.process_index()))
    return f"every process writes to {workdir}"


def read_probes(workdir: str, token: str) -> str:
    """Reads what others wrote: the first process every file, the others the first one's.

    Raises:
        UserError: a file is not there or has another content.
    """
    fs, root = filesystem(workdir)
    for index in range(jax.process_count()) if distributed.is_lead() else (0,):
        path = f"{root}/{PROBE}.{index}"
        if not fs.exists(path) or fs.cat_file(path) != _content(token, index):
            raise UserError(
                f"What process {index} wrote to {workdir} is not there: it is not one disk that all hosts "
                "share."
            )
    return "every process sees what others wrote"


def remove_probe(workdir: str) -> None:
    """Removes this process's file, if it could be written."""
    with contextlib.suppress(OSError, UserError):
        fs, root = filesystem(workdir)
        fs.rm_file(f"{root}/{PROBE}.{jax.process_index()}")


def _content(token: str, index: int) -> bytes:
    return f"{token} {index}\n".encode()


def check_data(spec: str) -> str:
    """Opens a data source and reads an element; each process another one.

    Args:
        spec: as of config.data.source.

    Raises:
        UserError: the source cannot be opened.
    """
    source = make_source(spec, split="train", image_size=64, upscale=True)
    source[jax.process_index() * len(source) // jax.process_count()]
    return f"{source.name}: {len(source)} elements, {source.fingerprint}"


def run_check(name: str, check: Callable[[], str], seconds: int, alike: bool = False) -> bool:
    """Calls a check in every process; the first prints what they found.

    Args:
        name: of the check.
        check: says what it found, or raises.
        seconds: after so many the process ends with the stack of each thread: another one hangs or is gone.
        alike: all processes must find the same.

    Returns:
        Whether all processes passed; the same in all.
    """
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        passed, found = True, check()
    except UserError as error:
        passed, found = False, str(error)
    except Exception as error:  # Each storage and each network library has errors of its own.
        passed, found = False, f"{type(error).__name__}: {error}"
    answers = [
        json.loads(text)
        for text in distributed.share_text(json.dumps([passed, found, f"on {socket.gethostname()}"]))
    ]
    faulthandler.cancel_dump_traceback_later()
    failures = [
        f"process {index} {host}: {found}"
        for index, (passed, found, host) in enumerate(answers)
        if not passed or (alike and found != answers[0][1])
    ]
    if distributed.is_lead():
        for failure in failures[:MAX_SHOWN]:
            print(f"FAIL  {name:<11} {failure}", flush=True)
        if not failures:
            print(f"PASS  {name:<11} {answers[0][1]}", flush=True)
    return not failures


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments; raises UserError for a mistake."""
    parser = Parser("launch/preflight.py", __doc__)
    parser.add_argument(
        "--distributed", action="store_true", help="several processes, as of the training's flag"
    )
    parser.add_argument("--devices", type=positive, help="how many there should be in all")
    parser.add_argument("--platform", choices=("cpu", "gpu", "tpu"), help="what they should be")
    parser.add_argument("--workdir", help="of the training that is meant")
    parser.add_argument("--data", help="its config.data.source")
    parser.add_argument("--mebibytes", type=positive, default=64, help="summed over all devices (64)")
    parser.add_argument(
        "--min-bandwidth", type=float, default=0.0, help="GB/s that each device should reach (any)"
    )
    parser.add_argument("--max-skew", type=float, default=1.0, help="seconds that clocks may differ (1)")
    parser.add_argument("--timeout", type=positive, default=120, help="seconds that a check may take (120)")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Runs all checks; exits with 1 where one failed."""
    args = parse(argv)
    try:
        distributed.start(args.distributed)
        jax.devices()
    except (UserError, RuntimeError, AssertionError) as error:  # The last where JAX_PLATFORMS finds nothing.
        # Here nobody can speak for all.
        reason = str(error) or "jax finds no device"
        print(f"FAIL  start       on {socket.gethostname()}: {reason}", flush=True)
        sys.exit(FAILED)
    setup_logging(process_index=jax.process_index())
    check = functools.partial(run_check, seconds=args.timeout)
    passed = [
        check("devices", lambda: check_devices(args.devices, args.platform)),
        check("software", check_software),
        check("clock", lambda: check_clock(args.max_skew)),
        check("all-reduce", lambda: check_all_reduce(args.mebibytes, args.min_bandwidth)),
    ]
    if args.workdir:
        token = distributed.share_text(uuid.uuid4().hex)[0]
        written = check("workdir", lambda: write_probe(args.workdir, token))
        passed.append(written)
        if written:
            passed.append(check("workdir", lambda: read_probes(args.workdir, token)))
        remove_probe(args.workdir)
    if args.data:
        passed.append(check("data", lambda: check_data(args.data), alike=True))
    if not all(passed):
        sys.exit(FAILED)


if __name__ == "__main__":
    run_command(main)
