"""The weights of FID's InceptionV3: found, known by their sha256, and folded into convolutions.

They may not be packaged, and no package registry has them: they come from a file or URL that the user
names, from REGVQ_WEIGHTS, from an earlier run, or from one of `MIRRORS`.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from regvq_jax.errors import UserError
from regvq_jax.files import cache_dir, local_copy, report_write_errors, write_bytes_atomic
from regvq_jax.interop.torch_file import read_torch_file
from regvq_jax.models.inception import INPUT_SIZE, InceptionV3
from regvq_jax.progress import log

ENVIRONMENT = "REGVQ_WEIGHTS"
# Both hold the weights of TensorFlow's graph of 2015-12-05, under the same names; the digits in the file
# names begin the sha256, as is the custom of torch.hub.
FILES = {
    "weights-inception-2015-12-05-6726825d.pth": "6726825d",  # torch-fidelity's
    "pt_inception-2015-12-05-6726825d.pth": "6726825d",  # pytorch-fid's
}
MIRRORS = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth",
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth",
)
BATCH_NORM_EPSILON = 1e-3

Params = dict[str, Any]


def load_inception(weights: str | os.PathLike = "") -> tuple[InceptionV3, Params, str]:
    """FID's network and its weights.

    Args:
        weights: file or URL of torch-fidelity's or pytorch-fid's weights; "" = REGVQ_WEIGHTS (a file, a URL,
            or a folder that holds one), else what an earlier run fetched, else `MIRRORS`. Other weights are
            taken where the name ends in "#sha256=DIGITS", the first 8 or more of the file's sha256.

    Returns:
        The module, its parameters as float32 numpy arrays, and the sha256 of the file.

    Raises:
        UserError: there is no such file, its sha256 is another, or it is not that network's.
    """
    tensors, digest, path = _read_once(os.fspath(weights))
    module = InceptionV3()
    image = jax.ShapeDtypeStruct((1, INPUT_SIZE, INPUT_SIZE, 3), np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    params = {}
    for name, expected in shapes.items():
        if name == "fc":
            kernel = _get(tensors, "fc.weight", expected["kernel"].shape[::-1], path)
            params[name] = {"kernel": kernel.T.astype(np.float32)}
            continue
        height, width, inputs, outputs = expected["kernel"].shape
        kernel = _get(tensors, f"{name}.conv.weight", (outputs, inputs, height, width), path)
        scale, bias, mean, variance = (
            _get(tensors, f"{name}.bn.{field}", (outputs,), path)
            for field in ("weight", "bias", "running_mean", "running_var")
        )
        # In float64: folding must not cost digits.
        factor = scale / np.sqrt(variance + BATCH_NORM_EPSILON)
        params[name] = {
            "kernel": (kernel.transpose(2, 3, 1, 0) * factor).astype(np.float32),
            "bias": (bias - mean * factor).astype(np.float32),
        }
    return module, params, digest


def _get(tensors: dict[str, np.ndarray], name: str, shape: tuple[int, ...], path: str) -> np.ndarray:
    found = tensors[name].shape if name in tensors else "missing"
    if found != tuple(shape):
        raise UserError(
            f"{path} is not FID's InceptionV3: {name} is {found}, expected {tuple(shape)}; name "
            f"{' or '.join(FILES)}."
        )
    return tensors[name].astype(np.float64)


def _read_once(weights: str) -> tuple[dict[str, np.ndarray], str, str]:
    """(tensors, sha256, path); a PyTorch file is read once with care and kept as safetensors."""
    source = weights or os.environ.get(ENVIRONMENT, "")
    name, _, wanted = source.partition("#sha256=")
    if "#sha256=" in source and (len(wanted) < 8 or set(wanted.lower()) - set("0123456789abcdef")):
        raise UserError(f"{source}: after #sha256= give at least 8 hexadecimal digits.")
    if wanted and not name:
        raise UserError(f"{source} names no file: write FILE#sha256=DIGITS.")
    kept = cache_dir("weights")
    path = _named_file(name, from_environment=not weights) if name else None
    if path is None:
        known = [file for digits in FILES.values() for file in kept.glob(f"inception-{digits}*.safetensors")]
        if known:
            digest = known[0].stem.removeprefix("inception-")
            return _load_copy(known[0]), digest, str(known[0])
        path = _fetch()
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"Cannot read the weights in {path}: {error.strerror or error}.") from error
    allowed = (wanted.lower(),) if wanted else tuple(FILES.values())
    if not digest.startswith(allowed):
        raise UserError(
            f"{path} has the sha256 {digest[:16]}..., but FID's begins with {' or '.join(set(allowed))}: "
            f"fetch the file again ({MIRRORS[0] if MIRRORS else 'from where you had it'}), or, to use these "
            f'on purpose, add "#sha256={digest[:16]}" to its name; the figures are then nobody else\'s.'
        )
    copy = kept / f"inception-{digest}.safetensors"
    if copy.exists():
        return _load_copy(copy), digest, str(path)
    tensors = read_torch_file(path)
    tensors = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
    with report_write_errors(copy):
        copy.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(copy, safetensors.numpy.save(tensors))
    return tensors, digest, str(path)


def _load_copy(copy: Path) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load_file(copy)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{copy} is damaged ({error}): delete it, it will be made again.") from error


def _named_file(source: str, from_environment: bool) -> Path:
    """The file that the user or the environment names."""
    path = local_copy(source)
    if path.is_dir():
        for file in FILES:
            if (path / file).is_file():
                return path / file
        raise UserError(f"{source} has no {' or '.join(FILES)}: put one of them there.")
    if not path.is_file():
        raise UserError(
            f"The weights {source} do not exist{f' ({ENVIRONMENT} names them)' * from_environment}; {_ADVICE}"
        )
    return path


def _fetch() -> Path:
    """The file of the first mirror that answers."""
    for url in MIRRORS:
        log.info("fetching FID's InceptionV3, 91 MiB, from %s", url)
        try:
            return local_copy(url)
        except UserError as error:
            log.info("%s", error)
    raise UserError(f"FID's InceptionV3 could not be had from its mirrors; {_ADVICE}")


_ADVICE = (
    f"fetch {next(iter(FILES))} from torch-fidelity's releases on a machine with network and name it, as "
    f"--weights=FILE, in a config as protocols=('torch-fidelity@FILE',), or as {ENVIRONMENT}=FOLDER_OF_IT; "
    "protocols=() does without."
)
