import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import multihost_utils

from regvq_jax.checkpoint import Checkpoints
from regvq_jax.errors import UserError
from regvq_jax.state import init_state

META = {"data_position": 7, "seconds": 1.5}


def make_state(width=4, scale=1.0):
    params = {
        "tokenizer": {"conv": {"kernel": scale * jnp.arange(3.0 * width).reshape(3, width)}},
        "discriminator": {"bias": scale * jnp.ones(3)},
    }
    # A chain with an empty state and a schedule's count, as the real optimisers have.
    adam = optax.adam(optax.constant_schedule(1.0))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), adam)
    state = init_state(params, {name: optimizer for name in params}, ("tokenizer",))
    return state.replace(step=jnp.asarray(7, jnp.int32))


def abstract(tree):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def steps_on_disk(directory):
    return sorted(int(path.name) for path in Path(directory).iterdir() if path.name.isdigit())


def test_round_trip_in_a_new_object(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path / "made" / "here") as checkpoints:
        assert checkpoints.latest_step() is None
        assert checkpoints.save(7, state, META)
        assert not checkpoints.save(7, make_state(scale=2.0), META)
    with Checkpoints(tmp_path / "made" / "here") as checkpoints:
        assert checkpoints.latest_step() == 7
        restored, meta = checkpoints.restore(abstract(state))
    assert meta == META
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(restored))


def test_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Checkpoints("run/checkpoints") as checkpoints:
        checkpoints.save(1, {"x": jnp.ones(2)}, {})
    assert steps_on_disk(tmp_path / "run" / "checkpoints") == [1]


def test_keeps_the_newest_and_the_best(tmp_path):
    state = {"x": jnp.ones(2)}
    with Checkpoints(tmp_path, best_metric="psnr", best_mode="max") as checkpoints:
        assert checkpoints.best_step() is None
        for step, psnr in enumerate([15.0, 20.0, float("nan")], 1):
            checkpoints.save(step, state, META, {"psnr": psnr})
        checkpoints.save(4, state, META)
        assert checkpoints.best_step() == 2
        assert checkpoints.latest_step() == 4
        assert steps_on_disk(tmp_path) == [2, 4]
    with Checkpoints(tmp_path, best_metric="psnr", best_mode="max") as checkpoints:
        assert checkpoints.best_step() == 2
        checkpoints.save(5, state, META, {"psnr": 21.0})
        assert checkpoints.best_step() == 5
    assert steps_on_disk(tmp_path) == [5]


def test_best_by_minimum_and_none_without_a_finite_metric(tmp_path):
    state = {"x": jnp.ones(2)}
    with Checkpoints(tmp_path, best_metric="fid", best_mode="min") as checkpoints:
        checkpoints.save(1, state, META, {"fid": float("inf")})
        assert checkpoints.best_step() is None
        checkpoints.save(2, state, META, {"fid": 3.0})
        checkpoints.save(3, state, META, {"fid": 4.0})
        assert checkpoints.best_step() == 2
    assert steps_on_disk(tmp_path) == [2, 3]


def test_state_may_be_donated_right_after_save(tmp_path):
    add_one = jax.jit(lambda x: x + 1, donate_argnums=0)
    state = add_one(jnp.zeros((8, 1000, 1000)))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": state}, META)
        for _ in range(10):
            state = add_one(state)
        restored, _ = checkpoints.restore({"x": jax.ShapeDtypeStruct(state.shape, state.dtype)})
    np.testing.assert_array_equal(restored["x"], 1.0)


def test_restores_one_sub_tree(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, state, META)
    kernel = {"conv": {"kernel": jax.ShapeDtypeStruct((3, 4), jnp.bfloat16)}}
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        averaged = checkpoints.restore_params({"tokenizer": kernel})
        params = checkpoints.restore_params(abstract(state.params["tokenizer"]), key=("params", "tokenizer"))
        with pytest.raises(UserError, match=r"ema/prior/w float32\[2\] is not in"):
            checkpoints.restore_params({"prior": {"w": jax.ShapeDtypeStruct((2,), jnp.float32)}})
    # Without a sharding: numpy, cast to the wanted dtype.
    assert isinstance(averaged["tokenizer"]["conv"]["kernel"], np.ndarray)
    assert averaged["tokenizer"]["conv"]["kernel"].dtype == jnp.bfloat16
    expected = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(averaged["tokenizer"]["conv"]["kernel"], expected)
    assert isinstance(params["conv"]["kernel"], jax.Array)
    np.testing.assert_array_equal(params["conv"]["kernel"], expected)


