"""Reads the weights in a PyTorch file, without torch and without running anything the file asks for.

torch.save writes a pickle that refers to raw blocks of numbers ("storages") beside it: a zip archive
since torch 1.6, one stream before. A pickle can name any function and have it called; here it gets only
the few below that lay out plain tensors.
"""

import collections
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from regvq_jax.errors import UserError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

_DTYPES = {
    "Float": np.dtype(np.float32),
    "Double": np.dtype(np.float64),
    "Half": np.dtype(np.float16),
    "BFloat16": np.dtype(ml_dtypes.bfloat16),
    "Long": np.dtype(np.int64),
    "Int": np.dtype(np.int32),
    "Short": np.dtype(np.int16),
    "Char": np.dtype(np.int8),
    "Byte": np.dtype(np.uint8),
    "Bool": np.dtype(np.bool_),
}

# What pickle and zipfile raise on bytes that are no pickle or zip, or that end too early.
_DAMAGE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    safetensors.SafetensorError,
    struct.error,
    zlib.error,
    EOFError,
    MemoryError,
    OverflowError,
    RuntimeError,
    AttributeError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
)


def read_torch_file(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a state dict that torch.save or safetensors wrote.

    Args:
        path: a `.safetensors` file, or one of torch.save in either of its formats; where the state dict
            lies under "state_dict" in a larger checkpoint, that is taken. Other values are left out.

    Returns:
        The tensors by name, with the file's shapes, dtypes and order; some may share memory, so do not
        write to them.

    Raises:
        UserError: the file is missing, damaged or no such file; it holds something else than plain weights,
            such as a whole module; or it has no tensors.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors" or _is_safetensors(path):
            content = safetensors.numpy.load_file(path)
        else:
            with open(path, "rb") as file:
                read = _read_zip if zipfile.is_zipfile(file) else _read_legacy
                file.seek(0)
                content = read(file, path)
    except OSError as error:
        raise UserError(f"Cannot read the weights in {path}: {error.strerror or error}.") from error
    except _DAMAGE as error:
        raise UserError(
            f"{path} is damaged, or not a file of torch.save or safetensors ({error}); "
            f"fetch it or save it again."
        ) from error
    if isinstance(content, Mapping) and "state_dict" in content:
        content = content["state_dict"]
    content = content if isinstance(content, Mapping) else {}
    tensors = {name: _to_array(value) for name, value in content.items()}
    tensors = {
        name: array
        for name, array in tensors.items()
        if isinstance(name, str) and isinstance(array, np.ndarray)
    }
    if not tensors:
        raise UserError(f"{path} holds no tensors; save weights with torch.save(model.state_dict(), PATH).")
    return tensors


def _is_safetensors(path: Path) -> bool:
    """By its content: what was fetched from a URL is kept under a name without a suffix."""
    with open(path, "rb") as file:
        start = file.read(9)
    # The length of a header in JSON, and its first letter; no zip and no pickle has this "{" there.
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < 10**8


def _read_zip(file, path: Path) -> Any:
    with zipfile.ZipFile(file) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if not pickles:
            raise ValueError("the archive has no data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("its numbers are big-endian")

        def load_storage(key: str, dtype: np.dtype, length: int) -> np.ndarray:
            return np.frombuffer(archive.read(f"{root}data/{key}"), dtype, length)

        with archive.open(pickles[0]) as stream:
            return _WeightsUnpickler(stream, path, load_storage).load()


def _read_legacy(file, path: Path) -> Any:
    size = os.fstat(file.fileno()).st_size
    storages = {}

    def load_storage(key: str, dtype: np.dtype, length: int) -> np.ndarray:
        # The numbers follow the pickle: room for them first, so that tensors can be views of it.
        if length * dtype.itemsize > size:
            raise ValueError("the file ends early")
        storages[key] = np.empty(length, dtype)
        return storages[key]

    def load() -> Any:
        return _WeightsUnpickler(file, path, load_storage).load()

    if load() != _LEGACY_MAGIC:
        raise ValueError("it does not begin with torch's magic number")
    if load() != _LEGACY_PROTOCOL:
        raise ValueError("it has an unknown protocol version")
    load()  # Sizes of the C types of the machine that wrote it; the numbers are little-endian on any.
    content = load()
    for key in load():
        storage = storages[key]
        (length,) = struct.unpack("<q", file.read(8))
        if length != storage.size or file.readinto(storage.view(np.uint8)) != storage.nbytes:
            raise ValueError("the file ends early")
    return content


class _WeightsUnpickler(pickle.Unpickler):
    """Lays out tensors as views of their storages; refuses any other class or function.

    Args:
        stream: of the pickle.
        path: for messages.
        load_storage: `load_storage(key, dtype, length)` gives the numbers of a storage.
    """

    def __init__(self, stream, path: Path, load_storage):
        super().__init__(stream, encoding="utf-8")
        self._path = path
        self._load_storage = load_storage
        self._storages = {}
        # Bound methods, types of C and strings: a pickle can set the attributes of other objects.
        self._allowed = {
            "collections.OrderedDict": collections.OrderedDict,
            "torch.Size": tuple,
            "torch._utils._rebuild_tensor": self._rebuild_tensor,
            "torch._utils._rebuild_tensor_v2": self._rebuild_tensor,
            "torch._utils._rebuild_parameter": self._rebuild_parameter,
            "torch.nn.parameter.Parameter": _OldTensor,
            # The key of an entry beside the weights in CompVis's checkpoints: a name, never called.
            "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint": "ModelCheckpoint",
        }
        for name in _DTYPES:
            self._allowed[f"torch.{name}Storage"] = name
            self._allowed[f"torch.{name}Tensor"] = self._allowed[f"torch.cuda.{name}Tensor"] = _OldTensor

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in self._allowed:
            raise UserError(
                f"{self._path} holds {module}.{name} beside plain weights, which is not loaded for safety; "
                f"save the weights alone, with torch.save(model.state_dict(), PATH) or as safetensors."
            )
        return self._allowed[f"{module}.{name}"]

    def persistent_load(self, saved_id: tuple) -> np.ndarray:
        _, storage_type, key, _, length, *view = saved_id
        if key not in self._storages:
            self._storages[key] = self._load_storage(key, _DTYPES[storage_type], length)
        storage = self._storages[key]
        if view and view[0] is not None:
            _, start, view_length = view[0]
            storage = storage[start : start + view_length]
        return storage

    def _rebuild_tensor(self, storage, offset, size, stride, *_) -> np.ndarray:
        return _as_tensor(storage, offset, size, stride)

    def _rebuild_parameter(self, tensor, *_) -> np.ndarray:
        return tensor


class _OldTensor:
    """A tensor or a parameter as torch 0.1 wrote them, made empty and then given a state."""

    def __new__(cls, data=None, *_):
        tensor = super().__new__(cls)
        tensor.data = _to_array(data)
        return tensor

    def __setstate__(self, state: tuple) -> None:
        match state:
            case storage, offset, size, stride:
                self.data = _as_tensor(storage, offset, size, stride)
            case data, _, _, _, _:
                self.data = _to_array(data)
        # Three values belong to a parameter that was made with its data.


def _as_tensor(storage: np.ndarray, offset: int, size: tuple, stride: tuple) -> np.ndarray:
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min(offset, 0, *size, *stride) < 0 or (0 not in size and last >= storage.size):
        raise ValueError("a tensor leaves its storage")
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)


def _to_array(value: Any) -> Any:
    return value.data if isinstance(value, _OldTensor) else value
