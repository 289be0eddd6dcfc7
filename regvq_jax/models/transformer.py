"""Pre-norm transformer over a grid of tokens, with an optional prefix of memory tokens."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from regvq_jax.models.layers import Dtype

_dense_init = nn.initializers.xavier_uniform()
_embedding_init = nn.initializers.normal(0.02)


class Block(nn.Module):
    """Self-attention and a GELU MLP, each behind a LayerNorm and beside a skip.

    Attributes:
        num_heads: attention heads; divides dim.
        mlp_ratio: hidden width of the MLP over dim.
        dropout: rate on both branches.
        dtype: of the computation; parameters and the attention softmax are float32.
    """

    num_heads: int
    mlp_ratio: int = 4
    dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None, deterministic: bool = True) -> jax.Array:
        """Maps float [B, S, dim] to the same shape.

        `mask` is bool, broadcastable to [B, heads, S, S] as [.., query, key]; True = the query sees
        the key.
        """
        dim = x.shape[-1]
        heads = (self.num_heads, dim // self.num_heads)
        h = nn.LayerNorm(dtype=self.dtype, name="attention_norm")(x)
        query, key, value = (
            nn.DenseGeneral(heads, kernel_init=_dense_init, dtype=self.dtype, name=name)(h)
            for name in ("query", "key", "value")
        )
        h = jax.nn.dot_product_attention(query, key, value, mask=mask)
        h = nn.DenseGeneral(
            dim, axis=(-2, -1), kernel_init=_dense_init, dtype=self.dtype, name="attention_out"
        )(h)
        x = x + nn.Dropout(self.dropout, deterministic=deterministic)(h)

        h = nn.LayerNorm(dtype=self.dtype, name="mlp_norm")(x)
        hidden = self.mlp_ratio * dim
        h = nn.Dense(hidden, kernel_init=_dense_init, dtype=self.dtype, name="mlp_in")(h)
        h = nn.gelu(h)
        h = nn.Dense(dim, kernel_init=_dense_init, dtype=self.dtype, name="mlp_out")(h)
        return x + nn.Dropout(self.dropout, deterministic=deterministic)(h)


class Blocks(nn.Module):
    """`depth` blocks and a last LayerNorm.

    Attributes:
        depth: number of blocks.
        scan_layers: compiles one block and scans over stacked parameters (`layers`, leading axis
            depth) instead of unrolling `layer_0`, `layer_1`, ...: quicker to compile, the same
            function.
        num_heads, mlp_ratio, dropout, dtype: as in `Block`.
    """

    depth: int
    num_heads: int
    mlp_ratio: int = 4
    dropout: float = 0.0
    scan_layers: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None, deterministic: bool = True) -> jax.Array:
        """Maps float [B, S, dim] to [B, S, dim] in `dtype`; `mask` as in `Block`."""
        if x.shape[-1] % self.num_heads:
            raise ValueError(f"{self.num_heads} heads do not divide a width of {x.shape[-1]}")
        block = {
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "dropout": self.dropout,
            "dtype": self.dtype,
        }
        x = nn.Dropout(self.dropout, deterministic=deterministic)(x.astype(self.dtype))
        if self.scan_layers:
            scan = nn.scan(
                lambda layer, carry, _: (layer(carry, mask, deterministic), None),
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                length=self.depth,
            )
            x, _ = scan(Block(**block, name="layers"), x, None)
        else:
            for i in range(self.depth):
                x = Block(**block, name=f"layer_{i}")(x, mask, deterministic)
        return nn.LayerNorm(dtype=self.dtype, name="last_norm")(x)


class Transformer(nn.Module):
    """Blocks over a grid of tokens with learned 2-D positions, behind a prefix of memory.

    Attributes:
        grid: (h, w) of the token grid; position (r, c) gets row_embedding[r] + column_embedding[c].
        causal: a token sees itself, the tokens before it in raster order, and the memory, and the
            memory sees only itself; otherwise everything sees everything.
        depth, num_heads, mlp_ratio, dropout, scan_layers, dtype: as in `Blocks`.
    """

    grid: tuple[int, int]
    depth: int
    num_heads: int
    mlp_ratio: int = 4
    dropout: float = 0.0
    causal: bool = False
    scan_layers: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        memory: jax.Array | None = None,
        memory_mask: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Runs the token embeddings through the blocks.

        Args:
            x: float [B, N, dim], N = h * w, in raster order.
            memory: float [B, L, dim], prepended to the sequence.
            memory_mask: bool [B, L], True = a real memory token; the others influence nothing.
            deterministic: False draws dropout from the "dropout" stream.

        Returns:
            float [B, N, dim] in `dtype`, layer-normalised.

        Raises:
            ValueError: N is not h * w, or dim is not a multiple of `num_heads`.
        """
        height, width = self.grid
        _, num_tokens, dim = x.shape
        if num_tokens != height * width:
            raise ValueError(f"{num_tokens} tokens do not fill a {height}x{width} grid")
        rows = self.param("row_embedding", _embedding_init, (height, dim))
        columns = self.param("column_embedding", _embedding_init, (width, dim))
        x = x + (rows[:, None] + columns[None, :]).reshape(num_tokens, dim)

        prefix = 0 if memory is None else memory.shape[1]
        if memory is not None:
            x = jnp.concatenate([memory.astype(x.dtype), x], axis=1)
        mask = _visibility(prefix, num_tokens, memory_mask, self.causal)
        x = Blocks(
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            dropout=self.dropout,
            scan_layers=self.scan_layers,
            dtype=self.dtype,
            name="blocks",
        )(x, mask, deterministic)
        return x[:, prefix:]


def _visibility(
    prefix: int, num_tokens: int, memory_mask: jax.Array | None, causal: bool
) -> jax.Array | None:
    """Builds the bool attention mask [B or 1, 1, S or 1, S], None where all see all."""
    mask = None
    if memory_mask is not None:
        mask = jnp.pad(memory_mask, ((0, 0), (0, num_tokens)), constant_values=True)[:, None, None]
    if causal:
        places = jnp.arange(prefix + num_tokens)
        earlier = (places[None, :] < prefix) | (places[None, :] <= places[:, None])
        mask = earlier[None, None] if mask is None else mask & earlier
    return mask