def test_names_the_first_leaf_that_does_not_fit(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, make_state(width=4), META)
        with pytest.raises(UserError) as raised:
            checkpoints.restore(abstract(make_state(width=5)))
        message = str(raised.value)
        assert "params/tokenizer/conv/kernel is float32[3, 4] in the checkpoint" in message
        assert "float32[3, 5] in the model" in message

        smaller = make_state().replace(ema={})
        with pytest.raises(UserError, match=r"holds ema/tokenizer/conv/kernel float32\[3, 4\]"):
            checkpoints.restore(abstract(smaller))
        other_dtype = make_state().replace(step=jnp.zeros((), jnp.uint32))
        with pytest.raises(UserError, match=r"step is int32\[\] in .* but uint32\[\] in the model"):
            checkpoints.restore(abstract(other_dtype))
    assert steps_on_disk(tmp_path) == [7]


def test_no_checkpoint_names_the_directory(tmp_path):
    target = {"x": jax.ShapeDtypeStruct((2,), jnp.float32)}
    no_checkpoint = pytest.raises(UserError, match=f"no checkpoint in {tmp_path / 'empty'}")
    with Checkpoints(tmp_path / "empty", read_only=True) as checkpoints, no_checkpoint:
        checkpoints.restore(target)
    assert not (tmp_path / "empty").exists()


def test_missing_step_names_those_that_exist(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, {"x": jnp.ones(2)}, META)
        with pytest.raises(UserError, match="no checkpoint of step 5 .* there is 3"):
            checkpoints.restore({"x": jax.ShapeDtypeStruct((2,), jnp.float32)}, step=5)


def test_saving_does_not_ask_whether_to_end(tmp_path, monkeypatch):
    """Of several processes, only the loop may: in turn, and with numbers that never go back."""
    asked = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", asked.append)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": jnp.ones(2)}, META)
    assert steps_on_disk(tmp_path) == [1] and not asked


@pytest.mark.parametrize("victim", ["state/_METADATA", "state/manifest.ocdbt", "meta/metadata"])
def test_damage_is_an_error_that_names_the_way_back(tmp_path, victim):
    target = {"x": jax.ShapeDtypeStruct((2,), jnp.float32)}
    with Checkpoints(tmp_path, keep_latest=2) as checkpoints:
        checkpoints.save(1, {"x": jnp.ones(2)}, META)
        checkpoints.save(2, {"x": jnp.ones(2)}, META)
    (tmp_path / "2" / victim).write_bytes(b"")
    with Checkpoints(tmp_path, keep_latest=2) as checkpoints:
        assert checkpoints.latest_step() == 2
        with pytest.raises(UserError, match=f"{tmp_path / '2'} cannot be read.*go back to step 1"):
            checkpoints.restore(target)
        restored, _ = checkpoints.restore(target, step=1)
    np.testing.assert_array_equal(restored["x"], 1.0)


def test_directory_that_vanishes_under_a_run(tmp_path):
    directory = tmp_path / "checkpoints"
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(1, {"x": jnp.ones(2)}, META)
        checkpoints.wait()
        shutil.rmtree(directory)
        directory.write_text("a file in the way")
        with pytest.raises(UserError, match=f"into {directory} failed: Not a directory"):
            checkpoints.save(2, {"x": jnp.ones(2)}, META)


def test_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write .*Not a directory"):
        Checkpoints(tmp_path / "file" / "checkpoints")


def test_meta_must_be_json(tmp_path):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(TypeError):
        checkpoints.save(1, {"x": jnp.ones(2)}, {"position": object()})
    assert steps_on_disk(tmp_path) == []


