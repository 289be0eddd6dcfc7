"""Encoder, codebook and decoder in one module; the quantizer between them is a pure function elsewhere."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from regvq_jax.models.decoder import Decoder
from regvq_jax.models.encoder import Encoder
from regvq_jax.models.layers import Dtype


class ImageTokenizer(nn.Module):
    """The network of stage one.

    Attributes:
        codebook_size: K, number of codes.
        code_dim: D, length of a code vector.
        channels, multipliers, num_res_blocks, attention_levels, middle_attention, latent_channels, dtype:
            as in `Encoder`.
    """

    codebook_size: int = 1024
    code_dim: int = 256
    channels: int = 128
    multipliers: Sequence[int] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attention_levels: Sequence[int] = (4,)
    middle_attention: bool = True
    latent_channels: int = 256
    dtype: Dtype = jnp.float32

    def setup(self):
        shared = dict(
            channels=self.channels,
            multipliers=self.multipliers,
            num_res_blocks=self.num_res_blocks,
            attention_levels=self.attention_levels,
            middle_attention=self.middle_attention,
            dtype=self.dtype,
        )
        self.encoder = Encoder(latent_channels=self.latent_channels, **shared)
        # Logits are sums over many channels that decide an argmax: float32 also under bfloat16 compute.
        self.to_logits = nn.Dense(self.codebook_size, dtype=jnp.float32)
        self.codebook = self.param(
            "codebook", nn.initializers.normal(1.0), (self.codebook_size, self.code_dim)
        )
        self.decoder = Decoder(**shared)
        self.conv_out = nn.Conv(3, (3, 3), dtype=jnp.float32)

    @property
    def downsampling(self) -> int:
        """Pixels a token, along one side."""
        return 2 ** (len(self.multipliers) - 1)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Touches every parameter; the entry for `init`: float [B, H, W, 3] -> float32 [B, H, W, 3]."""
        logits = self.encode(images)
        return self.decode(self.lookup(jnp.argmax(logits, -1)))

    def encode(self, images: jax.Array) -> jax.Array:
        """Images to code logits: float [B, H, W, 3] in [-1, 1] -> float32 [B, h, w, K]."""
        return self.to_logits(self.encoder(images))

    def lookup(self, codes: jax.Array) -> jax.Array:
        """Codes to code vectors: int32 [B, h, w] -> float32 [B, h, w, D]."""
        return self.codebook[codes]

    def decode_features(self, quantized: jax.Array) -> jax.Array:
        """Code vectors to the decoder's last features: float [B, h, w, D] -> [B, H, W, C]."""
        return self.decoder(quantized)

    def to_images(self, features: jax.Array) -> jax.Array:
        """The last convolution: float [B, H, W, C] -> float32 [B, H, W, 3], about [-1, 1], not clipped."""
        return self.conv_out(features)

    def decode(self, quantized: jax.Array) -> jax.Array:
        """Code vectors to images: float [B, h, w, D] -> float32 [B, H, W, 3], not clipped."""
        return self.to_images(self.decode_features(quantized))
