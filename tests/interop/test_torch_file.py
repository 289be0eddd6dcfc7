"""PyTorch files against torch itself, old files made by hand, and files that would run something."""

import collections
import copyreg
import io
import os
import pickle
import struct
import sys
import types
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from regvq_jax.errors import UserError
from regvq_jax.interop.torch_file import read_torch_file

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="needs the extra [parity]")


@pytest.fixture(params=["zip", "legacy"])
def save(request, torch):
    """torch.save in one of its formats."""
    return lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=request.param == "zip")


def assert_equal_to_torch(read, tensors):
    assert list(read) == list(tensors)
    for name, tensor in tensors.items():
        array = read[name]
        assert array.dtype.name == str(tensor.dtype).removeprefix("torch."), name
        assert array.shape == tuple(tensor.shape), name
        np.testing.assert_array_equal(array.astype(np.float64), tensor.double().detach().numpy(), name)


def test_tensors_of_every_kind(torch, save, tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "plain": base,
        "transposed": base.T,
        "slice": base[1:, ::2],  # Offset, strides and a storage shared with "plain".
        "expanded": torch.ones(1, 3).expand(5, 3),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    }
    for dtype in ("float16", "bfloat16", "float64", "int32", "int16", "int8", "uint8", "bool"):
        tensors[dtype] = torch.tensor([0, 1, 1]).to(getattr(torch, dtype))
    save(tensors, tmp_path / "weights.pth")
    assert_equal_to_torch(read_torch_file(tmp_path / "weights.pth"), tensors)


def test_checkpoint_with_a_state_dict_inside(torch, save, tmp_path):
    state = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).state_dict()
    optimizer = {
        "state": {0: {"exp_avg": torch.zeros(2)}},
        "param_groups": [{"lr": 1e-3, "betas": (0.5, 0.9)}],
    }
    save({"epoch": 3, "note": "x", "optimizer": optimizer, "state_dict": state}, tmp_path / "last.ckpt")
    assert_equal_to_torch(read_torch_file(tmp_path / "last.ckpt"), state)


def test_the_callbacks_of_a_lightning_checkpoint_are_names(torch, save, tmp_path, monkeypatch):
    """CompVis's published checkpoints have a class as a key beside the weights; it is not called."""
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    state = {"a": torch.ones(2)}
    save({"callbacks": {module.ModelCheckpoint: {"best": 1.0}}, "state_dict": state}, tmp_path / "last.ckpt")
    assert_equal_to_torch(read_torch_file(tmp_path / "last.ckpt"), state)


def test_safetensors(torch, tmp_path):
    from safetensors.torch import save_file

    tensors = {"a": torch.randn(2, 3), "b": torch.arange(3).bfloat16(), "c": torch.ones(2).half()}
    save_file(tensors, tmp_path / "weights.safetensors")
    read = read_torch_file(tmp_path / "weights.safetensors")
    assert_equal_to_torch({name: read[name] for name in tensors}, tensors)


def test_safetensors_without_a_suffix(tmp_path):
    # As `files.local_copy` keeps what it fetched from a URL.
    path = tmp_path / "0123456789abcdef"
    path.write_bytes(safetensors.numpy.save({"weight": np.arange(6.0).reshape(2, 3)}))
    np.testing.assert_array_equal(read_torch_file(path)["weight"], np.arange(6.0).reshape(2, 3))


def test_whole_modules_are_refused(torch, save, tmp_path):
    save({"state_dict": {"a": torch.ones(2)}, "model": torch.nn.Linear(2, 2)}, tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"model.pth holds torch\.nn\.modules\.linear\.Linear beside"):
        read_torch_file(tmp_path / "model.pth")


def test_no_tensors(save, tmp_path):
    for value in ({"epoch": 1}, [1, 2], {"state_dict": 5}):
        save(value, tmp_path / "nothing.pth")
        with pytest.raises(UserError, match="nothing.pth holds no tensors"):
            read_torch_file(tmp_path / "nothing.pth")


