"""Attention for the transformer: which implementation, where tokens are, and keys kept between steps."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from regvq_jax.models.attention_by_heads import attention_by_heads
from regvq_jax.models.layers import Dtype
from regvq_jax.models.products import kernel_product

dense_init = nn.initializers.xavier_uniform()
IMPLEMENTATIONS = ("auto", "xla", "cudnn", "heads")


def choose_implementation(name: str, dtype: Dtype, query_length: int, key_length: int, head_dim: int) -> str:
    """Which attention to use.

    Args:
        name: "xla" and "cudnn" (fused, on NVIDIA GPUs) are taken as they are; "auto" is "cudnn" where that
            can do it, which wants half precision, even lengths and heads of a multiple of 8, and "heads"
            (`attention_by_heads`) where a single CPU computes in float32.
        dtype: of queries, keys and values.
        query_length, key_length: of the sequences.
        head_dim: size of a head.

    Returns:
        "xla" or "cudnn", of `jax.nn.dot_product_attention`, or "heads".
    """
    if name != "auto":
        return name
    if jax.default_backend() == "cpu" and jax.device_count() == 1:
        return "heads" if jnp.dtype(dtype) == jnp.float32 else "xla"
    half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    even = query_length % 2 == 0 and key_length % 2 == 0
    fits = half and even and head_dim % 8 == 0 and head_dim <= 128
    return "cudnn" if fits and jax.default_backend() == "gpu" else "xla"


def grid_angles(grid: tuple[int, int], head_dim: int, prefix: int = 0) -> np.ndarray:
    """Rotation angles of a grid of tokens: half of each head turns with the row, half with the column.

    Args:
        grid: (h, w).
        head_dim: size of a head, a multiple of 4.
        prefix: tokens in front of the grid, which are not turned.

    Returns:
        float32 [prefix + h * w, head_dim / 2].

    Raises:
        ValueError: a head that cannot be split so.
    """
    if head_dim % 4:
        raise ValueError(f"rotary 2-D positions need heads of a multiple of 4, not {head_dim}")
    # Grids are short beside texts: the slowest pair turns once in about a hundred places, not in 10,000.
    speeds = 100.0 ** -(np.arange(head_dim // 4) / (head_dim // 4))
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    angles = np.concatenate([rows[:, None] * speeds, columns[:, None] * speeds], -1)
    return np.pad(angles, ((prefix, 0), (0, 0))).astype(np.float32)


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Turns pairs of a head's elements (rotary positions, RoFormer).

    Args:
        x: float [B, S, heads, head_dim].
        angles: float32 [S, head_dim / 2].

    Returns:
        The same shape and dtype; lengths are kept, and products depend on differences of angles alone.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, -1)
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    turned = jnp.concatenate([first * cos - second * sin, first * sin + second * cos], -1)
    return turned.astype(x.dtype)


class Attention(nn.Module):
    """Multi-head attention whose keys and values are made apart, so that a caller can keep them.

    Attributes:
        dim: width in and out.
        num_heads: divides dim.
        qk_norm: RMS-normalises queries and keys of each head: no logit grows without bound.
        implementation: see `choose_implementation`.
        dtype: of the computation; parameters and the softmax are float32.
    """

    dim: int
    num_heads: int
    qk_norm: bool = False
    implementation: str = "auto"
    dtype: Dtype = jnp.float32

    def setup(self):
        dense = functools.partial(
            nn.DenseGeneral,
            kernel_init=dense_init,
            dtype=self.dtype,
            dot_general_cls=lambda: kernel_product,
        )
        heads = (self.num_heads, self.dim // self.num_heads)
        self.query, self.key, self.value = dense(heads), dense(heads), dense(heads)
        self.out = dense(self.dim, axis=(-2, -1))
        if self.qk_norm:
            self.query_norm, self.key_norm = nn.RMSNorm(dtype=self.dtype), nn.RMSNorm(dtype=self.dtype)

    def keys_values(self, x: jax.Array, angles: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Keys and values of float [B, S, dim], each [B, S, heads, head_dim]; `angles` as in `rotate`."""
        key = self.key(x)
        if self.qk_norm:
            key = self.key_norm(key)
        return (key if angles is None else rotate(key, angles)), self.value(x)

    def __call__(
        self,
        x: jax.Array,
        key: jax.Array,
        value: jax.Array,
        mask: jax.Array | None = None,
        angles: jax.Array | None = None,
        causal_from: int | None = None,
    ) -> jax.Array:
        """Attends from x to given keys.

        Args:
            x: float [B, Q, dim].
            key, value: [B, S, heads, head_dim], from `keys_values`.
            mask: bool, broadcastable to [B, heads, Q, S]; True = the query sees the key.
            angles: of the queries.
            causal_from: what `attention_by_heads` may rely on.

        Returns:
            float [B, Q, dim] in `dtype`.
        """
        query = self._query(x, angles)
        chosen = choose_implementation(
            self.implementation, self.dtype, query.shape[1], key.shape[1], query.shape[-1]
        )
        if chosen == "heads":
            return self.out(attention_by_heads(query, key, value, mask, causal_from))
        if chosen == "cudnn" and mask is not None:
            # It wants every query and key in the mask.
            mask = jnp.broadcast_to(mask, (*mask.shape[:2], query.shape[1], key.shape[1]))
        return self.out(
            jax.nn.dot_product_attention(query, key, value, mask=mask, implementation=chosen)
        )

    def attend_cache(
        self,
        x: jax.Array,
        key: jax.Array,
        value: jax.Array,
        mask: jax.Array | None = None,
        angles: jax.Array | None = None,
    ) -> jax.Array:
        """Attends from x to a layer's keys and values as they lie in a `Cache`, by plain products.

        Args:
            x, angles: as in `__call__`.
            key, value: [B, heads, S, head_dim]; of a single row [heads, S, head_dim].
            mask: bool, broadcastable to [B, heads, Q, S]; True = the query sees the key.

        Returns:
            float [B, Q, dim] in `dtype`.
        """
        query = self._query(x, angles).swapaxes(1, 2)
        shape = query.shape
        query = query.reshape(*key.shape[:-2], *shape[-2:])
        scores = jnp.einsum("...qd,...sd->...qs", query, key, preferred_element_type=jnp.float32)
        scores *= shape[-1] ** -0.5
        if mask is not None:
            mask = mask if key.ndim == 4 else mask[0]
            scores = jnp.where(mask, scores, -0.7 * jnp.finfo(jnp.float32).max)
        weights = jax.nn.softmax(scores).astype(value.dtype)
        out = jnp.einsum("...qs,...sd->...qd", weights, value)
        return self.out(out.reshape(shape).swapaxes(1, 2))

    def _query(self, x, angles):
        query = self.query(x)
        if self.qk_norm:
            query = self.query_norm(query)
        return query if angles is None else rotate(query, angles)