def run_python(code, *args, **env):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_full_disk_keeps_the_last_good_step(tmp_path):
    """A limit on file sizes fails the writing thread the way a full disk does."""
    result = run_python(
        """
        import resource, sys
        import jax.numpy as jnp, numpy as np
        from regvq_jax.checkpoint import Checkpoints
        from regvq_jax.errors import UserError

        checkpoints = Checkpoints(sys.argv[1])
        checkpoints.save(1, {"x": jnp.ones(3)}, {})
        checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
        noise = np.random.default_rng(0).normal(size=2**18)  # does not compress
        checkpoints.save(2, {"x": jnp.asarray(noise, jnp.float32)}, {})
        try:
            checkpoints.save(3, {"x": jnp.ones(3)}, {})
        except UserError as error:
            print(error)
        print(checkpoints.latest_step())
        checkpoints.close()
        """,
        tmp_path,
    )
    assert result.returncode == 0, result.stderr
    message, latest = result.stdout.splitlines()
    assert f"into {tmp_path} failed: " in message
    assert "File too large; step 1 is intact. Free some space" in message
    assert latest == "1"
    assert steps_on_disk(tmp_path) == [1]


def test_kill_during_a_save(tmp_path):
    """Killed between the writing of step 2 and its renaming: 1 is the latest, 2 can be saved."""
    result = run_python(
        """
        import os, signal, sys
        import jax.numpy as jnp
        from orbax.checkpoint._src.path import atomicity
        from regvq_jax.checkpoint import Checkpoints

        checkpoints = Checkpoints(sys.argv[1])
        checkpoints.save(1, {"x": jnp.full(1000, 1.0)}, {})
        checkpoints.wait()
        async def die(self, *args, **kwargs):
            os.kill(os.getpid(), signal.SIGKILL)
        for cls in vars(atomicity).values():
            if isinstance(cls, type) and "finalize" in vars(cls):
                cls.finalize = die
        checkpoints.save(2, {"x": jnp.full(1000, 2.0)}, {})
        checkpoints.wait()
        """,
        tmp_path,
    )
    assert result.returncode == -signal.SIGKILL, result.stderr
    leftovers = [path.name for path in tmp_path.iterdir() if not path.name.isdigit()]
    assert leftovers, "the kill came too late to leave anything"
    target = {"x": jax.ShapeDtypeStruct((1000,), jnp.float32)}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 1
        np.testing.assert_array_equal(checkpoints.restore(target)[0]["x"], 1.0)
        checkpoints.save(2, {"x": jnp.full(1000, 2.0)}, META)
        np.testing.assert_array_equal(checkpoints.restore(target)[0]["x"], 2.0)
    assert steps_on_disk(tmp_path) == [2]


def test_8_devices_to_1_and_back(tmp_path):
    """Saved sharded over 8 devices, restored on 1, saved there, restored on 8: bit for bit."""
    code = """
    import sys
    import jax, jax.numpy as jnp, numpy as np
    from regvq_jax import sharding
    from regvq_jax.checkpoint import Checkpoints

    directory, mode = sys.argv[1:]
    mesh = sharding.make_mesh(data=1, fsdp=8)
    expected = np.arange(64 * 512, dtype=np.float32).reshape(64, 512) / 7
    shape = jax.ShapeDtypeStruct(expected.shape, expected.dtype)
    placed = sharding.param_shardings(shape, mesh)
    with Checkpoints(directory) as checkpoints:
        if mode == "save":
            w = jax.device_put(expected, placed)
            checkpoints.save(1, {"w": w}, {})
        else:
            target = jax.ShapeDtypeStruct(expected.shape, expected.dtype, sharding=placed)
            w = checkpoints.restore({"w": target}, step=2)[0]["w"]
            np.testing.assert_array_equal(w, expected)
    assert [shard.data.size for shard in w.addressable_shards] == [expected.size // 8] * 8
    """
    eight = "--xla_force_host_platform_device_count=8"
    expected = np.arange(64 * 512, dtype=np.float32).reshape(64, 512) / 7
    result = run_python(code, tmp_path, "save", XLA_FLAGS=eight)
    assert result.returncode == 0, result.stderr
    with Checkpoints(tmp_path) as checkpoints:
        state, _ = checkpoints.restore(abstract({"w": jnp.asarray(expected)}))
        assert len(state["w"].devices()) == 1
        np.testing.assert_array_equal(state["w"], expected)
        checkpoints.save(2, state, META)
    result = run_python(code, tmp_path, "restore", XLA_FLAGS=eight)
    assert result.returncode == 0, result.stderr
