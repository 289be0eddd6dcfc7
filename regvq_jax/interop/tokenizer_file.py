"""A tokenizer in one file: its tensors in safetensors, its fields as JSON in the file's metadata.

Tensors are float32 under the names of the parameters: "encoder/conv_in/kernel", "quantizer/codebook", ...
The metadata has one entry, "regvq_jax", with

    {"format_version": 1, "model": {"channels": 128, ...}, "quantizer": {"kind": "regularized", ...},
     "metadata": {...}}

where "metadata" is free: where the tokenizer came from, what was done to it.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from regvq_jax.errors import UserError
from regvq_jax.files import to_jsonable, write_bytes_atomic
from regvq_jax.models.layers import DTYPES
from regvq_jax.models.quantizer import KINDS, LOGITS, Quantizer
from regvq_jax.models.tokenizer import ARCHITECTURES, ImageTokenizer

PyTree = Any
FORMAT_VERSION = 1
ENTRY = "regvq_jax"
# Linen's own, and the one submodule.
NO_SCALARS = ("parent", "name", "quantizer")


def save_tokenizer(
    path: str | os.PathLike, model: ImageTokenizer, params: PyTree, metadata: Mapping[str, Any] | None = None
) -> None:
    """Writes a tokenizer to one .safetensors file, whole or not at all.

    Args:
        path: of the file; its directory exists.
        model: the network.
        params: its parameters.
        metadata: anything that JSON can say, for `load_tokenizer_file` to return.

    Raises:
        UserError: no space, no permission, or no such directory.
    """
    content = {
        "format_version": FORMAT_VERSION,
        "model": _scalar_fields(model),
        "quantizer": _scalar_fields(model.quantizer),
        "metadata": to_jsonable(dict(metadata or {})),
    }
    # Contiguous: safetensors writes the memory of an array as it lies.
    tensors = {_name(key): np.ascontiguousarray(value) for key, value in jax.tree.leaves_with_path(params)}
    write_bytes_atomic(path, safetensors.numpy.save(tensors, {ENTRY: json.dumps(content)}))


def load_tokenizer_file(path: str | os.PathLike) -> tuple[ImageTokenizer, PyTree, dict[str, Any]]:
    """Reads a file of `save_tokenizer`.

    Args:
        path: of the file.

    Returns:
        (model, params as numpy arrays, metadata).

    Raises:
        UserError: there is no such file, it is not one of ours, or its tensors do not fit its fields.
    """
    path = Path(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            entries = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except OSError as error:
        raise UserError(f"Cannot read the tokenizer file {path}: {error.strerror or error}.") from error
    except safetensors.SafetensorError as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}); give a file that Tokenizer.save wrote."
        ) from error
    model, metadata = _parse(path, entries)
    return model, _fit(path, tensors, param_shapes(model)), metadata


@functools.lru_cache(maxsize=16)  # Tracing takes seconds, and a run asks in each stage.
def param_shapes(model: ImageTokenizer) -> PyTree:
    """The parameters of a tokenizer network as `jax.ShapeDtypeStruct`s, whatever the size of its images."""
    side = model.downsampling
    images = jax.ShapeDtypeStruct((1, side, side, model.out_channels), np.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


def _scalar_fields(module: ImageTokenizer | Quantizer) -> dict[str, Any]:
    fields = {
        field.name: getattr(module, field.name)
        for field in dataclasses.fields(module)
        if field.name not in NO_SCALARS
    }
    if "dtype" in fields:
        fields["dtype"] = np.dtype(fields["dtype"]).name
    return to_jsonable(fields)


def _parse(path: Path, entries: Mapping[str, str]) -> tuple[ImageTokenizer, dict[str, Any]]:
    """(model, metadata) from the entries of the file's metadata."""
    if ENTRY not in entries:
        raise UserError(
            f"{path} is a safetensors file, but not one that Tokenizer.save wrote: its metadata has no "
            f'entry "{ENTRY}".'
        )
    try:
        content = json.loads(entries[ENTRY])
        if content["format_version"] == FORMAT_VERSION:
            quantizer = Quantizer(**_field_values(content["quantizer"]))
            for name, known in (
                (content["model"]["architecture"], ARCHITECTURES),
                (quantizer.kind, KINDS),
                (quantizer.logits, LOGITS),
            ):
                if name not in known:
                    raise ValueError(f"unknown {name!r}")
            return ImageTokenizer(quantizer, **_field_values(content["model"])), content["metadata"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} has fields that this version of regvq_jax does not know ({error}): use the version that "
            "wrote it."
        ) from error
    raise UserError(
        f"{path} has format {content['format_version']}, and this version of regvq_jax reads format "
        f"{FORMAT_VERSION}: use the version that wrote it."
    )


def _field_values(fields: dict[str, Any]) -> dict[str, Any]:
    """What JSON cannot say: tuples and dtypes."""
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    return values | {name: DTYPES[value] for name, value in fields.items() if name == "dtype"}


def _fit(path: Path, tensors: dict[str, np.ndarray], shapes: PyTree) -> PyTree:
    """The tensors as the tree that the network wants; UserError for the first that does not fit."""
    wanted = {_name(key): leaf for key, leaf in jax.tree.leaves_with_path(shapes)}
    for name in sorted(wanted.keys() | tensors.keys()):
        found, want = (_describe(tree[name]) if name in tree else "absent" for tree in (tensors, wanted))
        if found != want:
            raise UserError(
                f"{path} does not fit its own fields: the tensor {name} is {found} in the file and {want} in "
                "the network; write the file again."
            )
    return jax.tree.map_with_path(lambda key, _: tensors[_name(key)], shapes)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _describe(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
