"""Device meshes, and which array lies where on them.

Three axes: `data` splits the batch alone; `fsdp` splits the batch too, and what a training keeps from step to
step (parameters, optimiser state, averages), whose parameters are put together for the length of each step;
`tensor` splits the products of the transformer among devices that hold the same rows (Megatron-LM's way).
"""

import difflib
import functools
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from regvq_jax.errors import UserError

PyTree = Any
AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
# Smaller arrays are kept whole along `fsdp`: gathering them costs more than it saves.
MIN_SHARDED_SIZE = 2**14
# (regular expression of the end of a name, axes of the array's last dimensions).
Rule = tuple[str, tuple[str | None, ...]]
# By network. What no rule fits is split along its largest axis over `fsdp`, which is all that convolutions
# and codebooks want. Axes count from the last, since layers that are scanned over lie stacked in front.
RULES: dict[str, tuple[Rule, ...]] = {
    "prior": (
        # Heads and hidden units are split on the way in, and summed over on the way out: one sum each. Were
        # the embeddings split as well, activations would stay split and be gathered for every norm.
        (r"attention/(query|key|value)/kernel", ("fsdp", "tensor", None)),
        (r"attention/(query|key|value)/bias", ("tensor", None)),
        (r"attention/out/kernel", ("tensor", None, "fsdp")),
        (r"(mlp_in|modulation)/kernel", ("fsdp", "tensor")),
        (r"(mlp_in|modulation)/bias", ("tensor",)),
        (r"mlp_out/kernel", ("tensor", "fsdp")),
        (r"to_logits/kernel", ("fsdp", "tensor")),
        (r"to_logits/bias", ("tensor",)),
    ),
}


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: list[jax.Device] | None = None
) -> Mesh:
    """A mesh with the axes `AXES`.

    Args:
        data: devices along `data`; -1 takes what the other axes leave.
        fsdp, tensor: devices along these; -1 likewise; at most one of the three may be -1.
        devices: all devices of all processes by default.

    Raises:
        UserError: the axes do not multiply to the number of devices, or `tensor` reaches over several
            processes, each of which reads rows of its own.
    """
    devices = jax.devices() if devices is None else devices
    wanted = (data, fsdp, tensor)
    shape = list(wanted)
    if shape.count(-1) == 1:
        rest = math.prod(size for size in shape if size != -1)
        shape[shape.index(-1)] = len(devices) // max(rest, 1)
    if min(shape) < 1 or math.prod(shape) != len(devices):
        nearest = zip(AXES, _nearest_shape(wanted, len(devices)), strict=True)
        given = f"mesh.data={data} x mesh.fsdp={fsdp}"
        raise UserError(
            f"{given if tensor == 1 else f'mesh.tensor={tensor} x {given}'} does not fit {len(devices)} "
            f"device(s); the nearest that does is {', '.join(f'{axis}={size}' for axis, size in nearest)}; "
            "-1 for one of them takes all that the others leave."
        )
    mesh = jax.make_mesh(tuple(shape), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
    for group in mesh.devices.reshape(-1, shape[2]):
        if len({device.process_index for device in group}) > 1:
            own = sum(device.process_index == devices[0].process_index for device in devices)
            raise UserError(
                f"mesh.tensor={shape[2]} would reach over several processes, which read rows of their own; "
                f"set it to a divisor of the {own} device(s) of a process, and mesh.fsdp higher for memory."
            )
    return mesh


def _nearest_shape(wanted: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The three sizes of product `count` that are nearest, as ratios, to those wanted; -1 = any."""
    divisors = [n for n in range(1, count + 1) if count % n == 0]
    shapes = [(count // f // t, f, t) for f in divisors for t in divisors if count % (f * t) == 0]

    def distance(shape):
        return sum(abs(math.log(a / max(b, 1))) for a, b in zip(shape, wanted, strict=True) if b != -1)

    return min(shapes, key=distance)


def mesh_of_stage(mesh: Mesh, network: str) -> Mesh:
    """The mesh of a training: `tensor` goes to `data` where no rule of the network would use it."""
    if any("tensor" in axes for _, axes in RULES.get(network, ())):
        return mesh
    data, fsdp, tensor = mesh.devices.shape
    devices = mesh.devices.reshape(data * tensor, fsdp, 1)
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * 3)


def check_batch_size(batch_size: int, mesh: Mesh, *, field: str, slices: int = 1) -> None:
    """Raises UserError unless `batch_size` splits evenly over the mesh and the accumulation slices."""
    parts = batch_parts(mesh)
    unit = parts * slices
    if batch_size < 1 or batch_size % unit:
        raise UserError(
            f"{field}={batch_size} does not divide over {parts} device(s)"
            + (f" x {slices} accumulation slices" if slices > 1 else "")
            + f"; the nearest that does is {nearest_batch_size(batch_size, unit)}."
        )


def batch_parts(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def nearest_batch_size(batch_size: int, unit: int) -> int:
    """The multiple of `unit` that is nearest, at least one."""
    return max(unit, round(batch_size / unit) * unit)


def check_codebook_size(codebook_size: int, mesh: Mesh) -> None:
    """Raises UserError unless the codes split evenly along `fsdp`; they would lie whole on every device."""
    fsdp = mesh.shape["fsdp"]
    if codebook_size % fsdp:
        raise UserError(
            f"config.quantizer.codebook_size={codebook_size} does not divide over mesh.fsdp={fsdp}; the "
            f"nearest that does is {nearest_batch_size(codebook_size, fsdp)}, or set mesh.fsdp=1."
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis split over `data` and `fsdp`; devices along `tensor` hold the same rows."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def param_shardings(tree: PyTree, mesh: Mesh, rules: Mapping[str, tuple[Rule, ...]] = RULES) -> PyTree:
    """Where each array lies, by the first rule that fits its name.

    An axis that a rule names is left out where it does not divide the array's, and `fsdp` also where the
    array is small. Where no rule places `fsdp`, it splits the largest axis that is free and that it divides.

    Args:
        tree: pytree of arrays or ShapeDtypeStructs. Names are its keys with "/" between; the rules of a
            network are for what lies below a key of its name: parameters, optimiser state and averages alike.
        mesh: as from `make_mesh`.
        rules: by network.

    Returns:
        A pytree of NamedSharding of the same structure.

    Raises:
        UserError: a rule fits nothing in the tree of its network.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    networks = [next((part for part in name.split("/") if part in rules), None) for name in names]
    for network in dict.fromkeys(filter(None, networks)):
        own = [name for name, of in zip(names, networks, strict=True) if of == network]
        for pattern, _ in rules[network]:
            if not any(re.search(f"{pattern}$", name) for name in own):
                parts = pattern.count("/") + 1
                ends = dict.fromkeys("/".join(name.split("/")[-parts:]) for name in own)
                near = difflib.get_close_matches(pattern, list(ends), n=3, cutoff=0)
                raise UserError(
                    f'The sharding rule "{pattern}" fits nothing in "{network}"; the nearest names are '
                    f"{', '.join(near)}."
                )
    specs = [
        _spec(name, x, mesh, rules.get(network, ()))
        for name, network, (_, x) in zip(names, networks, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, [NamedSharding(mesh, spec) for spec in specs])


def _spec(name: str, x: Any, mesh: Mesh, rules: tuple[Rule, ...]) -> PartitionSpec:
    """The axes of one array."""

    def fits(axis: str | None, size: int) -> bool:
        if axis is None or mesh.shape[axis] == 1 or size % mesh.shape[axis]:
            return False
        return axis != "fsdp" or x.size >= MIN_SHARDED_SIZE

    fitting = (axes for pattern, axes in rules if re.search(f"{pattern}$", name) and len(axes) <= x.ndim)
    wanted = next(fitting, ())
    wanted = (None,) * (x.ndim - len(wanted)) + wanted
    axes = [axis if fits(axis, size) else None for axis, size in zip(wanted, x.shape, strict=True)]
    free = [place for place, axis in enumerate(axes) if axis is None and fits("fsdp", x.shape[place])]
    if "fsdp" not in axes and free:
        axes[max(free, key=lambda place: x.shape[place])] = "fsdp"
    return _trim(axes)


def _trim(axes: list[str | None]) -> PartitionSpec:
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)


def gather(params: PyTree, mesh: Mesh, shardings: PyTree) -> PyTree:
    """Parameters put together over `fsdp`, within a jitted function; what `tensor` splits stays split.

    Where they are used split, the compiler rather splits the products than the batch: it then sums
    activations over devices, many times the bytes of the parameters.

    Args:
        params: pytree of arrays.
        mesh: as from `make_mesh`.
        shardings: of `params`, from `param_shardings`.
    """

    def whole(sharding: NamedSharding) -> NamedSharding:
        return NamedSharding(mesh, _trim([None if axis == "fsdp" else axis for axis in sharding.spec]))

    return jax.lax.with_sharding_constraint(params, jax.tree.map(whole, shardings))


def gathered(params: PyTree, mesh: Mesh) -> PyTree:
    """`gather` outside of a jitted function, for work that uses the same parameters again and again.

    Args:
        params: pytree of arrays that lie where `param_shardings` says.
        mesh: as from `make_mesh`.
    """
    if mesh.shape["fsdp"] == 1:
        return params
    shardings = param_shardings(params, mesh)
    return jax.jit(lambda params: gather(params, mesh, shardings))(params)


def split_batch(x: jax.Array) -> jax.Array:
    """`x` [B, ...] with its rows split as those of a batch; for the borders between blocks of a network.

    The compiler spreads a layout from the parameters and the batch on its own. Said at every border, it
    can not settle on another one in between, and sum or gather activations there. Does nothing where no mesh
    is set (`jax.sharding.use_abstract_mesh`): a few samples need not divide over the devices.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES))


@functools.cache
def _split_rows(mesh: Mesh):
    return jax.jit(lambda x: x, out_shardings=batch_sharding(mesh))


def local_rows(x: jax.Array, mesh: Mesh) -> np.ndarray:
    """This process's rows of what was computed from a batch, in the order that `put_batch` took them in.

    Args:
        x: [B, ...], however the compiler has left it on the devices.
        mesh: of the batch. Devices along `tensor` hold the same rows, which count once.

    Returns:
        [B / processes, ...].
    """
    x = _split_rows(mesh)(x)
    shards = [shard for shard in x.addressable_shards if shard.replica_id == 0]
    shards.sort(key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's part of a batch, as global arrays split over all devices.

    Args:
        batch: arrays [B / processes, ...].
        mesh: as from `make_mesh`.
    """
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}
