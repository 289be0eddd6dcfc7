"""Pre-norm transformer blocks, and the cache of keys and values between the steps of causal ones."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from regvq_jax.models.attention import Attention, dense_init
from regvq_jax.models.dropout import Dropout
from regvq_jax.models.layers import Dtype
from regvq_jax.models.products import kernel_product
from regvq_jax.sharding import split_batch

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
        causal_from: of a whole sequence, the place from which on tokens see nothing behind themselves, while
            those before it see each other alone; None where it is not so.
    """

    mask: jax.Array | None = None
    memory: jax.Array | None = None
    memory_mask: jax.Array | None = None
    time: jax.Array | None = None
    angles: jax.Array | None = None
    index: jax.Array | int = 0
    causal_from: int | None = None


# One array a layer, or, where layers are scanned over, one for all with a leading axis depth.
Layers = tuple[jax.Array, ...] | jax.Array


class Cache(NamedTuple):
    """Keys and values between the steps of a causal transformer.

    Heads come before places, as the products of attention want them: a step transposes nothing. Of a single
    row there is no axis B: XLA for CPUs would copy the whole cache in each step.

    Attributes:
        key, value: [B, heads, S, head_dim] of each layer, of the sequence: of the memory, unless there is
            cross-attention, and of as many tokens as there is room for.
        memory_mask: bool [B, L], True = a real memory token; L is 0 without a memory.
        memory_key, memory_value: [B, heads, L, head_dim] of each layer, of the memory; None without
            cross-attention.
    """

    key: Layers
    value: Layers
    memory_mask: jax.Array
    memory_key: Layers | None = None
    memory_value: Layers | None = None


def make_room(cache: Cache, places: int) -> Cache:
    """The cache with room for so many more tokens."""

    def lengthen(x):
        return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, places), (0, 0)])

    return cache._replace(**jax.tree.map(lengthen, {"key": cache.key, "value": cache.value}))


def put(layers: Layers, layer: jax.Array | int, index: jax.Array | int, new: jax.Array) -> Layers:
    """Puts one layer's keys or values, [B, Q, heads, head_dim], at `index` of a `Cache`'s."""
    new = new.swapaxes(1, 2)
    new = new.reshape(*layers[0].shape[:-2], *new.shape[-2:])
    start = (*[0] * (new.ndim - 2), index, 0)
    if not isinstance(layers, tuple):
        return jax.lax.dynamic_update_slice(layers, new[None], (layer, *start))
    own = jax.lax.dynamic_update_slice(layers[layer], new, start)
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
        dense = functools.partial(
            nn.Dense, kernel_init=dense_init, dtype=self.dtype, dot_general_cls=lambda: kernel_product
        )
        self.mlp_in, self.mlp_out = dense(self.mlp_ratio * self.dim), dense(self.dim)
        self.drop = Dropout(self.dropout)
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
                own = cache.key[layer], cache.value[layer]
                return self.self_attention.attend_cache(h, *own, context.mask, context.angles)
            return self.self_attention(h, key, value, context.mask, context.angles, context.causal_from)

        def attend_memory(h):
            mask = None if context.memory_mask is None else context.memory_mask[:, None, None]
            if cache is not None:
                own = cache.memory_key[layer], cache.memory_value[layer]
                return self.cross_attention.attend_cache(h, *own, mask)
            return self.cross_attention(h, *self.memory_keys_values(context.memory), mask)

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
        self.drop = Dropout(self.dropout)
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
            x = split_batch(x)
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
