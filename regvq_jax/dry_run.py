"""Compiles each training's step for devices that need not be there, and tells what it will need of them.

    python -m regvq_jax.main --config=configs/coco.py --dry_run=256 --config.mesh.fsdp=8
    python -m regvq_jax.main --config=configs/coco.py --dry_run=v5e:16x16

A number means so many fake CPU devices; a name is that of a TPU topology, for which libtpu compiles without
a TPU (`pip install libtpu`). No array is made, no data are opened, no weights are read.

What another device needs can be told from fake CPU devices only roughly: XLA's CPU compiler computes and
sends most of bfloat16 in float32, so that temporaries and sums of gradients are up to twice as large, and it
knows no reduce-scatter and no fused attention. Parameters, state, batch and FLOPs are the same.
"""

import dataclasses
import logging
import math
import os
import re
import sys
from pathlib import Path

import jax
from jax.experimental import topologies
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from regvq_jax import sharding
from regvq_jax.described import STAGES, describe
from regvq_jax.errors import UserError
from regvq_jax.files import write_json_atomic
from regvq_jax.step_costs import StageReport, report_stage

log = logging.getLogger("regvq_jax")
GIB = 2**30
DEVICES_FLAG = "--xla_force_host_platform_device_count"


def run(
    config: ConfigDict, topology: str, memory_gib: float, stages: tuple[str, ...], workdir: str | None
) -> int:
    """Prints a table for each training among `stages`; returns the exit code.

    Args:
        config: of the run.
        topology: a number of fake CPU devices, or the name of a TPU topology.
        memory_gib: of one device.
        stages: names, those that train nothing are passed over.
        workdir: gets dry_run.json; None = nothing is written.

    Raises:
        UserError: the config, the mesh or the topology cannot be.
    """
    # Whatever accelerator is here is left alone.
    jax.config.update("jax_platforms", "cpu")
    devices = described_devices(topology)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.get("tensor", 1), devices)
    reports = []
    for stage in stages:
        if stage not in STAGES or (stage == "tokenizer" and config.tokenizer):
            continue
        if stage == "map_tokenizer" and config.prior.condition != "map_tokens":
            continue
        reports.append(report_stage(describe(config, stage), stage, mesh, int(memory_gib * GIB)))
        print_report(reports[-1])
    if not reports:
        raise UserError(
            f"--dry_run: none of the stages {', '.join(stages)} trains anything here; those that can are "
            f"{', '.join(STAGES)}."
        )
    if workdir:
        Path(workdir).mkdir(parents=True, exist_ok=True)
        write_json_atomic(Path(workdir) / "dry_run.json", [dataclasses.asdict(report) for report in reports])
    return 0


def described_devices(topology: str) -> list[jax.Device]:
    """Devices to compile for; starts this process anew where it has too few fake ones.

    Raises:
        UserError: there is no such topology, or nothing that can compile for it.
    """
    if not topology.isdecimal():
        # Otherwise libtpu asks the network which machine this is, and waits.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        try:
            return list(topologies.get_topology_desc(topology, platform="tpu").devices)
        except Exception as error:  # Of many kinds, by what is missing.
            raise UserError(
                f"--dry_run={topology}: there is no compiler for a TPU topology of this name here "
                f"({str(error).splitlines()[0][:200]}); it takes `pip install libtpu`, no TPU, and a name "
                "such as v5e:16x16 or v5p:4x4x4. A number means fake CPU devices."
            ) from error
    count = int(topology)
    if count < 1:
        raise UserError("--dry_run=0: give at least 1 device.")
    if len(jax.devices("cpu")) < count:
        start_anew(count)
    return jax.devices("cpu")[:count]


def start_anew(count: int) -> None:
    """Replaces this process by one with `count` fake CPU devices, which have to be there from the start."""
    log.info("starting anew with %d fake devices", count)
    others = re.sub(rf"{DEVICES_FLAG}=\d+", "", os.environ.get("XLA_FLAGS", ""))
    environment = {"XLA_FLAGS": f"{others} {DEVICES_FLAG}={count}", "JAX_PLATFORMS": "cpu"}
    sys.stdout.flush()
    command = [sys.executable, "-m", "regvq_jax.main", *sys.argv[1:]]
    os.execve(sys.executable, command, os.environ | environment)


def print_report(report: StageReport, console: Console | None = None) -> None:
    """One stage as a table on stdout."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in report.mesh.items())
    table = Table(title=f"{report.stage}: {report.device}, {mesh}", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    same = report.batch_size == report.configured_batch_size
    asked = "" if same else f" ({report.configured_batch_size:,} asked for)"
    table.add_row("batch size", f"{report.batch_size:,}{asked}", end_section=True)
    for name, count in report.parameters.items():
        table.add_row(f"parameters of {name}", f"{count:,}")
    table.add_section()
    for kind, size in report.memory.items():
        if size:
            table.add_row(f"memory a device: {kind}", gib(size))
    table.add_row(
        "memory a device",
        gib(report.total_memory) if report.memory else "more than it has",
        style="bold",
        end_section=True,
    )
    a_device = report.flops / math.prod(report.mesh.values())
    table.add_row("FLOPs a step", f"{report.flops:.4g}")
    table.add_row("FLOPs a step and device", f"{a_device:.4g}", end_section=True)
    for kind, traffic in report.collectives.items():
        table.add_row(f"{kind} a step", f"{traffic.count:,} with {gib(traffic.bytes)}")
    table.add_section()
    limit = report.memory_limit / GIB
    largest = "none tried fits"
    if report.largest_batch_size:
        largest = f"{report.largest_batch_size:,} with {gib(report.largest_batch_memory)}"
    table.add_row(f"largest batch for {limit:g} GiB", largest)
    table.add_row("compiled in", f"{report.compile_seconds:.0f} s")
    (console or Console()).print(table)


def gib(size: int) -> str:
    """Bytes for people."""
    return f"{size / GIB:.2f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.2f} MiB"
