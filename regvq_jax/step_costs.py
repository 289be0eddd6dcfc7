"""What a training's step needs of its devices, as the compiler plans it."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable
from typing import Any

import jax

from regvq_jax import loop, sharding
from regvq_jax.collectives import Traffic, count_collectives
from regvq_jax.described import Described

PyTree = Any
log = logging.getLogger("regvq_jax")
MAX_SEARCHES = 3


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a step.

    Attributes:
        memory: bytes on one device, by kind.
        collectives: by kind.
        seconds: that tracing and compiling took.
    """

    memory: dict[str, int]
    collectives: dict[str, Traffic]
    seconds: float

    @property
    def total(self) -> int:
        """Bytes on one device."""
        return sum(self.memory.values())


@dataclasses.dataclass(frozen=True)
class StageReport:
    """What a stage's step needs.

    Attributes:
        stage: its name.
        device: what it was compiled for.
        mesh: sizes by axis.
        configured_batch_size, batch_size: of the config, and the nearest that the mesh divides.
        parameters: counts by network; those that are not trained have "(frozen)" behind their name.
        memory, total_memory: bytes on one device, by kind and in all; {} and 0 where it does not fit.
        flops: of one step on all devices, 2 for a multiplication and addition.
        collectives: by kind.
        largest_batch_size: of the batch size times powers of two, that fits `memory_limit`; 0 = none does.
        largest_batch_memory: bytes on one device with it.
        memory_limit: bytes.
        compile_seconds: of the step.
    """

    stage: str
    device: str
    mesh: dict[str, int]
    configured_batch_size: int
    batch_size: int
    parameters: dict[str, int]
    memory: dict[str, int]
    total_memory: int
    flops: float
    collectives: dict[str, Traffic]
    largest_batch_size: int
    largest_batch_memory: int
    memory_limit: int
    compile_seconds: float


def report_stage(described: Described, stage: str, mesh: jax.sharding.Mesh, memory_limit: int) -> StageReport:
    """Compiles a step, and again with other batches to find the largest that fits.

    Args:
        described: the training.
        stage: its name.
        mesh: of all devices.
        memory_limit: bytes of one device.
    """
    mesh = sharding.mesh_of_stage(mesh, described.trainer.name)
    train = described.trainer.train
    unit = sharding.batch_parts(mesh) * train.accumulation_slices
    batch_size = sharding.nearest_batch_size(train.batch_size, unit)
    if batch_size != train.batch_size:
        log.warning(
            "%s: batch_size=%d does not divide over %d devices x %d slices: a training would be refused, "
            "this goes on with %d",
            *(stage, train.batch_size, sharding.batch_parts(mesh), train.accumulation_slices, batch_size),
        )
    compiled = compile_step(described, batch_size, mesh)
    largest, largest_memory = largest_batch(
        lambda size: compile_step(described, size, mesh), batch_size, compiled, unit, memory_limit
    )
    return StageReport(
        stage=stage,
        device=f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        mesh=dict(mesh.shape),
        configured_batch_size=train.batch_size,
        batch_size=batch_size,
        parameters=count_parameters(described),
        memory=compiled.memory if compiled else {},
        total_memory=compiled.total if compiled else 0,
        flops=count_flops(described, batch_size),
        collectives=compiled.collectives if compiled else {},
        largest_batch_size=largest,
        largest_batch_memory=largest_memory,
        memory_limit=memory_limit,
        compile_seconds=compiled.seconds if compiled else math.nan,
    )


def compile_step(described: Described, batch_size: int, mesh: jax.sharding.Mesh) -> Compiled | None:
    """The step as a training compiles it; None where the compiler finds that it cannot fit."""
    described = described.with_batch_size(batch_size)
    began = time.perf_counter()
    step_fn = loop.jit_step(described.trainer, described.state, mesh)
    batch = described.batch(batch_size)
    lowered = step_fn.lower(described.state, batch, described.frozen)
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    log.info("compiling a step of %d rows for %d devices", batch_size, mesh.size)
    try:
        compiled = lowered.compile(compiler_options=loop.QUICK_TO_COMPILE if on_cpu else None)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        log.info("%d rows: %s", batch_size, str(error).splitlines()[0])
        return None
    seconds = time.perf_counter() - began
    analysis = compiled.memory_analysis()
    memory = state_memory(described, batch, mesh)
    # Some devices pad arrays. What a step does not read is no argument of it, yet lies on the devices.
    memory["padding"] = max(analysis.argument_size_in_bytes - sum(memory.values()), 0)
    memory["temporaries"] = analysis.temp_size_in_bytes
    memory["results"] = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    memory["program"] = analysis.generated_code_size_in_bytes
    return Compiled(memory, count_collectives(compiled.as_text()), seconds)


