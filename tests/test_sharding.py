import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from regvq_jax import loop, sharding
from regvq_jax.conditioning.condition import Condition
from regvq_jax.conditioning.text import make_tokenizer
from regvq_jax.errors import UserError
from regvq_jax.metrics import average
from regvq_jax.trainers import build
from tests.trainers.test_prior import LENGTH, make_trainer


@pytest.mark.parametrize(
    "axes, shape",
    [
        ((-1,), (8, 1, 1)),
        ((-1, 4), (2, 4, 1)),
        ((2, -1), (2, 4, 1)),
        ((4, 2), (4, 2, 1)),
        ((-1, 2, 2), (2, 2, 2)),
        ((1, 2, -1), (1, 2, 4)),
        ((4, 1, 2), (4, 1, 2)),
    ],
)
def test_mesh_shapes(axes, shape):
    mesh = sharding.make_mesh(*axes)
    assert tuple(mesh.shape.values()) == shape and mesh.axis_names == ("data", "fsdp", "tensor")


@pytest.mark.parametrize(
    "axes, nearest",
    [
        ((3, 1), "data=8, fsdp=1, tensor=1"),
        ((-1, 3), "data=2, fsdp=4, tensor=1"),
        ((-1, -1), "data=8, fsdp=1, tensor=1"),
        ((0, 8), "data=1, fsdp=8, tensor=1"),
        ((-1, 16), "data=1, fsdp=8, tensor=1"),
        ((2, 2, 3), "data=2, fsdp=2, tensor=2"),
        ((1, -1, 5), "data=1, fsdp=2, tensor=4"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(axes, nearest):
    with pytest.raises(UserError, match=f"does not fit 8 device.*nearest that does is {nearest}"):
        sharding.make_mesh(*axes)


def test_tensor_stays_within_a_process(monkeypatch):
    class Fake:
        """What `make_mesh` looks at of a device of another process."""

        def __init__(self, index):
            self.process_index = index // 2

    mesh = sharding.make_mesh(4, 1, 2)
    of_two_processes = mesh.devices.reshape(2, 4).copy()
    fakes = np.array([Fake(i) for i in range(8)]).reshape(2, 1, 4)
    monkeypatch.setattr(jax, "make_mesh", lambda *_, **__: type("Mesh", (), {"devices": fakes}))
    with pytest.raises(UserError, match="mesh.tensor=4 would reach over several processes.* 8 device"):
        sharding.make_mesh(2, 1, 4, devices=list(of_two_processes.ravel()))


def test_devices_along_tensor_go_to_data_where_nothing_is_split():
    mesh = sharding.make_mesh(2, 2, 2)
    assert sharding.mesh_of_stage(mesh, "prior") is mesh
    other = sharding.mesh_of_stage(mesh, "tokenizer")
    assert tuple(other.shape.values()) == (4, 2, 1) and sharding.batch_parts(other) == 8
    # Rows stay with the processes that read them.
    assert list(other.devices.ravel()) == list(mesh.devices.ravel())


def test_batch_size_names_the_nearest_that_fits():
    mesh = sharding.make_mesh()
    sharding.check_batch_size(16, mesh, field="b", slices=2)
    with pytest.raises(UserError, match="nearest that does is 16"):
        sharding.check_batch_size(14, mesh, field="b")
    with pytest.raises(UserError, match="nearest that does is 16"):
        sharding.check_batch_size(8, mesh, field="b", slices=2)
    # Devices along `tensor` hold the same rows.
    sharding.check_batch_size(4, sharding.make_mesh(2, 2, 2), field="b")
    with pytest.raises(UserError, match="over 4 device.* nearest that does is 8"):
        sharding.check_batch_size(7, sharding.make_mesh(2, 2, 2), field="b")


def test_large_arrays_are_split_along_their_largest_axis():
    mesh = sharding.make_mesh(-1, 4)
    tree = {
        "large": jnp.zeros((64, 1024)),
        "odd": jnp.zeros((127, 1024 * 4)),
        "small": jnp.zeros((8, 8)),
        "indivisible": jnp.zeros((127, 129)),
    }
    specs = jax.tree.map(lambda s: s.spec, sharding.param_shardings(tree, mesh))
    assert specs["large"] == P(None, "fsdp") and specs["odd"] == P(None, "fsdp")
    assert specs["small"] == P() and specs["indivisible"] == P()
    whole = sharding.param_shardings(tree, sharding.make_mesh(-1, 1))
    assert all(s.spec == P() for s in jax.tree.leaves(whole))


def test_put_batch_splits_rows_over_all_devices():
    mesh = sharding.make_mesh(4, 2)
    rows = np.arange(16).reshape(16, 1)
    array = sharding.put_batch({"x": rows}, mesh)["x"]
    assert array.shape == (16, 1) and len(array.addressable_shards) == 8
    assert array.addressable_shards[0].data.shape == (2, 1)
    np.testing.assert_array_equal(array, rows)


def test_a_codebook_that_does_not_split_is_refused():
    mesh = sharding.make_mesh(2, 4)
    sharding.check_codebook_size(1024, mesh)
    with pytest.raises(UserError, match="codebook_size=1022 does not divide over mesh.fsdp=4.* 1024"):
        sharding.check_codebook_size(1022, mesh)


def state_shapes(trainer):
    return jax.eval_shape(trainer.init, jax.random.key(0))


@pytest.mark.parametrize("scan_layers", [False, True])
def test_parameters_of_a_prior_are_split_by_rule(scan_layers):
    sizes = dict(dim=128, num_heads=4, scan_layers=scan_layers, codebook_size=256)
    state = state_shapes(make_trainer("released", Condition(), **sizes))
    mesh = sharding.make_mesh(2, 2, 2)
    places = sharding.param_shardings(state, mesh)
    blocks = "prior/transformer/blocks/" + ("layers" if scan_layers else "layers_0")
    stacked = (None,) if scan_layers else ()
    expected = {
        f"{blocks}/self_attention/query/kernel": P(*stacked, "fsdp", "tensor"),
        f"{blocks}/self_attention/query/bias": P(*stacked, "tensor"),
        f"{blocks}/self_attention/out/kernel": P(*stacked, "tensor", None, "fsdp"),
        f"{blocks}/self_attention/out/bias": P(),
        f"{blocks}/mlp_in/kernel": P(*stacked, "fsdp", "tensor"),
        f"{blocks}/mlp_in/bias": P(*stacked, "tensor"),
        f"{blocks}/mlp_out/kernel": P(*stacked, "tensor", "fsdp"),
        f"{blocks}/modulation/kernel": P(*stacked, "fsdp", "tensor"),
        # 257 rows cannot be split in two.
        "prior/token_embedding/embedding": P(None, "fsdp"),
        "prior/to_logits/kernel": P("fsdp", "tensor"),
        "prior/to_logits/bias": P("tensor"),
    }
    adam = [{"prior": optax.tree.get(places.opt_state["prior"], name)} for name in ("mu", "nu")]
    for tree in (places.params, places.ema, *adam):
        flat, _ = jax.tree_util.tree_flatten_with_path(tree)
        specs = {jax.tree_util.keystr(path, simple=True, separator="/"): x.spec for path, x in flat}
        assert {name: specs[name] for name in expected} == expected
    # Whatever is split, shards are of one size.
    jax.tree.map(lambda x, place: place.shard_shape(x.shape), state, places)


def test_a_rule_that_fits_nothing_is_refused():
    state = state_shapes(make_trainer("masked"))
    rules = {"prior": (("mlp_inn/kernel", ("tensor",)),)}
    with pytest.raises(UserError, match='"mlp_inn/kernel" fits nothing in "prior".*mlp_in/kernel'):
        sharding.param_shardings(state, sharding.make_mesh(4, 1, 2), rules)
    # A rule is for the tree of its network alone.
    sharding.param_shardings({"tokenizer": state.params["prior"]}, sharding.make_mesh(4, 1, 2), rules)


MESHES = [(8, 1, 1), (2, 2, 2), (1, 2, 4), (4, 1, 2)]


def step_on(trainer, state, batch, frozen, mesh):
    """(metrics, Adam's first moments: the gradients up to a factor) of one step on a mesh."""
    placed = jax.device_put(state, sharding.param_shardings(state, mesh))
    step_fn = loop.jit_step(trainer, state, mesh)
    new, metrics = step_fn(placed, sharding.put_batch(batch, mesh), frozen)
    moments = {name: optax.tree.get(tree, "mu") for name, tree in new.opt_state.items()}
    return average([metrics]), jax.device_get(moments)


def assert_same_step(one, other):
    for name, value in one[0].items():
        assert other[0][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    for network, tree in one[1].items():
        largest = max(np.abs(x).max() for x in jax.tree.leaves(tree))
        assert largest > 0
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other[1][network]), strict=True):
            np.testing.assert_allclose(b, a, atol=1e-4 * largest, err_msg=network)


@pytest.mark.parametrize("name", ["masked", "autoregressive", "released"])
def test_losses_and_gradients_of_a_prior_are_those_of_one_device(name, one_device_mesh, monkeypatch):
    monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 16)
    # One of them with captions: the transformer that reads these is split too.
    trainer = make_trainer(name, None if name == "masked" else Condition(), num_heads=4)
    state = jax.device_get(jax.jit(trainer.init)(jax.random.key(0)))
    batch = {"tokens": np.random.default_rng(0).integers(0, 8, (16, 4), dtype=np.int32)}
    if name == "masked":
        batch["condition"] = make_tokenizer().encode(["red", "blue"] * 8, LENGTH)
    one = step_on(trainer, state, batch, {}, one_device_mesh)
    for axes in MESHES:
        mesh = sharding.make_mesh(*axes)
        query = sharding.param_shardings(state, mesh).params["prior"]["transformer"]["blocks"]["layers_0"]
        split = [axis for axis in ("fsdp", "tensor") if mesh.shape[axis] > 1]
        assert [x for x in query["self_attention"]["query"]["kernel"].spec if x] == split
        assert_same_step(one, step_on(trainer, state, batch, {}, mesh))


def test_losses_and_gradients_of_the_tokenizer_are_those_of_one_device(
    tiny_config, one_device_mesh, monkeypatch
):
    monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 16)
    tiny_config.data.image_size = 16
    tiny_config.model.update(multipliers=(1, 1), middle_attention=False)
    trainer = build.make_tokenizer_trainer(tiny_config)
    state = jax.device_get(jax.jit(trainer.init)(jax.random.key(0)))
    state = state.replace(step=np.int32(6))  # Both players play.
    batch, frozen = dict(trainer.make_batches()[0]), trainer.init_frozen()
    one = step_on(trainer, state, batch, frozen, one_device_mesh)
    assert one[0]["train/discriminator"] > 0
    for axes in MESHES[:2]:
        mesh = sharding.mesh_of_stage(sharding.make_mesh(*axes), "tokenizer")
        assert_same_step(one, step_on(trainer, state, batch, frozen, mesh))
    # The other two are the same meshes: nothing of a tokenizer is split over `tensor`.
    meshes = [sharding.mesh_of_stage(sharding.make_mesh(*axes), "tokenizer") for axes in MESHES]
    assert [tuple(m.shape.values()) for m in meshes] == [(8, 1, 1), (4, 2, 1), (4, 2, 1), (8, 1, 1)]


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 2, 4)])
def test_local_rows_are_those_that_were_put(shape):
    mesh = sharding.make_mesh(*shape)
    rows = np.arange(16 * 3).reshape(16, 3).astype(np.float32)
    put = sharding.put_batch({"x": rows}, mesh)["x"]
    np.testing.assert_array_equal(sharding.local_rows(put, mesh), rows)
    # Also where the compiler has left them whole on every device.
    whole = jax.device_put(put, sharding.replicated(mesh))
    np.testing.assert_array_equal(sharding.local_rows(whole, mesh), rows)