def test_damaged_files(torch, save, tmp_path):
    path = tmp_path / "weights.pth"
    save({"a": torch.zeros(1000), "b": torch.zeros(1000)}, path)
    content = path.read_bytes()
    for length in (0, 10, len(content) // 10, len(content) // 2, len(content) - 100):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match="weights.pth is damaged, or not a file"):
            read_torch_file(path)


def test_files_that_are_something_else(tmp_path):
    for name, content in (("page.pth", b"<html>"), ("x.safetensors", b"<html>" * 9), ("n.pth", b"N.")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name} is damaged, or not a file"):
            read_torch_file(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(UserError, match="no data.pkl"):
        read_torch_file(tmp_path / "other.zip")
    for name in ("absent.pth", "absent.safetensors", "."):
        with pytest.raises(UserError, match="Cannot read the weights in "):
            read_torch_file(tmp_path / name)


class Runs:
    """Runs `function(*args)` where it is unpickled."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_in_a_file_is_run(tmp_path, protocol):
    path, marker = tmp_path / "weights.pth", tmp_path / "marker"
    for evil, named in (
        (Runs(os.mkdir, str(marker)), r"posix\.mkdir"),
        (Runs(eval, f"__import__('os').mkdir({str(marker)!r})"), r"__builtin__\.eval|builtins\.eval"),
    ):
        data = pickle.dumps({"state_dict": {}, "callbacks": evil}, protocol)
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("archive/data.pkl", data)
        # In the older format, in the place of each of its pickles.
        head = [pickle.dumps(value, 2) for value in (MAGIC, PROTOCOL, {}, {})]
        for content in (archive.getvalue(), *(b"".join(head[:n]) + data for n in range(5))):
            path.write_bytes(content)
            with pytest.raises(UserError, match=f"weights.pth holds ({named}) beside plain weights"):
                read_torch_file(path)
    assert not marker.exists()


def write_legacy(path, content, storage, saved_id):
    """The format before torch 1.6: `storage` stands for eight numbers, 0 to 7."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return saved_id if obj is storage else None

    with open(path, "wb") as file:
        for value in (MAGIC, PROTOCOL, {"little_endian": True}):
            pickle.dump(value, file, 2)
        Pickler(file, 2).dump(content)
        pickle.dump(["key"], file, 2)
        file.write(struct.pack("<q", 8) + np.arange(8, dtype=np.float32).tobytes())


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (9,), (1,)), (1, (2, 2), (1, 7)), (4, (2,), (-1,)), (-1, (2,), (1,))],
)
def test_a_forged_tensor_cannot_leave_its_storage(torch, tmp_path, offset, size, stride):
    storage = object()
    tensor = Runs(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, None)
    saved_id = ("storage", torch.FloatStorage, "key", "cpu", 8, None)
    write_legacy(tmp_path / "forged.pth", {"w": tensor}, storage, saved_id)
    with pytest.raises(UserError, match="forged.pth is damaged.*a tensor leaves its storage"):
        read_torch_file(tmp_path / "forged.pth")


def test_files_of_torch_0_1(tmp_path, monkeypatch):
    """Torchvision's VGG weights are of 2017, when a tensor was made empty and then given a state."""

    class FloatStorage:
        pass

    class FloatTensor:
        def __init__(self, *state):
            self.state = state

        def __reduce__(self):
            return FloatTensor, (), self.state

    class Parameter:
        def __init__(self, args, state):
            self.args, self.state = args, state

        def __reduce_ex__(self, protocol):
            return copyreg.__newobj__, (Parameter, *self.args), self.state

    # What the classes were called then; pickle looks them up while it writes.
    names = {"torch": (FloatStorage, FloatTensor), "torch.nn": (), "torch.nn.parameter": (Parameter,)}
    for module, classes in names.items():
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
        for each in classes:
            each.__module__, each.__qualname__ = module, each.__name__
            setattr(sys.modules[module], each.__name__, each)

    root, hooks = FloatStorage(), collections.OrderedDict()
    content = collections.OrderedDict(
        tensor=FloatTensor(root, 0, (2, 3), (3, 1)),
        parameter=Parameter((FloatTensor(root, 1, (2,), (2,)), True), (True, False, hooks)),
        older=Parameter((), (FloatTensor(root, 5, (1,), (1,)), None, hooks, True, False)),
    )
    # The last element: a view of the storage's last six numbers.
    saved_id = ("storage", FloatStorage, "key", "cuda:0", 8, ("view", 2, 6))
    write_legacy(tmp_path / "old.pth", content, root, saved_id)
    read = read_torch_file(tmp_path / "old.pth")
    assert {name: array.tolist() for name, array in read.items()} == {
        "tensor": [[2.0, 3.0, 4.0], [5.0, 6.0, 7.0]],
        "parameter": [3.0, 5.0],
        "older": [7.0],
    }
