"""A prior's condition from the host to the network: what an element gives, and what the network is told."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from regvq_jax.errors import UserError

PyTree = Any
log = logging.getLogger("regvq_jax")
# The entry of a source's or token cache's element that each kind reads.
INPUTS = {"none": "", "class": "class", "text": "text_tokens", "map": "labels", "map_tokens": "map_tokens"}
KINDS = tuple(INPUTS)


@dataclasses.dataclass(frozen=True)
class Condition:
    """One kind of condition, on the host and on the devices.

    Attributes:
        kind: one of `KINDS`.
        conditioner: the Linen module of `models.conditioners` that learns with the prior; None for "none".
        size: classes of "class" and of the maps' ids; 0 = neither.
        length: L, the most text ids of a caption.
        map_shape: of the array that a batch holds: (H, W) of "map", (N,) of "map_tokens".
        encode_fn: (captions, length) -> int32 [n, length], of "text".
        lengths_fn: captions -> int [n], the ids that they need uncut.
        frozen_module: a frozen text encoder, ids -> (features, mask), whose parameters are
            `frozen["text"]`; None = the conditioner reads the ids.
        encode_maps_fn: (parameters, uint8 [B, H, W]) -> int32 [B, h, w], of "map_tokens", whose parameters
            are `frozen["map_tokenizer"]`.
    """

    kind: str = "none"
    conditioner: nn.Module | None = None
    size: int = 0
    length: int = 0
    map_shape: tuple[int, ...] = ()
    encode_fn: Callable[[Sequence[str], int], np.ndarray] | None = None
    lengths_fn: Callable[[Sequence[str]], np.ndarray] | None = None
    frozen_module: nn.Module | None = None
    encode_maps_fn: Callable[[PyTree, jax.Array], jax.Array] | None = None

    def example(self) -> np.ndarray | None:
        """An array of one row as `embed` takes it, for tracing."""
        if self.kind == "none":
            return None
        shape = {"class": (), "text": (self.length,), "map": self.map_shape, "map_tokens": self.map_shape}
        return np.zeros((1, *shape[self.kind]), np.uint8 if self.kind == "map" else np.int32)

    def embed(self, frozen: PyTree, inputs: jax.Array | None):
        """What the conditioner takes, from a batch's array; pure.

        Args:
            frozen: {"text": ..., "map_tokenizer": ...} as far as this condition needs them.
            inputs: int32 [B, L] ids; int32 [B] classes; uint8 [B, H, W] maps; int32 [B, N] map tokens; None
                without a condition.
        """
        if self.frozen_module is not None:
            return self.frozen_module.apply({"params": frozen["text"]}, inputs)
        if self.kind == "map_tokens" and inputs.ndim == 3:
            codes = self.encode_maps_fn(frozen["map_tokenizer"], inputs)
            return codes.reshape(inputs.shape[0], -1)
        return inputs

    def inputs(
        self,
        *,
        text: Sequence[str] | None = None,
        classes: Sequence[int] | None = None,
        labels: np.ndarray | None = None,
    ) -> np.ndarray | None:
        """A user's conditions as the array that `embed` takes.

        Args:
            text: captions, for "text"; "" = no condition.
            classes: ids, for "class"; -1 = no condition.
            labels: int [B, H, W], for "map" and "map_tokens".

        Raises:
            UserError: not what this prior was trained on, or ids outside the classes.
        """
        given = {
            name: value
            for name, value in (("text", text), ("classes", classes), ("labels", labels))
            if value is not None
        }
        wanted = {"none": (), "class": ("classes",), "text": ("text",)}.get(self.kind, ("labels",))
        if tuple(given) != wanted:
            raise UserError(
                f"This prior {_DESCRIPTIONS[self.kind]}; got {', '.join(given) or 'none of these'}."
            )
        if not wanted:
            return None
        if self.kind == "text":
            if isinstance(text, str):
                raise UserError('Give a list of captions, text=["a red heart", ...], not one string.')
            cut = int((np.asarray(self.lengths_fn(list(text))) > self.length).sum())
            if cut:
                log.warning("%d of %d captions have more than %d ids: cut.", cut, len(text), self.length)
            return np.asarray(self.encode_fn(list(text), self.length), np.int32)
        ids = np.asarray(classes if self.kind == "class" else labels)
        lowest = -1 if self.kind == "class" else 0
        dims = 1 if self.kind == "class" else 3
        if ids.ndim != dims or not np.issubdtype(ids.dtype, np.integer):
            raise UserError(f"{wanted[0]} must be int with {dims} dimension(s), got {ids.dtype} {ids.shape}.")
        if ids.size and not (lowest <= ids.min() and ids.max() < self.size):
            raise UserError(
                f"{wanted[0]} hold ids from {ids.min()} to {ids.max()}; this prior knows 0 to "
                f"{self.size - 1}."
            )
        return ids.astype(np.int32 if self.kind == "class" else np.uint8)


_DESCRIPTIONS = {
    "none": "was trained without a condition: give num_images=16, and no text, classes or labels",
    "class": "draws from classes: give classes=[3, 7, ...]",
    "text": 'draws from captions: give text=["a red heart", ...]',
    "map": "draws from label maps: give labels=int [B, H, W]",
    "map_tokens": "draws from label maps: give labels=int [B, H, W]",
}


def keep_condition(
    element: dict[str, Any],
    rng: np.random.Generator | None = None,
    *,
    names: tuple[str, ...],
    condition_name: str,
) -> dict[str, Any]:
    """A transform: leaves `names` of an element, and `condition_name` ("" = none) as "condition"."""
    del rng
    result = {name: element[name] for name in names}
    if condition_name:
        result["condition"] = element[condition_name]
    return result


def host_transforms(
    condition: Condition, names: tuple[str, ...], condition_name: str, encode_text: Callable
) -> list[Callable]:
    """Transforms of an element to its batch entries `names` and "condition".

    Args:
        condition: see `Condition`.
        names: entries to keep, ("tokens",) or ("image",).
        condition_name: the entry that becomes "condition", "" = none.
        encode_text: `data.transforms.encode_text`.
    """
    last = functools.partial(keep_condition, names=names, condition_name=condition_name)
    if condition.kind != "text":
        return [last]
    return [functools.partial(encode_text, encode_fn=condition.encode_fn, length=condition.length), last]
