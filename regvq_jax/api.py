"""The user's door: trained tokenizers and priors, from a workdir or a file, in Python."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regvq_jax.errors import UserError
from regvq_jax.evaluate.samples import (
    SampleSettings,
    decode_codes,
    encode_captions,
    sample_tokens,
    split_levels,
)
from regvq_jax.interop.tokenizer_file import save_tokenizer
from regvq_jax.models.prior import PriorNet
from regvq_jax.models.tokenizer import ImageTokenizer
from regvq_jax.settings import from_config
from regvq_jax.trained import load_prior, load_tokenizer, open_tokenizer
from regvq_jax.workdir import load_config

PyTree = Any


class Tokenizer:
    """A trained image tokenizer.

    Attributes:
        codebook_size: K, number of codes.
        downsampling: pixels a token, along one side.
        depth: R, codes a token; more than 1 for a residual tokenizer.
    """

    def __init__(self, model: ImageTokenizer, params: PyTree):
        self.codebook_size = model.quantizer.codebook_size
        self.downsampling = model.downsampling
        self.depth = model.quantizer.depth
        self._model, self._params = model, params
        self._encode = jax.jit(partial(_encode, model))
        self._decode = jax.jit(partial(decode_codes, model))

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """The tokenizer of a run, averaged and of its newest checkpoint, or that of an exported file.

        Args:
            path: a workdir, or a .safetensors file of `save`, of `regvq_jax.prune` or of an import.

        Raises:
            UserError: there is no such path; the directory is not a workdir or holds no checkpoint; or the
                file is no tokenizer.
        """
        return cls(*open_tokenizer(Path(path).expanduser().absolute()))

    def save(self, path: str | Path, metadata: Mapping[str, Any] | None = None) -> None:
        """Writes the tokenizer to one .safetensors file, for `load` or a config's `tokenizer` field.

        Args:
            path: of the file; its directory exists.
            metadata: anything that JSON can say, kept in the file.

        Raises:
            UserError: no space, no permission, or no such directory.
        """
        save_tokenizer(Path(path).expanduser(), self._model, self._params, metadata)

    def encode(self, images: jax.Array) -> jax.Array:
        """Images to codes.

        Args:
            images: float [B, H, W, 3] in [-1, 1]; H and W multiples of `downsampling`.

        Returns:
            int32 [B, H / downsampling, W / downsampling], best-matching codes; of a residual tokenizer
            [..., R], the coarsest first.

        Raises:
            UserError: another shape or dtype.
        """
        if images.ndim != 4 or images.shape[-1] != 3 or not jnp.issubdtype(images.dtype, jnp.floating):
            raise UserError(
                "Tokenizer.encode takes float images [B, H, W, 3] in [-1, 1], got "
                f"{images.dtype} {list(images.shape)}; divide uint8 images by 127.5 and subtract 1."
            )
        if images.shape[1] % self.downsampling or images.shape[2] % self.downsampling:
            raise UserError(
                f"Tokenizer.encode takes images with sides that are multiples of {self.downsampling}, "
                f"got {images.shape[1]} x {images.shape[2]}; crop or resize them."
            )
        return self._encode(self._params, images)

    def decode(self, codes: jax.Array) -> jax.Array:
        """Codes to images.

        Args:
            codes: int [B, h, w] in [0, K); for a residual tokenizer [B, h, w, R].

        Returns:
            float32 [B, h * downsampling, w * downsampling, 3] in [-1, 1].

        Raises:
            UserError: another shape or dtype, or a code outside the codebook.
        """
        codes = np.asarray(codes)
        levels = () if self.depth == 1 else (self.depth,)
        right_shape = codes.ndim == 3 + len(levels) and codes.shape[3:] == levels
        if not right_shape or not np.issubdtype(codes.dtype, np.integer):
            shape = ", ".join(["B", "h", "w", *map(str, levels)])
            raise UserError(
                f"Tokenizer.decode takes int codes [{shape}], got {codes.dtype} {list(codes.shape)}."
            )
        if codes.size and not (0 <= codes.min() and codes.max() < self.codebook_size):
            raise UserError(
                f"Tokenizer.decode got codes from {codes.min()} to {codes.max()}; this codebook has 0 to "
                f"{self.codebook_size - 1}: do they come from another tokenizer?"
            )
        return self._decode(self._params, codes.astype(np.int32))


class Prior:
    """A trained prior with the tokenizer whose tokens it draws."""

    def __init__(self, model: PriorNet, params: PyTree, tokenizer: Tokenizer, settings: SampleSettings):
        self.tokenizer = tokenizer
        self._model, self._params, self._settings = model, params, settings
        self._sample = jax.jit(partial(sample_tokens, model), static_argnums=0)

    @classmethod
    def load(cls, workdir: str | Path) -> "Prior":
        """The averaged prior with the lowest held-out loss in a workdir, and its tokenizer.

        Raises:
            UserError: the directory is not a workdir or holds no prior.
        """
        directory = Path(workdir).expanduser().absolute()
        config = load_config(directory)
        network, tokenizer_params = load_tokenizer(config, directory)
        model, params = load_prior(config, directory, network, tokenizer_params)
        settings = from_config(SampleSettings, config.sample, "sample")
        return cls(model, params, Tokenizer(network, tokenizer_params), settings)

    def sample(
        self,
        key: jax.Array,
        *,
        text: Sequence[str] | None = None,
        num_images: int | None = None,
        guidance: float | None = None,
        **settings: Any,
    ) -> jax.Array:
        """Draws images.

        Args:
            key: a random key, `jax.random.key(0)`; the same key and text give the same images.
            text: one caption an image, for a prior trained on captions; "" = no condition.
            num_images: how many, for a prior trained without captions.
            guidance: classifier-free guidance scale, 1 = none; the config's by default.
            **settings: other fields of `SampleSettings`, such as steps=12.

        Returns:
            float32 [B, H, W, 3] in [-1, 1].

        Raises:
            UserError: captions for an unconditional prior or none for a conditional one; unknown settings.
        """
        conditional = self._model.text_length > 0
        if conditional and (text is None or isinstance(text, str)):
            raise UserError('This prior draws from captions: give a list, text=["a red heart", ...].')
        if not conditional and (text is not None or not num_images):
            raise UserError("This prior was trained without captions: give num_images=16, and no text.")
        if guidance is not None:
            settings["guidance"] = float(guidance)
        values = {**vars(self._settings), **settings, "captions": ()}
        chosen = from_config(SampleSettings, values, "sample")
        keys = jax.random.split(key, len(text) if conditional else num_images)
        text_tokens = encode_captions(self._model, text or ())
        tokens = self._sample(chosen, self._params, keys, text_tokens)
        return self.tokenizer.decode(split_levels(self.tokenizer._model, tokens))


def _encode(model: ImageTokenizer, params: PyTree, images: jax.Array) -> jax.Array:
    return model.apply({"params": params}, images, method="encode")
