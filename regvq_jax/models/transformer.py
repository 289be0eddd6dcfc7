"""A transformer over a grid of tokens, with a prefix of memory or cross-attention to it."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from regvq_jax.models.attention import grid_angles
from regvq_jax.models.blocks import Blocks, Cache, Context
from regvq_jax.models.layers import Dtype

embedding_init = nn.initializers.normal(0.02)
POSITIONS = ("learned", "rotary")


class Transformer(nn.Module):
    """Blocks over a grid of tokens with 2-D positions, which see a memory.

    Attributes:
        grid: (h, w) of the token grid, in raster order.
        positions: "learned": position (r, c) gets row_embedding[r] + column_embedding[c]; "rotary": queries
            and keys are turned by row and column.
        cross: the memory is attended to by cross-attention, otherwise it is a prefix of the sequence.
        causal: a token sees itself, the tokens before it in raster order, and the memory, and the
            memory sees only itself; otherwise everything sees everything.
        The others: see `Blocks`.
    """

    grid: tuple[int, int]
    dim: int
    depth: int
    num_heads: int
    mlp_ratio: int = 4
    dropout: float = 0.0
    positions: str = "learned"
    cross: bool = False
    causal: bool = False
    modulated: bool = False
    qk_norm: bool = False
    attention: str = "auto"
    scan_layers: bool = False
    remat: str = "none"
    dtype: Dtype = jnp.float32

    def setup(self):
        own = ("grid", "positions", "causal", "parent", "name")
        fields = {f: getattr(self, f) for f in self.__dataclass_fields__ if f not in own}
        self.blocks = Blocks(**fields)
        if self.positions == "learned":
            height, width = self.grid
            self.row_embedding = self.param("row_embedding", embedding_init, (height, self.dim))
            self.column_embedding = self.param("column_embedding", embedding_init, (width, self.dim))

    def _places(self) -> jax.Array:
        """Embeddings of the places, float32 [N, dim]; 0 [N, 1] where positions are rotary."""
        height, width = self.grid
        if self.positions == "rotary":
            return jnp.zeros((height * width, 1))
        grid = self.row_embedding[:, None] + self.column_embedding[None, :]
        return grid.reshape(height * width, self.dim)

    def _angles(self, prefix: int) -> jax.Array | None:
        if self.positions != "rotary":
            return None
        return jnp.asarray(grid_angles(self.grid, self.dim // self.num_heads, prefix))

    def __call__(
        self,
        x: jax.Array,
        memory: jax.Array | None = None,
        memory_mask: jax.Array | None = None,
        time: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Runs the token embeddings through the blocks.

        Args:
            x: float [B, N, dim], N = h * w, in raster order.
            memory: float [B, L, dim]; may be None unless `cross`.
            memory_mask: bool [B, L], True = a real memory token; the others influence nothing.
            time: float [B, dim], for `modulated` blocks.
            deterministic: False draws dropout from the "dropout" stream.

        Returns:
            float [B, N, dim] in `dtype`, layer-normalised.

        Raises:
            ValueError: N is not h * w.
        """
        num_tokens = x.shape[1]
        if num_tokens != self.grid[0] * self.grid[1]:
            raise ValueError(f"{num_tokens} tokens do not fill a {self.grid[0]}x{self.grid[1]} grid")
        x = x + self._places()
        prefix = 0 if memory is None or self.cross else memory.shape[1]
        causal_from = prefix if self.causal else None
        if self.cross:
            mask = visibility(0, num_tokens, None, self.causal)
            context = Context(mask, memory, memory_mask, time, self._angles(0), causal_from=causal_from)
            return self.blocks(x, context, deterministic=deterministic)[0]
        if memory is not None:
            x = jnp.concatenate([memory.astype(x.dtype), x], axis=1)
        mask = visibility(prefix, num_tokens, memory_mask, self.causal)
        context = Context(mask, time=time, angles=self._angles(prefix), causal_from=causal_from)
        return self.blocks(x, context, deterministic=deterministic)[0][:, prefix:]

    def start_cache(
        self, rows: int, memory: jax.Array | None = None, memory_mask: jax.Array | None = None
    ) -> Cache:
        """A cache for `rows` sequences that holds the memory, without room for tokens; see `make_room`.

        Args:
            rows: B.
            memory, memory_mask: as in `__call__`.
        """
        length = 0 if memory is None else memory.shape[1]
        if memory_mask is None:
            memory_mask = jnp.ones((rows, length), bool)
        prefix = 0 if self.cross else length
        shape = (self.depth, *[rows] * (rows > 1), self.num_heads, prefix, self.dim // self.num_heads)
        empty = jnp.zeros(shape, self.dtype)
        cache = Cache(*((empty if self.scan_layers else tuple(empty)),) * 2, memory_mask)
        if self.cross:
            key, value = self.blocks.memory_keys_values(memory.astype(self.dtype))
            return cache._replace(memory_key=key, memory_value=value)
        if prefix:
            # A memory token sees the memory alone.
            angles = self._angles(prefix)
            context = Context(memory_mask[:, None, None], angles=None if angles is None else angles[:prefix])
            cache = self.blocks(memory, context, cache)[1]
        return cache

    def step(self, cache: Cache, x: jax.Array, position: jax.Array) -> tuple[Cache, jax.Array]:
        """One token of a causal transformer.

        Args:
            cache: holds the memory and the tokens before `position`, and has room for one there.
            x: float [B, dim], embedding of the token at `position`.
            position: int32 [].

        Returns:
            The cache with the token in it; float [B, dim] as `__call__` gives at that place.
        """
        rows, length = cache.memory_mask.shape
        prefix = 0 if self.cross else length
        seen = jnp.arange(cache.key[0].shape[-2] - prefix) <= position
        seen = jnp.broadcast_to(seen, (rows, *seen.shape))
        if prefix:
            seen = jnp.concatenate([cache.memory_mask, seen], 1)
        angles = self._angles(prefix)
        index = prefix + position
        context = Context(
            mask=seen[:, None, None],
            memory_mask=cache.memory_mask if self.cross else None,
            angles=None if angles is None else jax.lax.dynamic_slice_in_dim(angles, index, 1),
            index=index,
        )
        x = x + self._places()[position]
        x, cache = self.blocks(x[:, None], context, cache)
        return cache, x[:, 0]


def visibility(
    prefix: int, num_tokens: int, memory_mask: jax.Array | None, causal: bool
) -> jax.Array | None:
    """What sees what in a prefix of memory and the tokens behind it.

    Args:
        prefix: length of the memory.
        num_tokens: N.
        memory_mask: bool [B, prefix], True = a real memory token; None = all are.
        causal: see `Transformer`.

    Returns:
        bool [B or 1, 1, S or 1, S] as [.., query, key], None where all see all.
    """
    mask = None
    if memory_mask is not None:
        mask = jnp.pad(memory_mask, ((0, 0), (0, num_tokens)), constant_values=True)[:, None, None]
    if causal:
        places = jnp.arange(prefix + num_tokens)
        earlier = (places[None, :] < prefix) | (places[None, :] <= places[:, None])
        mask = earlier[None, None] if mask is None else mask & earlier
    return mask
