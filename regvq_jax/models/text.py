"""A small text encoder learned together with the prior."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from regvq_jax.models.blocks import Blocks, Context
from regvq_jax.models.layers import Dtype


class TextEncoder(nn.Module):
    """Token ids to memory tokens: factorised embedding, learned positions, bidirectional blocks.

    Attributes:
        vocab_size: number of text ids, special ones included.
        pad_id: the id that stands for no token.
        max_length: longest L.
        dim: width of the memory.
        embed_dim: width of the embedding table, projected to `dim`; keeps a large vocabulary small.
        depth, num_heads, mlp_ratio, dropout, scan_layers, dtype: as in `Blocks`.
    """

    vocab_size: int
    pad_id: int
    max_length: int
    dim: int
    depth: int
    num_heads: int
    embed_dim: int = 64
    mlp_ratio: int = 4
    dropout: float = 0.0
    scan_layers: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, text: jax.Array, *, deterministic: bool = True) -> tuple[jax.Array, jax.Array]:
        """Encodes rows of text ids.

        Args:
            text: int32 [B, L], L <= `max_length`, padded with `pad_id`.
            deterministic: False draws dropout from the "dropout" stream.

        Returns:
            memory, float [B, L, dim] in `dtype`, meaningless where padded; its mask, bool [B, L],
            True = a token. Neither the amount nor the embedding of the padding changes the memory
            of a token.

        Raises:
            ValueError: L is above `max_length`.
        """
        length = text.shape[1]
        if length > self.max_length:
            raise ValueError(f"text of length {length} is longer than max_length {self.max_length}")
        # Looked up in float32: a bfloat16 table would also sum its gradient in bfloat16.
        x = nn.Embed(self.vocab_size, self.embed_dim, name="token_embedding")(text)
        x = nn.Dense(self.dim, dtype=self.dtype, name="projection")(x)
        positions = self.param(
            "position_embedding", nn.initializers.normal(0.02), (self.max_length, self.dim)
        )
        x = x + positions[:length]
        mask = text != self.pad_id
        # A row of padding alone must see something: some fused attentions return NaN where nothing
        # is seen.
        visible = mask | (jnp.arange(length) == 0)
        memory, _ = Blocks(
            dim=self.dim,
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            dropout=self.dropout,
            scan_layers=self.scan_layers,
            dtype=self.dtype,
            name="blocks",
        )(x, Context(visible[:, None, None, :]), deterministic=deterministic)
        return memory, mask
