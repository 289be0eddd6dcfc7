"""Vision transformers that stay as they were trained, DINOv2's and CLIP's: an image to one feature."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from regvq_jax.models.attention import Attention
from regvq_jax.models.clip_text import ACTIVATIONS


class VisionTransformer(nn.Module):
    """A pre-norm transformer over the patches of an image, in float32; its first token is the feature.

    The parameters come from `interop.vision_weights` and are not trained. Those of the layers are stacked,
    [depth, ...]. Products have float32's precision on every device, so that distances of two runs can be
    compared. The defaults are those of DINOv2 ViT-B/14, whose layer scales are part of the layers before
    them.

    Attributes:
        image_size: height and width, in pixels, a multiple of `patch_size`.
        patch_size: of the squares that become tokens.
        width: inside.
        depth: layers.
        num_heads: divides width.
        hidden: width inside the MLPs.
        activation: of the MLPs, a key of `ACTIVATIONS`.
        epsilon: of the norms.
        patch_bias: patches have a bias (DINOv2).
        embedding_norm: a norm before the first layer (CLIP).
        projection: width of a linear layer after the last norm (CLIP); 0 = none.
    """

    image_size: int = 224
    patch_size: int = 14
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    hidden: int = 3072
    activation: str = "gelu"
    epsilon: float = 1e-6
    patch_bias: bool = True
    embedding_norm: bool = False
    projection: int = 0

    @nn.compact
    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        """Encodes images.

        Args:
            images: float32 [B, image_size, image_size, 3], with the mean and deviation that the network
                was trained with.

        Returns:
            "features": float32 [B, F], F = `projection`, or `width` without one; not normalised.

        Raises:
            ValueError: images of another size.
        """
        if images.shape[1:] != (self.image_size, self.image_size, 3):
            raise ValueError(f"images of {images.shape[1:]} for a network of {self.image_size} pixels")
        patch = (self.patch_size, self.patch_size)
        with jax.default_matmul_precision("float32"):
            x = nn.Conv(self.width, patch, patch, use_bias=self.patch_bias, name="patch_embedding")(
                images.astype(jnp.float32)
            )
            x = x.reshape(len(x), -1, self.width)
            token = self.param("class_token", nn.initializers.zeros, (self.width,))
            x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, self.width)), x], 1)
            normal = nn.initializers.normal(0.02)
            x = x + self.param("position_embedding", normal, (x.shape[1], self.width))
            if self.embedding_norm:
                x = _layer_norm(self.epsilon, "embedding_norm")(x)
            layers = nn.scan(
                VisionTransformerLayer,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.depth,
            )
            activation = ACTIVATIONS[self.activation]
            x, _ = layers(self.num_heads, self.hidden, activation, self.epsilon, name="layers")(x, None)
            x = _layer_norm(self.epsilon, "last_norm")(x[:, 0])
            if self.projection:
                x = nn.Dense(self.projection, use_bias=False, name="projection")(x)
        return {"features": x}


class VisionTransformerLayer(nn.Module):
    """Self-attention and an MLP, each behind a norm and beside a skip; attributes as in VisionTransformer."""

    num_heads: int
    hidden: int
    activation: Callable[[jax.Array], jax.Array]
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        """float32 [B, S, width] -> float32 [B, S, width], None."""
        width = x.shape[-1]
        attention = Attention(width, self.num_heads, name="attention")
        h = _layer_norm(self.epsilon, "attention_norm")(x)
        x = x + attention(h, *attention.keys_values(h))
        h = _layer_norm(self.epsilon, "mlp_norm")(x)
        h = self.activation(nn.Dense(self.hidden, name="mlp_in")(h))
        return x + nn.Dense(width, name="mlp_out")(h), None


def resize_positions(positions: np.ndarray, grid: int) -> np.ndarray:
    """Position embeddings for another number of patches, as DINOv2 resizes them.

    That is torch's bicubic interpolation without antialiasing, told to scale by (grid + 0.1) / old grid: the
    tenth was to make sure of the number of places, and moves each of them a little.

    Args:
        positions: float [1 + old grid squared, F], that of the class token first.
        grid: patches on each side.

    Returns:
        float32 [1 + grid squared, F].
    """
    first, rest = positions[:1], positions[1:]
    old = math.isqrt(len(rest))
    if old == grid:
        return np.asarray(positions, np.float32)
    centres = (np.arange(grid) + 0.5) * old / (grid + 0.1) - 0.5
    nearest = np.floor(centres).astype(int)
    weights = np.zeros((grid, old))
    for tap in range(-1, 3):
        # Places beyond the edge repeat it.
        columns = np.clip(nearest + tap, 0, old - 1)
        np.add.at(weights, (np.arange(grid), columns), _cubic(np.abs(centres - nearest - tap)))
    square = rest.reshape(old, old, -1).astype(np.float64)
    square = np.einsum("ij,kl,jlf->ikf", weights, weights, square, optimize=True)
    return np.concatenate([first, square.reshape(grid * grid, -1)]).astype(np.float32)


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys's kernel with torch's a = -0.75, of distances in [0, 2]."""
    a, x = -0.75, distance
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, far)


def _layer_norm(epsilon: float, name: str) -> nn.LayerNorm:
    # Both networks have a few channels far from the others: E[x^2] - E[x]^2 would lose digits.
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, name=name)
