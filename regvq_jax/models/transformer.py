"""Pre-norm transformer over a grid of tokens, with a prefix of memory or cross-attention to it."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from regvq_jax.models.attention import Attention, dense_init, grid_angles
from regvq_jax.models.layers import Dtype

embedding_init = nn.initializers.normal(0.02)
POSITIONS = ("learned", "rotary")
# What a backward pass finds kept of each block: all, the results of its products, or its input alone.
REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Context(NamedTuple):
    """What all blocks share in one pass.

    Attributes:
        mask: bool, broadcastable to [B, heads, Q, S], True = seen; None = all.
        memory: float [B, L, dim], for cross-attention.
        memory_mask: bool [B, L], True = a real memory token.
        time: float [B, dim], embedding of the noise level, for blocks with `modulated`.
        angles: float32 [Q, head_dim / 2], of rotary positions.
        index: int32 [], where the Q tokens stand in the cache.
    """

    mask: jax.Array | None = None
    memory: jax.Array | None = None
    memory_mask: jax.Array | None = None
    time: jax.Array | None = None
    angles: jax.Array | None = None
    index: jax.Array | int = 0


# One array a layer, or, where layers are scanned over, one for all with a leading axis depth.
Layers = tuple[jax.Array, ...] | jax.Array


class Cache(NamedTuple):
    """Keys and values between the steps of a causal transformer.

    Heads come before places, as the products of attention want them: a step transposes nothing.

    Attributes:
        key, value: [B, heads, S, head_dim] of each layer, of the sequence, S its full length.
        memory_key, memory_value: [B, heads, L, head_dim] of each layer, of the memory; None without
            cross-attention.
    """

    key: Layers
    value: Layers
    memory_key: Layers | None = None
    memory_value: Layers | None = None


def put(layers: Layers, layer: jax.Array | int, index: jax.Array | int, new: jax.Array) -> Layers:
    """Puts one layer's keys or values, [B, Q, heads, head_dim], at `index` of a `Cache`'s."""
    new = new.swapaxes(1, 2)
    if not isinstance(layers, tuple):
        return jax.lax.dynamic_update_slice(layers, new[None], (layer, 0, 0, index, 0))
    own = jax.lax.dynamic_update_slice_in_dim(layers[layer], new, index, 2)
    return (*layers[:layer], own, *layers[layer + 1 :])


class Block(nn.Module):
    """Self-attention, cross-attention if wanted, and a GELU MLP, each behind a norm and beside a skip.

    Attributes:
        dim: width.
        num_heads: attention heads; divides dim.
        mlp_ratio: hidden width of the MLP over dim.
        dropout: rate on all branches.
        cross: attend to a memory too.
        modulated: norms are shifted and scaled, and branches gated, by the noise level (AdaLN-zero).
        qk_norm, attention: see `Attention`.
        dtype: of the computation; parameters and the attention softmax are float32.
    """

    dim: int
    num_heads: int
    mlp_ratio: int = 4
    dropout: float = 0.0
    cross: bool = False
    modulated: bool = False
    qk_norm: bool = False
    attention: str = "auto"
    dtype: Dtype = jnp.float32

    def setup(self):
        attend = {
            "dim": self.dim,
            "num_heads": self.num_heads,
            "qk_norm": self.qk_norm,
            "implementation": self.attention,
            "dtype": self.dtype,
        }
        affine = not self.modulated
        norm = lambda: nn.LayerNorm(use_scale=affine, use_bias=affine, dtype=self.dtype)
        self.attention_norm, self.self_attention = norm(), Attention(**attend)
        if self.cross:
            self.cross_norm, self.cross_attention = norm(), Attention(**attend)
        self.mlp_norm = norm()
        self.mlp_in = nn.Dense(self.mlp_ratio * self.dim, kernel_init=dense_init, dtype=self.dtype)
        self.mlp_out = nn.Dense(self.dim, kernel_init=dense_init, dtype=self.dtype)
        self.drop = nn.Dropout(self.dropout)
        if self.modulated:
            # Zeros: every block begins as the identity.
            zeros = nn.initializers.zeros
            branches = 3 if self.cross else 2
            self.modulation = nn.Dense(3 * branches * self.dim, kernel_init=zeros, dtype=self.dtype)

    def memory_keys_values(self, memory: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values of the cross-attention, [B, L, heads, head_dim] each."""
        return self.cross_attention.keys_values(memory)

    def __call__(
        self,
        x: jax.Array,
        context: Context,
        cache: Cache | None = None,
        layer: jax.Array | int = 0,
        deterministic: bool = True,
    ) -> tuple[jax.Array, Cache | None]:
        """One block.

        Args:
            x: float [B, Q, dim].
            context: see `Context`.
            cache: of all layers, which gets the keys and values of x before they are read; None: x sees
                itself alone.
            layer: int32 [] or int, whose place in the cache is this block's.
            deterministic: False draws dropout from the "dropout" stream.

        Returns:
            float [B, Q, dim]; the cache with x in it.
        """
        parts = iter(())
        if self.modulated:
            modulation = self.modulation(nn.swish(context.time))[:, None]
            parts = iter(jnp.split(modulation, modulation.shape[-1] // self.dim, -1))

        def branch(x, norm, fn):
            h = norm(x)
            if not self.modulated:
                return x + self.drop(fn(h), deterministic=deterministic)
            shift, scale, gate = next(parts), next(parts), next(parts)
            return x + gate * self.drop(fn(h * (1 + scale) + shift), deterministic=deterministic)

        def attend_self(h):
            nonlocal cache
            key, value = self.self_attention.keys_values(h, context.angles)
            if cache is not None:
                cache = cache._replace(
                    key=put(cache.key, layer, context.index, key),
                    value=put(cache.value, layer, context.index, value),
                )
                key, value = (x[layer].swapaxes(1, 2) for x in (cache.key, cache.value))
            return self.self_attention(h, key, value, context.mask, context.angles)

        def attend_memory(h):
            if cache is None:
                key, value = self.memory_keys_values(context.memory)
            else:
                key, value = (x[layer].swapaxes(1, 2) for x in (cache.memory_key, cache.memory_value))
            mask = None if context.memory_mask is None else context.memory_mask[:, None, None]
            return self.cross_attention(h, key, value, mask)

        x = branch(x, self.attention_norm, attend_self)
        if self.cross:
            x = branch(x, self.cross_norm, attend_memory)
        x = branch(x, self.mlp_norm, lambda h: self.mlp_out(nn.gelu(self.mlp_in(h))))
        return x, cache


class Blocks(nn.Module):
    """`depth` blocks and a last LayerNorm.

    Attributes:
        depth: number of blocks.
        scan_layers: compiles one block and scans over stacked parameters (`layers`, leading axis
            depth) instead of unrolling `layers_0`, `layers_1`, ...: quicker to compile, the same
            function.
        remat: a name in `REMAT`: what the backward pass computes again instead of keeping it.
        The others: see `Block`.
    """

    dim: int
    depth: int
    num_heads: int
    mlp_ratio: int = 4
    dropout: float = 0.0
    cross: bool = False
    modulated: bool = False
    qk_norm: bool = False
    attention: str = "auto"
    scan_layers: bool = False
    remat: str = "none"
    dtype: Dtype = jnp.float32

    def setup(self):
        if self.dim % self.num_heads:
            raise ValueError(f"{self.num_heads} heads do not divide a width of {self.dim}")
        names = ("dim", "num_heads", "mlp_ratio", "dropout", "cross", "modulated", "qk_norm", "attention")
        fields = {name: getattr(self, name) for name in names} | {"dtype": self.dtype}
        self.layers = Block(**fields) if self.scan_layers else [Block(**fields) for _ in range(self.depth)]
        self.drop = nn.Dropout(self.dropout)
        self.last_norm = nn.LayerNorm(dtype=self.dtype)

    def __call__(
        self,
        x: jax.Array,
        context: Context = Context(),  # noqa: B008 - immutable
        cache: Cache | None = None,
        *,
        deterministic: bool = True,
    ) -> tuple[jax.Array, Cache | None]:
        """Runs all blocks.

        Args:
            x: float [B, Q, dim].
            context: see `Context`.
            cache: where the keys and values of x are put, at `context.index`, before x attends to all.
            deterministic: False draws dropout from the "dropout" stream.

        Returns:
            float [B, Q, dim] in `dtype`, and the cache with x in it (None without one).
        """
        x = self.drop(x.astype(self.dtype), deterministic=deterministic)

        def run(block, carry, layer):
            x, cache = carry
            return block(x, context, cache, layer, deterministic), None

        if self.remat != "none" and cache is None:
            run = nn.remat(run, policy=REMAT[self.remat], prevent_cse=not self.scan_layers)
        x, cache = self._over_layers(run, (x, cache))[0]
        return self.last_norm(x), cache

    def memory_keys_values(self, memory: jax.Array) -> tuple[Layers, Layers]:
        """What every block's cross-attention reads of a memory, for a `Cache`."""
        arrays = self._over_layers(lambda block, _, __: (None, block.memory_keys_values(memory)), None)[1]
        heads_first = (x.swapaxes(2, 3) for x in arrays)
        return tuple(x if self.scan_layers else tuple(x) for x in heads_first)

    def _over_layers(self, fn, carry):
        """(last carry, stacked results) of `fn(block, carry, layer)` over all layers."""
        layers = jnp.arange(self.depth)
        if self.scan_layers:
            scan = nn.scan(
                fn,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                length=self.depth,
            )
            return scan(self.layers, carry, layers)
        results = []
        for layer, block in enumerate(self.layers):
            carry, result = fn(block, carry, layer)
            results.append(result)
        return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


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
        if self.cross:
            mask = visibility(0, num_tokens, None, self.causal)
            context = Context(mask, memory, memory_mask, time, self._angles(0))
            return self.blocks(x, context, deterministic=deterministic)[0]
        prefix = 0 if memory is None else memory.shape[1]
        if memory is not None:
            x = jnp.concatenate([memory.astype(x.dtype), x], axis=1)
        mask = visibility(prefix, num_tokens, memory_mask, self.causal)
        context = Context(mask, time=time, angles=self._angles(prefix))
        return self.blocks(x, context, deterministic=deterministic)[0][:, prefix:]

    def start_cache(
        self, rows: int, memory: jax.Array | None = None, memory_mask: jax.Array | None = None
    ) -> Cache:
        """A cache for `rows` sequences that holds the memory and no token yet; Args as in `__call__`."""
        height, width = self.grid
        prefix = 0 if memory is None or self.cross else memory.shape[1]
        shape = (self.depth, rows, self.num_heads, prefix + height * width, self.dim // self.num_heads)
        empty = jnp.zeros(shape, self.dtype)
        cache = Cache(*((empty if self.scan_layers else tuple(empty)),) * 2)
        if self.cross:
            key, value = self.blocks.memory_keys_values(memory.astype(self.dtype))
            return cache._replace(memory_key=key, memory_value=value)
        if prefix:
            # A memory token sees the memory alone, which lies at the start of the cache.
            seen = jnp.ones((rows, prefix), bool) if memory_mask is None else memory_mask
            mask = jnp.pad(seen, ((0, 0), (0, height * width)))[:, None, None]
            angles = self._angles(prefix)
            context = Context(mask, angles=None if angles is None else angles[:prefix])
            cache = self.blocks(memory, context, cache)[1]
        return cache

    def step(
        self, cache: Cache, x: jax.Array, position: jax.Array, memory_mask: jax.Array | None = None
    ) -> tuple[Cache, jax.Array]:
        """One token of a causal transformer.

        Args:
            cache: holds the memory and the tokens before `position`.
            x: float [B, dim], embedding of the token at `position`.
            position: int32 [].
            memory_mask: bool [B, L], as given to `start_cache`.

        Returns:
            The cache with the token in it; float [B, dim] as `__call__` gives at that place.
        """
        num_tokens = self.grid[0] * self.grid[1]
        prefix = cache.key[0].shape[2] - num_tokens
        seen = (jnp.arange(num_tokens) <= position)[None]
        if prefix:
            before = jnp.ones((1, prefix), bool) if memory_mask is None else memory_mask
            seen = jnp.broadcast_to(seen, (before.shape[0], num_tokens))
            seen = jnp.concatenate([before, seen], 1)
        angles = self._angles(prefix)
        index = prefix + position
        context = Context(
            mask=seen[:, None, None],
            memory_mask=memory_mask if self.cross else None,
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