def test_gathered_parameters_are_whole_along_fsdp_alone(monkeypatch):
    monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 16)
    mesh = sharding.make_mesh(2, 2, 2)
    params = state_shapes(make_trainer("masked", num_heads=4)).params
    params = jax.tree.map(lambda x: np.arange(x.size, dtype=x.dtype).reshape(x.shape), params)
    placed = jax.device_put(params, sharding.param_shardings(params, mesh))
    whole = sharding.gathered(placed, mesh)
    jax.tree.map(np.testing.assert_array_equal, whole, params)
    specs = {str(x.sharding.spec) for x in jax.tree.leaves(whole)}
    assert any("tensor" in spec for spec in specs) and not any("fsdp" in spec for spec in specs)
    on_data = sharding.make_mesh(8)
    assert sharding.gathered(placed, on_data) is placed


def test_rows_are_split_at_the_borders_of_blocks():
    x = jnp.zeros((8, 3))
    assert sharding.split_batch(x) is x
    mesh = sharding.make_mesh(2, 2, 2)

    def split(x):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return sharding.split_batch(x)

    # Whatever the compiler would rather do.
    whole = sharding.replicated(mesh)
    assert jax.jit(split, in_shardings=whole)(x).sharding.spec == P(("data", "fsdp"))
    # Every block of a network says so, in the step that trainings compile.
    trainer = make_trainer("autoregressive", Condition(), num_heads=4)
    state, batch = state_shapes(trainer), {"tokens": jax.ShapeDtypeStruct((8, 4), jnp.int32)}
    text = str(loop.jit_step(trainer, state, mesh).trace(state, batch, {}).jaxpr)
    borders = re.findall(r"f32\[8,4,\d+\] = sharding_constraint\[\s.*\s.*\s.*spec=(.*)\)\n", text)
    # Forward and backward.
    assert borders == ["P(('data', 'fsdp'),)"] * (2 * trainer.model.depth), text
