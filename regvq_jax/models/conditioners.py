"""What a prior is told: classes, texts, frozen features or label maps, each with a learned null.

Every conditioner takes one input and `drop` and returns an `Encoded`. `drop` bool [B] (or None) says which
rows get the learned null instead: in training for classifier-free guidance, in sampling for its other half.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from regvq_jax.models.layers import Dtype
from regvq_jax.models.text import TextEncoder
from regvq_jax.models.transformer import embedding_init


class Encoded(NamedTuple):
    """An encoded condition.

    Attributes:
        memory: float [B, L, dim], read by prefix or cross-attention; None = nothing to read.
        memory_mask: bool [B, L], True = a real memory token; at least one in each row.
        added: float [B, N, dim], added to the token embeddings, place by place; None = nothing.
    """

    memory: jax.Array | None = None
    memory_mask: jax.Array | None = None
    added: jax.Array | None = None


def null_memory(module: nn.Module, memory: jax.Array, mask: jax.Array, drop: jax.Array | None) -> Encoded:
    """Gives dropped and empty rows the module's learned null as their only memory token."""
    null = module.param("null", nn.initializers.normal(1.0), (memory.shape[-1],))
    is_null = ~mask.any(-1)
    if drop is not None:
        is_null |= drop
    memory = jnp.where(is_null[:, None, None], null.astype(memory.dtype), memory)
    first = jnp.arange(mask.shape[1]) == 0
    return Encoded(memory, jnp.where(is_null[:, None], first, mask))


class TextConditioner(nn.Module):
    """Captions as ids, encoded by a transformer that learns with the prior.

    Attributes:
        length: longest caption in text ids.
        dim: width of the memory.
        vocab_size, pad_id: those of `conditioning.text` by default.
        The others: see `TextEncoder`.
    """

    length: int
    dim: int
    depth: int = 2
    num_heads: int = 8
    embed_dim: int = 64
    dropout: float = 0.0
    vocab_size: int = 49409
    pad_id: int = 49408
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, condition: jax.Array, drop: jax.Array | None = None, *, deterministic: bool = True
    ) -> Encoded:
        """int32 [B, L], L <= length -> `Encoded`; a row of padding alone is no condition."""
        memory, mask = TextEncoder(
            vocab_size=self.vocab_size,
            pad_id=self.pad_id,
            max_length=self.length,
            dim=self.dim,
            depth=self.depth,
            num_heads=self.num_heads,
            embed_dim=self.embed_dim,
            dropout=self.dropout,
            dtype=self.dtype,
            name="encoder",
        )(condition, deterministic=deterministic)
        return null_memory(self, memory, mask, drop)


class FeatureConditioner(nn.Module):
    """Per-token features of a frozen text encoder, brought to the prior's width.

    Attributes:
        dim: width of the memory.
        dtype: of the computation.
    """

    dim: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        condition: tuple[jax.Array, jax.Array],
        drop: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> Encoded:
        """(features float [B, L, F], mask bool [B, L]) -> `Encoded`; an empty mask is no condition."""
        del deterministic
        features, mask = condition
        # Encoders differ in scale by orders of magnitude.
        features = nn.LayerNorm(dtype=self.dtype, name="norm")(features)
        memory = nn.Dense(self.dim, dtype=self.dtype, name="projection")(features)
        return null_memory(self, memory, mask, drop)


class ClassConditioner(nn.Module):
    """A class as one memory token.

    Attributes:
        num_classes: number of classes.
        dim: width of the memory.
        dtype: of the computation.
    """

    num_classes: int
    dim: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, condition: jax.Array, drop: jax.Array | None = None, *, deterministic: bool = True
    ) -> Encoded:
        """int32 [B] in [-1, num_classes) -> `Encoded`; -1 is no condition."""
        del deterministic
        table = nn.Embed(self.num_classes, self.dim, embedding_init=embedding_init, name="embedding")
        known = condition >= 0
        memory = table(jnp.maximum(condition, 0))[:, None].astype(self.dtype)
        return null_memory(self, memory, known[:, None], drop)


class MapTokenConditioner(nn.Module):
    """The tokens of a label map (of a tokenizer of its own) as memory, as taming-transformers does.

    Attributes:
        codebook_size: of the map tokenizer.
        grid: (h, w) of its tokens.
        dim: width of the memory.
        dtype: of the computation.
    """

    codebook_size: int
    grid: tuple[int, int]
    dim: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, condition: jax.Array, drop: jax.Array | None = None, *, deterministic: bool = True
    ) -> Encoded:
        """int32 [B, h * w] -> `Encoded`."""
        del deterministic
        height, width = self.grid
        table = nn.Embed(self.codebook_size, self.dim, embedding_init=embedding_init, name="embedding")
        rows = self.param("row_embedding", embedding_init, (height, self.dim))
        columns = self.param("column_embedding", embedding_init, (width, self.dim))
        places = (rows[:, None] + columns[None, :]).reshape(height * width, self.dim)
        memory = (table(condition) + places).astype(self.dtype)
        return null_memory(self, memory, jnp.ones(condition.shape, bool), drop)


class MapConditioner(nn.Module):
    """A label map, each cell of the token grid embedded with all its pixels and added to that token.

    Cheaper than tokens of the map: the sequence stays as long as it is.

    Attributes:
        num_classes: of the map's ids.
        grid: (h, w) of the tokenizer's cells.
        dim: width of the prior.
        depth: R, tokens a cell, side by side: the levels of a residual tokenizer.
        embed_dim: of each pixel's class.
        dtype: of the computation.
    """

    num_classes: int
    grid: tuple[int, int]
    dim: int
    depth: int = 1
    embed_dim: int = 16
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, condition: jax.Array, drop: jax.Array | None = None, *, deterministic: bool = True
    ) -> Encoded:
        """uint8 or int32 [B, H, W], H and W multiples of the grid's -> `Encoded`."""
        del deterministic
        rows, cells = condition.shape[0], self.grid[0] * self.grid[1]
        cell = (condition.shape[1] // self.grid[0], condition.shape[2] // self.grid[1])
        if (cell[0] * self.grid[0], cell[1] * self.grid[1]) != condition.shape[1:]:
            raise ValueError(f"a map of {condition.shape[1:]} cannot be cut into {self.grid} cells")
        pixels = nn.Embed(self.num_classes, self.embed_dim, name="embedding")(condition.astype(jnp.int32))
        added = nn.Conv(self.dim, cell, cell, "VALID", dtype=self.dtype, name="cells")(pixels)
        added = jnp.repeat(added.reshape(rows, cells, self.dim), self.depth, axis=1)
        null = self.param("null", embedding_init, (self.dim,))
        if drop is not None:
            added = jnp.where(drop[:, None, None], null.astype(added.dtype), added)
        return Encoded(added=added)
