"""The network of stage two: image tokens, some of them masked, and a caption to code logits."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from regvq_jax.models.layers import Dtype
from regvq_jax.models.text import TextEncoder
from regvq_jax.models.transformer import Transformer


class PriorNet(nn.Module):
    """A masked transformer over image tokens, prefixed by an encoded caption.

    For `regvq_jax.priors`, which take any callable from tokens to logits. A sampler that asks many
    times about one caption encodes it once with `condition` and then calls `predict`.

    Attributes:
        codebook_size: K; input ids are 0..K with the mask id K, output logits are over 0..K-1.
        grid: (h, w) of the token grid.
        dim: width of the transformer and of the memory.
        depth, num_heads, mlp_ratio, dropout, scan_layers, dtype: as in `Transformer`.
        text_length: longest caption in text ids; 0 is an unconditional model, which takes no text.
        text_depth, text_embed_dim, text_vocab_size, text_pad_id: of the `TextEncoder`; the defaults
            for ids are those of `regvq_jax.conditioning.text`.
    """

    codebook_size: int
    grid: tuple[int, int]
    dim: int = 768
    depth: int = 24
    num_heads: int = 16
    mlp_ratio: int = 4
    dropout: float = 0.1
    text_length: int = 0
    text_depth: int = 2
    text_embed_dim: int = 64
    text_vocab_size: int = 49409
    text_pad_id: int = 49408
    scan_layers: bool = False
    dtype: Dtype = jnp.float32

    def setup(self):
        shared = {
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "dropout": self.dropout,
            "scan_layers": self.scan_layers,
            "dtype": self.dtype,
        }
        # Looked up in float32: a bfloat16 table would also sum its gradient in bfloat16.
        self.token_embedding = nn.Embed(
            self.codebook_size + 1, self.dim, embedding_init=nn.initializers.normal(0.02)
        )
        self.transformer = Transformer(grid=self.grid, depth=self.depth, **shared)
        self.to_logits = nn.Dense(self.codebook_size, dtype=jnp.float32)
        if self.text_length:
            self.text_encoder = TextEncoder(
                vocab_size=self.text_vocab_size,
                pad_id=self.text_pad_id,
                max_length=self.text_length,
                dim=self.dim,
                depth=self.text_depth,
                embed_dim=self.text_embed_dim,
                **shared,
            )
            self.null_memory = self.param("null_memory", nn.initializers.normal(1.0), (self.dim,))

    @property
    def mask_id(self) -> int:
        """The input id that means: to be predicted."""
        return self.codebook_size

    def __call__(
        self,
        tokens: jax.Array,
        text: jax.Array | None = None,
        drop_condition: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Predicts the code at every position from the unmasked tokens and the caption.

        Args:
            tokens: int32 [B, N], ids 0..K, K where masked.
            text: int32 [B, L], L <= `text_length`; None if and only if `text_length` is 0. A row of
                padding alone is no condition.
            drop_condition: bool [B], True = the learned null memory in place of the caption.
            deterministic: False draws dropout from the "dropout" stream.

        Returns:
            float32 [B, N, K], unnormalised log-probabilities.

        Raises:
            ValueError: text is given to an unconditional model or missing from a conditional one,
                or a shape does not fit the fields.
        """
        memory = self.condition(text, drop_condition, deterministic=deterministic)
        return self.predict(tokens, memory, deterministic=deterministic)

    def condition(
        self,
        text: jax.Array | None,
        drop_condition: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> tuple[jax.Array, jax.Array] | None:
        """Encodes the captions once; Args and Raises as in `__call__`.

        Returns:
            memory, float [B, L, dim], and its mask, bool [B, L], True = a memory token; a dropped
            or empty row has the null memory as its only token. None from an unconditional model.
        """
        if not self.text_length:
            if text is not None or drop_condition is not None:
                raise ValueError("text_length is 0: an unconditional model takes no text")
            return None
        if text is None:
            raise ValueError(f"text_length is {self.text_length}: the model needs text")
        memory, mask = self.text_encoder(text, deterministic=deterministic)
        is_null = ~mask.any(-1)
        if drop_condition is not None:
            is_null |= drop_condition
        memory = jnp.where(is_null[:, None, None], self.null_memory.astype(memory.dtype), memory)
        first = jnp.arange(text.shape[1]) == 0
        return memory, jnp.where(is_null[:, None], first, mask)

    def predict(
        self,
        tokens: jax.Array,
        condition: tuple[jax.Array, jax.Array] | None = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Predicts as `__call__` does, from what `condition` returned."""
        memory, memory_mask = (None, None) if condition is None else condition
        x = self.token_embedding(tokens)
        x = self.transformer(x, memory, memory_mask, deterministic=deterministic)
        return self.to_logits(x)
