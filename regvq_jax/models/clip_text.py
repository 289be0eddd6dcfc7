"""CLIP's text encoder, which stays as it was trained: ids to one feature a token."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from regvq_jax.models.attention import Attention
from regvq_jax.models.layers import Dtype


def quick_gelu(x: jax.Array) -> jax.Array:
    """x * sigmoid(1.702 x), the GELU of OpenAI's CLIP."""
    return x * nn.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": lambda x: nn.gelu(x, approximate=False)}


class CLIPTextEncoder(nn.Module):
    """A causal pre-norm transformer over a caption; the defaults are those of CLIP ViT-B/32.

    Its parameters come from `interop.text_weights` and are not trained. Those of the layers are stacked,
    [depth, ...].

    Attributes:
        vocab_size: number of ids in the embedding table.
        width: F, of the features.
        depth: layers.
        num_heads: divides width.
        hidden: width inside the MLPs.
        context: longest L.
        activation: of the MLPs, a key of `ACTIVATIONS`.
        start_id, end_id: around every caption.
        pad_id: the id that stands for no token; it needs no place in the table.
        dtype: of the computation; norms and the attention softmax are float32.
    """

    vocab_size: int = 49408
    width: int = 512
    depth: int = 12
    num_heads: int = 8
    hidden: int = 2048
    context: int = 77
    activation: str = "quick_gelu"
    start_id: int = 49406
    end_id: int = 49407
    pad_id: int = 49408
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Encodes rows of ids.

        Args:
            ids: int32 [B, L], L <= `context`, from `conditioning.text`: start, words, end, then `pad_id`.

        Returns:
            float32 [B, L, F], the features after the last norm, those of a padded place being of the end
            token repeated, as where CLIP pads; bool [B, L], True = a token, start and end included. A
            token does not see what follows, so padding changes nothing. A row of padding alone (an empty
            caption) has no token, and the features of start and end.

        Raises:
            ValueError: L is above `context`.
        """
        length = ids.shape[1]
        if length > self.context:
            raise ValueError(f"text of length {length} is longer than the context of {self.context}")
        mask = ids != self.pad_id
        ids = jnp.where(mask, ids, self.end_id)
        places = jnp.arange(length)
        ids = jnp.where(~mask.any(1, keepdims=True) & (places == 0), self.start_id, ids)
        x = nn.Embed(self.vocab_size, self.width, dtype=self.dtype, name="token_embedding")(ids)
        x = x + nn.Embed(self.context, self.width, dtype=self.dtype, name="position_embedding")(places)
        seen = jnp.tri(length, dtype=bool)[None, None]
        layers = nn.scan(
            CLIPTextLayer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.depth,
        )
        x, _ = layers(self.num_heads, self.hidden, ACTIVATIONS[self.activation], self.dtype, name="layers")(
            x, seen
        )
        return _layer_norm(jnp.float32, "last_norm")(x), mask


class CLIPTextLayer(nn.Module):
    """Self-attention and an MLP, each behind a norm and beside a skip; attributes as in CLIPTextEncoder."""

    num_heads: int
    hidden: int
    activation: Callable[[jax.Array], jax.Array]
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, seen: jax.Array) -> tuple[jax.Array, None]:
        """float [B, L, F], and bool [1, 1, L, L], True = the query sees the key -> float [B, L, F], None."""
        width = x.shape[-1]
        attention = Attention(width, self.num_heads, dtype=self.dtype, name="attention")
        h = _layer_norm(self.dtype, "attention_norm")(x)
        x = x + attention(h, *attention.keys_values(h), seen)
        h = _layer_norm(self.dtype, "mlp_norm")(x)
        h = self.activation(nn.Dense(self.hidden, dtype=self.dtype, name="mlp_in")(h))
        return x + nn.Dense(width, dtype=self.dtype, name="mlp_out")(h), None


def _layer_norm(dtype: Dtype, name: str) -> nn.LayerNorm:
    # CLIP's features have a few channels far from the others: E[x^2] - E[x]^2 would lose digits.
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, dtype=dtype, name=name)
