"""Encoder, quantizer and decoder in one module, for images and for label maps."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from regvq_jax.models.convolution import Conv
from regvq_jax.models.decoder import Decoder
from regvq_jax.models.encoder import Encoder
from regvq_jax.models.layers import Dtype
from regvq_jax.models.maskgit import MaskGITDecoder, MaskGITEncoder
from regvq_jax.models.quantizer import Quantizer
from regvq_jax.quantize import QuantizeOutput

PyTree = Any
ARCHITECTURES = {"taming": (Encoder, Decoder), "maskgit": (MaskGITEncoder, MaskGITDecoder)}


class ImageTokenizer(nn.Module):
    """The network of stage one.

    A tokenizer of label maps is the same network with a channel for each class: it takes one-hot maps
    float [B, H, W, C] where the methods below speak of images, and gives logits float32 [B, H, W, C].

    Attributes:
        quantizer: the codebook and the way to it.
        architecture: a name in `ARCHITECTURES`.
        channels, multipliers, num_res_blocks, attention_levels, middle_attention, latent_channels,
            norm_groups, remat, dtype: as in `Encoder`.
        out_channels: of what is decoded, and of what is encoded: 3 for images, C for maps of C classes.
    """

    quantizer: Quantizer
    architecture: str = "taming"
    channels: int = 128
    multipliers: Sequence[int] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attention_levels: Sequence[int] = (4,)
    middle_attention: bool = True
    latent_channels: int = 256
    norm_groups: int = 0
    remat: bool = False
    dtype: Dtype = jnp.float32
    out_channels: int = 3

    def setup(self):
        shared = dict(
            channels=self.channels,
            multipliers=self.multipliers,
            num_res_blocks=self.num_res_blocks,
            attention_levels=self.attention_levels,
            middle_attention=self.middle_attention,
            norm_groups=self.norm_groups,
            remat=self.remat,
            dtype=self.dtype,
        )
        encoder, decoder = ARCHITECTURES[self.architecture]
        self.encoder = encoder(latent_channels=self.latent_channels, **shared)
        # Features decide an argmax: float32 also under bfloat16 compute, and no TF32.
        self.quant_conv = nn.Dense(
            self.quantizer.code_dim, dtype=jnp.float32, precision=jax.lax.Precision.HIGHEST
        )
        self.post_quant_conv = nn.Dense(self.latent_channels, dtype=self.dtype)
        self.decoder = decoder(**shared)
        self.conv_out = Conv(self.out_channels)

    @property
    def downsampling(self) -> int:
        """Pixels a token, along one side."""
        return 2 ** (len(self.multipliers) - 1)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Touches every parameter; the entry for `init`: float [B, H, W, 3] -> float32 [B, H, W, 3]."""
        return self.decode(self.quantize(self.encode_features(images)).quantized)

    def encode_features(self, images: jax.Array) -> jax.Array:
        """Images to what is quantized: float [B, H, W, 3] in [-1, 1] -> float32 [B, h, w, D]."""
        return self.quant_conv(self.encoder(images))

    def quantize(
        self,
        features: jax.Array,
        key: jax.Array | None = None,
        mask_ratio: float = 0.0,
        temperature: float | jax.Array = 1.0,
    ) -> QuantizeOutput:
        """float [B, h, w, D] -> a `QuantizeOutput`; see `Quantizer`."""
        return self.quantizer(features, key, mask_ratio, temperature)

    def encode(self, images: jax.Array) -> jax.Array:
        """Images to best-matching codes: float [B, H, W, 3] in [-1, 1] -> int32 [B, h, w] (, R)."""
        return self.quantize(self.encode_features(images)).best_codes

    def lookup(self, codes: jax.Array) -> jax.Array:
        """Codes to code vectors: int32 [B, h, w] (, R) -> float32 [B, h, w, D]."""
        return self.quantizer.lookup(codes)

    def code_vectors(self) -> jax.Array:
        """All code vectors, float32 [K, D]."""
        return self.quantizer.vectors()

    def decode_features(self, quantized: jax.Array) -> jax.Array:
        """Code vectors to the decoder's last features: float [B, h, w, D] -> [B, H, W, C]."""
        return self.decoder(self.post_quant_conv(quantized))

    def to_images(self, features: jax.Array) -> jax.Array:
        """The last convolution: float [B, H, W, C] -> float32 [B, H, W, 3], about [-1, 1], not clipped."""
        return self.conv_out(features)

    def decode(self, quantized: jax.Array) -> jax.Array:
        """Code vectors to images: float [B, h, w, D] -> float32 [B, H, W, 3], not clipped."""
        return self.to_images(self.decode_features(quantized))


def one_hot_maps(model: ImageTokenizer, labels: jax.Array) -> jax.Array:
    """What a tokenizer of label maps takes.

    Args:
        model: with a channel for each class.
        labels: uint8 [B, H, W] in [0, C); a label beyond is no class, and its pixel all zeros.

    Returns:
        [B, H, W, C] of the model's dtype, which holds 0 and 1 exactly.
    """
    return jax.nn.one_hot(labels, model.out_channels, dtype=model.dtype)


def encode_maps(model: ImageTokenizer, params: PyTree, labels: jax.Array) -> jax.Array:
    """Label maps to best-matching codes; pure, for `jit`.

    Args:
        model: a tokenizer of label maps.
        params: its parameters.
        labels: uint8 [B, H, W] in [0, C).

    Returns:
        int32 [B, h, w]; of a residual tokenizer [B, h, w, R].
    """
    return model.apply({"params": params}, one_hot_maps(model, labels), method="encode")
