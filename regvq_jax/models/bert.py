"""BERT's encoder, which stays as it was trained: ids to one feature a token."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from regvq_jax.models.attention import Attention
from regvq_jax.models.layers import Dtype


class BertEncoder(nn.Module):
    """A bidirectional post-norm transformer over a caption; the defaults are those of all-MiniLM-L6-v2.

    Its parameters come from `interop.text_weights` and are not trained. Those of the layers are stacked,
    [depth, ...].

    Attributes:
        vocab_size: number of ids.
        width: F, of the features.
        depth: layers.
        num_heads: divides width.
        hidden: width inside the MLPs.
        context: longest L.
        num_types: of segments; a caption is one, of type 0.
        epsilon: of the norms.
        start_id, end_id: around every caption.
        pad_id: the id that stands for no token.
        dtype: of the computation; norms and the attention softmax are float32.
    """

    vocab_size: int = 30522
    width: int = 384
    depth: int = 6
    num_heads: int = 12
    hidden: int = 1536
    context: int = 512
    num_types: int = 2
    epsilon: float = 1e-12
    start_id: int = 101
    end_id: int = 102
    pad_id: int = 0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Encodes rows of ids.

        Args:
            ids: int32 [B, L], L <= `context`, from `conditioning.text_wordpiece`: start, words, end, then
                `pad_id`.

        Returns:
            float32 [B, L, F], the features of the last layer, meaningless where padded; bool [B, L], True
            = a token, start and end included. Padding is seen by nothing. A row of padding alone (an empty
            caption) has no token, and the features of start and end.

        Raises:
            ValueError: L is above `context`.
        """
        length = ids.shape[1]
        if length > self.context:
            raise ValueError(f"text of length {length} is longer than the context of {self.context}")
        mask = ids != self.pad_id
        places = jnp.arange(length)
        empty = ~mask.any(1, keepdims=True)
        ids = jnp.where(empty & (places == 0), self.start_id, ids)
        ids = jnp.where(empty & (places == 1), self.end_id, ids)
        seen = (ids != self.pad_id)[:, None, None]

        def embed(count: int, name: str, ids: jax.Array) -> jax.Array:
            return nn.Embed(count, self.width, dtype=self.dtype, name=name)(ids)

        x = embed(self.vocab_size, "token_embedding", ids)
        x = x + embed(self.context, "position_embedding", places)
        x = x + embed(self.num_types, "type_embedding", jnp.zeros_like(places))
        x = _layer_norm(self.epsilon, self.dtype, "embedding_norm")(x)
        layers = nn.scan(
            BertLayer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.depth,
        )
        x, _ = layers(self.num_heads, self.hidden, self.epsilon, self.dtype, name="layers")(x, seen)
        return x.astype(jnp.float32), mask


class BertLayer(nn.Module):
    """Self-attention and an MLP, each beside a skip and before a norm; attributes as in BertEncoder."""

    num_heads: int
    hidden: int
    epsilon: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, seen: jax.Array) -> tuple[jax.Array, None]:
        """float [B, L, F], and bool [B, 1, 1, L], True = a key that is seen -> float [B, L, F], None."""
        width = x.shape[-1]
        attention = Attention(width, self.num_heads, dtype=self.dtype, name="attention")
        h = attention(x, *attention.keys_values(x), seen)
        x = _layer_norm(self.epsilon, self.dtype, "attention_norm")(x + h)
        h = nn.Dense(self.hidden, dtype=self.dtype, name="mlp_in")(x)
        h = nn.Dense(width, dtype=self.dtype, name="mlp_out")(nn.gelu(h, approximate=False))
        return _layer_norm(self.epsilon, self.dtype, "mlp_norm")(x + h), None


def _layer_norm(epsilon: float, dtype: Dtype, name: str) -> nn.LayerNorm:
    # E[x^2] - E[x]^2 would lose digits, and so tiny an epsilon would not forgive it.
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, dtype=dtype, name=name)
