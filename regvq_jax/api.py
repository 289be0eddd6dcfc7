"""The user's door: trained tokenizers and priors, from a workdir or a file, in Python."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from regvq_jax.errors import UserError
from regvq_jax.evaluate.samples import decode_codes, draw_tokens, split_levels
from regvq_jax.interop.tokenizer_file import save_tokenizer
from regvq_jax.mirror import local_workdir
from regvq_jax.models.tokenizer import ImageTokenizer
from regvq_jax.trained import TrainedPrior, load_prior, load_tokenizer, open_tokenizer
from regvq_jax.trainers import build_prior, build_sampling
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
            path: a workdir, or the URL of one, or a .safetensors file of `save`, of `regvq_jax.prune` or of
                an import.

        Raises:
            UserError: there is no such path; the directory is not a workdir or holds no checkpoint; or the
                file is no tokenizer.
        """
        return cls(*open_tokenizer(local_workdir(path).absolute()))

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

    def __init__(self, trained: TrainedPrior, tokenizer: Tokenizer, config: ConfigDict):
        self.tokenizer = tokenizer
        self._trained, self._config = trained, config
        prior, model, condition = trained.prior, trained.model, trained.condition
        self._sample = jax.jit(partial(draw_tokens, prior, model, condition), static_argnums=0)
        self._bound = jax.jit(partial(_bound, prior, model, condition), static_argnums=0)

    @classmethod
    def load(cls, workdir: str | Path) -> "Prior":
        """The averaged prior with the lowest held-out loss in a workdir, and its tokenizer.

        Raises:
            UserError: the directory is not a workdir or holds no prior.
        """
        directory = local_workdir(workdir).absolute()
        config = load_config(directory)
        network, tokenizer_params = load_tokenizer(config, directory)
        trained = load_prior(config, directory, network, tokenizer_params)
        return cls(trained, Tokenizer(network, tokenizer_params), config)

    def sample(
        self,
        key: jax.Array,
        *,
        text: Sequence[str] | None = None,
        classes: Sequence[int] | None = None,
        labels: np.ndarray | None = None,
        num_images: int | None = None,
        codes: np.ndarray | None = None,
        guidance: float | None = None,
        **settings: Any,
    ) -> jax.Array:
        """Draws images.

        Args:
            key: a random key, `jax.random.key(0)`; the same key and condition give the same images.
            text: one caption an image, for a prior trained on captions; "" = no condition.
            classes: one class an image, for a prior trained on classes; -1 = no condition.
            labels: int [B, H, W], one label map an image at the size of the images, for a prior trained on
                label maps.
            num_images: how many, for a prior trained without a condition.
            codes: int [B, h, w] as from `Tokenizer.encode`, -1 where the prior shall draw: the rest is kept
                (completion, in- and outpainting). None draws everything.
            guidance: classifier-free guidance scale, 1 = none; the config's by default.
            **settings: other fields of the config's `sample` group, such as steps=12 or top_k=100.

        Returns:
            float32 [B, H, W, 3] in [-1, 1].

        Raises:
            UserError: another condition than the prior was trained on; codes that are not; unknown settings.
        """
        inputs, rows = self._inputs(text, classes, labels, num_images)
        if "captions" in settings:
            raise UserError("captions is for the sample sheet of a run; give text=[...].")
        if guidance is not None:
            if inputs is None:
                raise UserError("This prior was trained without a condition: there is nothing to guide to.")
            settings["guidance"] = guidance
        chosen = build_sampling.sample_settings(self._config, **settings, captions=())
        build_sampling.check_sampling(chosen, self._trained.prior, self._trained.model.codebook_size)
        if codes is None:
            codes = np.full((rows, *self._trained.model.grid), -1)
        tokens = self._tokens(codes, rows, lowest=-1)
        keys = jax.random.split(_typed(key), rows)
        trained = self._trained
        drawn = self._sample(chosen, trained.params, trained.frozen, keys, inputs, tokens)
        return self.tokenizer.decode(split_levels(self.tokenizer._model, drawn))

    def log_likelihood(
        self,
        codes: np.ndarray,
        *,
        text: Sequence[str] | None = None,
        classes: Sequence[int] | None = None,
        labels: np.ndarray | None = None,
        key: jax.Array | None = None,
        num_draws: int = 16,
    ) -> np.ndarray:
        """log p(codes | condition): exact for an autoregressive prior, a lower bound in the mean for others.

        Args:
            codes: int [B, h, w] as from `Tokenizer.encode`.
            text, classes, labels: as in `sample`.
            key: for what the bound draws; `jax.random.key(0)` by default.
            num_draws: of the bound, averaged; not used where it is exact.

        Returns:
            float64 [B], in nats; divide by -log(2) * h * w for bits a token.

        Raises:
            UserError: as `sample`.
        """
        inputs, rows = self._inputs(text, classes, labels, len(codes))
        tokens = self._tokens(codes, rows, lowest=0)
        trained = self._trained
        key = _typed(jax.random.key(0) if key is None else key)
        bounds = self._bound(num_draws, trained.params, trained.frozen, tokens, inputs, key)
        return -np.asarray(bounds, np.float64)

    def _inputs(self, text, classes, labels, num_images) -> tuple[np.ndarray | None, int]:
        condition = self._trained.condition
        inputs = condition.inputs(text=text, classes=classes, labels=labels)
        if inputs is None:
            if not num_images:
                raise UserError("This prior was trained without a condition: say how many, num_images=16.")
            return None, num_images
        if num_images not in (None, len(inputs)):
            raise UserError(f"num_images={num_images}, but there are {len(inputs)} conditions: leave it out.")
        if condition.kind in ("map", "map_tokens"):
            side = self._config.data.image_size
            if inputs.shape[1:] != (side, side):
                raise UserError(
                    f"labels must be maps of {side} x {side}, got {inputs.shape[1]} x {inputs.shape[2]}; "
                    "resize them by nearest."
                )
        return inputs, len(inputs)

    def _tokens(self, codes: np.ndarray, rows: int, lowest: int) -> np.ndarray:
        """A user's codes, -1 where one is wanted, as the prior's tokens int32 [B, N]."""
        codes, model = np.asarray(codes), self._trained.model
        if not np.issubdtype(codes.dtype, np.integer) or codes.size != rows * model.num_tokens:
            raise UserError(
                f"codes must be int [{rows}, {model.grid[0]}, {model.grid[1]}], got {codes.dtype} "
                f"{list(codes.shape)}."
            )
        if codes.min() < lowest or codes.max() >= model.codebook_size:
            raise UserError(
                f"codes go from {codes.min()} to {codes.max()}; here they are {lowest} to "
                f"{model.codebook_size - 1}: do they come from another tokenizer?"
            )
        tokens = codes.reshape(rows, model.num_tokens)
        return np.where(tokens < 0, model.special_id, tokens).astype(np.int32)


def _encode(model: ImageTokenizer, params: PyTree, images: jax.Array) -> jax.Array:
    return model.apply({"params": params}, images, method="encode")


def _bound(prior, model, condition, draws, params, frozen, tokens, inputs, key) -> jax.Array:
    embedded = None if inputs is None else condition.embed(frozen, inputs)
    return build_prior.bound(prior, model, params, tokens, embedded, key, draws)


def _typed(key: jax.Array) -> jax.Array:
    """A typed key, also from the arrays of `jax.random.PRNGKey`."""
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
