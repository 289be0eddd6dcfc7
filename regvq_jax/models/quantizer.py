"""The parameters of a quantizer, and which of `regvq_jax.quantize` they are given to."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from regvq_jax import quantize
from regvq_jax.quantize import QuantizeOutput

# [positions, K] arrays of more elements than this, over all devices, are made in tiles, of which a step holds
# about four. On a CPU 16 MiB of float32 were as fast as any; accelerators want larger products.
TILE_ELEMENTS = {"cpu": 2**22}
TILE_ELEMENTS_ELSEWHERE = 2**24
# But not fewer positions of a batch than these: each tile reads and writes the sum of the codes' gradients.
TILE_ROWS = 64
# Kinds whose codes are drawn from logits, and take part in the paper's regularizations.
LOGIT_KINDS = ("regularized", "deterministic", "gumbel")
# Kinds whose codes lie on a fixed grid: no codebook to learn, to prune, or to draw.
IMPLICIT_KINDS = ("fsq", "lfq")
KINDS = (*LOGIT_KINDS, "nearest", "simvq", "ibq", *IMPLICIT_KINDS)
LOGITS = ("projection", "dot", "distance")


def tile_elements(num_codes: int) -> int:
    """Most elements of a [B, tile, K] array on the devices that JAX uses."""
    return max(TILE_ELEMENTS.get(jax.default_backend(), TILE_ELEMENTS_ELSEWHERE), TILE_ROWS * num_codes)


def largest_tile(batch: int, positions: int, num_codes: int, elements: int | None = None) -> int:
    """The most positions of each image, a divisor of all of them, whose logits are held at once; at least 1.

    Args:
        batch: B, images.
        positions: h * w, of each image.
        num_codes: K.
        elements: most elements of a [B, tile, K] array; `tile_elements` by default.
    """
    limit = (elements or tile_elements(num_codes)) // (batch * num_codes)
    return max((n for n in range(1, positions + 1) if positions % n == 0 and n <= limit), default=1)


class Projection(nn.Module):
    """The kernel and bias of a linear map as arrays, for use inside other transformations than Linen's."""

    features: int

    @nn.compact
    def __call__(self, inputs: int) -> tuple[jax.Array, jax.Array]:
        """(float32 [inputs, features], float32 [features])."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (inputs, self.features))
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))


class Quantizer(nn.Module):
    """A codebook and the way to it.

    Attributes:
        kind: one of `KINDS`.
        codebook_size: K; for "fsq" the product of `levels`, for "lfq" 2^code_dim.
        code_dim: D, length of a feature and of a code vector.
        logits: for `LOGIT_KINDS`, where their logits come from: a learned "projection" of the feature, its
            "dot" product with every code, or the negative squared "distance" to it.
        levels: of "fsq".
        depth: residual levels, 1 = none; for "nearest", and "regularized" with dot or distance logits.
    """

    kind: str = "regularized"
    codebook_size: int = 1024
    code_dim: int = 256
    logits: str = "projection"
    levels: Sequence[int] = ()
    depth: int = 1

    def setup(self):
        if self.kind in IMPLICIT_KINDS:
            return
        shape = (self.codebook_size, self.code_dim)
        self.codebook = self.param("codebook", self._codebook_init(), shape)
        if self._has_projected_logits:
            self.to_logits = Projection(self.codebook_size)
        if self.kind == "simvq":
            orthogonal = nn.initializers.orthogonal()
            self.projection = self.param("projection", orthogonal, (self.code_dim, self.code_dim))

    @property
    def _has_projected_logits(self) -> bool:
        return self.kind in LOGIT_KINDS and self.logits == "projection"

    def _codebook_init(self) -> Callable:
        if self.kind == "nearest":
            # As VQ-VAE and VQ-GAN begin: within 1 / K of zero.
            bound = 1.0 / self.codebook_size
            return lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)
        if self._has_projected_logits:
            return nn.initializers.normal(1.0)
        # Products of unit features with codes then have a standard deviation of D^(1/4), distances about
        # twice that: with D^-(1/2) every code is as likely as any other and sampling drowns the best match,
        # with 1 nearly nothing is sampled and few codes get a gradient.
        return nn.initializers.normal(self.code_dim**-0.25)

    def __call__(
        self,
        features: jax.Array,
        key: jax.Array | None = None,
        mask_ratio: float = 0.0,
        temperature: float | jax.Array = 1.0,
    ) -> QuantizeOutput:
        """Quantizes a batch of latent grids.

        Args:
            features: float [B, h, w, D].
            key: for the sampled positions of "regularized" and "gumbel"; None samples nowhere, which is how
                a trained tokenizer encodes.
            mask_ratio: share of sampled positions of "regularized".
            temperature: of the soft assignments.

        Returns:
            A `QuantizeOutput`; with depth R > 1 its codes are [B, h, w, R].
        """
        ratio = 0.0 if key is None else {"regularized": mask_ratio, "gumbel": 1.0}.get(self.kind, 0.0)
        if self.depth == 1:
            return self._quantize(features, key, ratio, temperature)

        def level(left, index):
            level_key = None if key is None else jax.random.fold_in(key, index)
            return self._quantize(left, level_key, ratio, temperature)

        return quantize.residual(level, features, self.depth, straight_through=self.kind == "nearest")

    def _quantize(self, features, key, ratio, temperature) -> QuantizeOutput:
        features = features.astype(jnp.float32)
        batch, height, width, _ = features.shape
        tile_size = largest_tile(batch, height * width, self.codebook_size)
        if self.kind == "fsq":
            return quantize.fsq(features, self.levels)
        if self.kind == "lfq":
            return quantize.lfq(features, temperature=temperature)
        if self.kind == "nearest":
            return quantize.nearest(features, self.codebook, tile_size=tile_size)
        if self.kind == "simvq":
            return quantize.simvq(features, self.codebook, self.projection, tile_size=tile_size)
        if self.kind == "ibq":
            return quantize.ibq(features, self.codebook, temperature=temperature, tile_size=tile_size)
        return quantize.regularized_in_tiles(
            key,
            features,
            self._affine(),
            self.codebook,
            mask_ratio=ratio,
            temperature=temperature,
            tile_size=tile_size,
        )

    def _affine(self) -> quantize.Affine:
        if self.logits == "dot":
            return quantize.dot_affine(self.codebook)
        if self.logits == "distance":
            return quantize.distance_affine(self.codebook)
        return quantize.Affine(*self.to_logits(self.code_dim))

    def vectors(self) -> jax.Array:
        """All code vectors, float32 [K, D]."""
        if self.kind == "simvq":
            return quantize.simvq_codebook(self.codebook, self.projection)
        if self.kind in IMPLICIT_KINDS:
            return self.lookup(jnp.arange(self.codebook_size))
        return self.codebook

    def lookup(self, codes: jax.Array) -> jax.Array:
        """Codes to code vectors: int32 [B, h, w], with depth R > 1 [B, h, w, R], -> float32 [B, h, w, D]."""
        if self.kind == "fsq":
            return quantize.fsq_vectors(codes, self.levels)
        if self.kind == "lfq":
            return quantize.lfq_vectors(codes, self.code_dim)
        vectors = self.vectors()[codes]
        return vectors if self.depth == 1 else vectors.sum(-2)
