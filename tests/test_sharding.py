import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from regvq_jax import sharding
from regvq_jax.errors import UserError


@pytest.mark.parametrize(
    "data, fsdp, shape", [(-1, 1, (8, 1)), (-1, 4, (2, 4)), (2, -1, (2, 4)), (4, 2, (4, 2))]
)
def test_mesh_shapes(data, fsdp, shape):
    mesh = sharding.make_mesh(data, fsdp)
    assert tuple(mesh.shape.values()) == shape and mesh.axis_names == ("data", "fsdp")


@pytest.mark.parametrize("data, fsdp", [(3, 1), (-1, 3), (-1, -1), (0, 8), (-1, 16)])
def test_a_mesh_that_does_not_fit_is_refused(data, fsdp):
    with pytest.raises(UserError, match="does not fit 8 device"):
        sharding.make_mesh(data, fsdp)


def test_batch_size_names_the_nearest_that_fits():
    mesh = sharding.make_mesh()
    sharding.check_batch_size(16, mesh, field="b", slices=2)
    with pytest.raises(UserError, match="nearest that does is 16"):
        sharding.check_batch_size(14, mesh, field="b")
    with pytest.raises(UserError, match="nearest that does is 16"):
        sharding.check_batch_size(8, mesh, field="b", slices=2)


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