def state_memory(described: Described, batch: PyTree, mesh: jax.sharding.Mesh) -> dict[str, int]:
    """Bytes on one device of what a step is given, by kind."""
    state, places = described.state, sharding.param_shardings(described.state, mesh)

    def size(tree, shardings):
        shard = lambda x, place: math.prod(place.shard_shape(x.shape)) * x.dtype.itemsize
        return sum(jax.tree.leaves(jax.tree.map(shard, tree, shardings)))

    names = {"params": "parameters", "opt_state": "optimiser", "ema": "averages", "statistics": "statistics"}
    memory = {kind: size(getattr(state, name), getattr(places, name)) for name, kind in names.items()}
    memory["statistics"] += state.step.dtype.itemsize
    everywhere = jax.tree.map(lambda _: sharding.replicated(mesh), described.frozen)
    memory["frozen networks"] = size(described.frozen, everywhere)
    memory["batch"] = size(batch, jax.tree.map(lambda _: sharding.batch_sharding(mesh), batch))
    return memory


def count_parameters(described: Described) -> dict[str, int]:
    """Numbers of parameters by network."""
    networks = dict(described.state.params)
    networks |= {f"{name} (frozen)": params for name, params in described.frozen.items()}
    return {name: sum(x.size for x in jax.tree.leaves(params)) for name, params in networks.items()}


def count_flops(described: Described, batch_size: int) -> float:
    """FLOPs of one step on all devices together, by XLA's analysis of the program as it is written.

    Of a loop the analysis counts one round. So layers are unrolled, and batches are so small that nothing is
    done in tiles: from those of one and two rows follows that of any. Convolutions are counted as GPUs get
    them, without the loops of their form for CPUs; nothing is compiled.
    """
    twin = described.unrolled()

    def flops(rows):
        step_fn = jax.jit(twin.with_batch_size(rows).trainer.train_step)
        traced = step_fn.trace(twin.state, twin.batch(rows), twin.frozen)
        return traced.lower(lowering_platforms=("cuda",)).cost_analysis()["flops"]

    one, two = flops(1), flops(2)
    return one + (two - one) * (batch_size - 1)


def largest_batch(
    compile_fn: Callable[[int], Compiled | None],
    batch_size: int,
    compiled: Compiled | None,
    unit: int,
    limit: int,
) -> tuple[int, int]:
    """(the largest batch that fits, its bytes on one device) among `batch_size` x powers of two; 0 = none.

    Args:
        compile_fn: batch size -> what the compiler says, None where it does not fit.
        batch_size, compiled: to begin with.
        unit: batch sizes are multiples of it.
        limit: bytes on one device.
    """
    totals = {batch_size: compiled.total if compiled else math.inf}
    # Before a second batch is compiled, all but the state is taken to be in proportion to the batch.
    kept = compiled.total - compiled.memory["temporaries"] - compiled.memory["batch"] if compiled else 0
    for _ in range(MAX_SEARCHES):
        size = _next_size(totals, kept, batch_size, limit)
        if size in totals or size < unit or size % unit:
            break
        result = compile_fn(size)
        totals[size] = result.total if result else math.inf
    return max(((size, total) for size, total in totals.items() if total <= limit), default=(0, 0))


def _next_size(totals: dict[int, float], kept: float, batch_size: int, limit: int) -> int:
    """The size that a straight line through the two largest known ones says is the last that fits."""
    known = sorted((size, total) for size, total in totals.items() if total < math.inf)
    too_large = min((size for size, total in totals.items() if total > limit), default=math.inf)
    if not known:
        return too_large // 2
    (first, less), (second, more) = [(0, kept), *known][-2:]
    rows = first + (limit - less) * (second - first) / (more - less)
    size = batch_size * 2.0 ** math.floor(math.log2(max(rows, 1) / batch_size))
    return int(min(size, too_large / 2))
