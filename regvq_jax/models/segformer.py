"""SegFormer, which names the class of every pixel and stays as it was trained: images to logits."""

import flax.linen as nn
import jax

from regvq_jax.errors import UserError
from regvq_jax.models.attention import Attention

# The same in every MiT encoder, so no fields: the windows of the four embeddings, and their strides.
PATCHES = (7, 3, 3, 3)
STRIDES = (4, 2, 2, 2)


class SegFormer(nn.Module):
    """A Mix Transformer (MiT) of four ever coarser stages and a head on all of them; the defaults are B0's.

    For inference, in float32. Its parameters come from `interop.segmenter_weights` and are not trained. Those
    of a stage's layers are stacked, [depth, ...]. The head's two linear maps and its batch norm have nothing
    in between that is not linear (resizing is), so they are one map a stage here, and it comes before the
    resizing: the same logits for a fraction of the work.

    Attributes:
        num_classes: C.
        widths: of the features, one a stage.
        depths: layers.
        num_heads: each divides the width of its stage.
        reductions: sides of the squares of places that become one key and value.
        hidden: widths inside the MLPs.
        head_width: of the head's features.
    """

    num_classes: int = 150
    widths: tuple[int, ...] = (32, 64, 160, 256)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    num_heads: tuple[int, ...] = (1, 2, 5, 8)
    reductions: tuple[int, ...] = (8, 4, 2, 1)
    hidden: tuple[int, ...] = (128, 256, 640, 1024)
    head_width: int = 256

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """float32 [B, H, W, 3], normalised as `evaluate.segmentation` does -> float32 [B, H/4, W/4, C].

        Sides that are no multiple of 4 are rounded up.

        Raises:
            UserError: the images are too small for a stage to have one key.
        """
        smallest = self.smallest_image()
        if min(images.shape[1:3]) < smallest:
            raise UserError(
                f"Images of {images.shape[1]}x{images.shape[2]} pixels are too small for this SegFormer; "
                f"resize them to at least {smallest}x{smallest}."
            )
        x, features = images, []
        for stage, width in enumerate(self.widths):
            x = MiTStage(
                width,
                self.depths[stage],
                self.num_heads[stage],
                self.reductions[stage],
                self.hidden[stage],
                PATCHES[stage],
                STRIDES[stage],
                name=f"stage_{stage}",
            )(x)
            features.append(x)

        total = 0.0
        for stage, x in enumerate(features):
            # One bias will do for the sum.
            x = nn.Dense(self.head_width, use_bias=stage == 0, name=f"head_{stage}")(x)
            total += resize_bilinear(x, *features[0].shape[1:3])
        return nn.Dense(self.num_classes, name="classifier")(nn.relu(total))

    def smallest_image(self) -> int:
        """The least height and width, in pixels, that leave a key to every stage."""
        sizes, stride = [], 1
        for stage, reduction in enumerate(self.reductions):
            stride *= STRIDES[stage]
            # Rounded up by the strides, down by the reduction.
            sizes.append((reduction - 1) * stride + 1)
        return max(sizes)


class MiTStage(nn.Module):
    """Overlapping patches and layers of attention; float32 [B, H, W, C] -> [B, H/stride, W/stride, width].

    Attributes:
        width, depth, num_heads, reduction, hidden: an entry of those of SegFormer.
        patch: side of a patch in pixels or places.
        stride: between patches.
    """

    width: int
    depth: int
    num_heads: int
    reduction: int
    hidden: int
    patch: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        window, stride = (self.patch, self.patch), (self.stride, self.stride)
        x = nn.Conv(self.width, window, stride, padding=self.patch // 2, name="patch")(x)
        x = _layer_norm("patch_norm")(x)
        layers = nn.scan(
            MiTLayer, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth
        )
        x, _ = layers(self.num_heads, self.reduction, self.hidden, name="layers")(x)
        return _layer_norm("norm")(x)


class MiTLayer(nn.Module):
    """Attention to a coarser grid, and an MLP with a 3x3 convolution inside, each behind a norm, with a skip.

    The convolution's zero padding is all that tells the places apart.
    """

    num_heads: int
    reduction: int
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
        """float32 [B, h, w, F] -> the same shape, None."""
        batch, _, _, width = x.shape
        h = seen = _layer_norm("attention_norm")(x)
        if self.reduction > 1:
            square = (self.reduction, self.reduction)
            seen = nn.Conv(width, square, square, padding="VALID", name="reduce")(seen)
            seen = _layer_norm("reduce_norm")(seen)
        attention = Attention(width, self.num_heads, name="attention")
        keys_values = attention.keys_values(seen.reshape(batch, -1, width))
        x = x + attention(h.reshape(batch, -1, width), *keys_values).reshape(x.shape)

        h = nn.Dense(self.hidden, name="mlp_in")(_layer_norm("mlp_norm")(x))
        h = nn.Conv(self.hidden, (3, 3), padding=1, feature_group_count=self.hidden, name="mlp_mix")(h)
        return x + nn.Dense(width, name="mlp_out")(nn.gelu(h, approximate=False)), None


def resize_bilinear(x: jax.Array, height: int, width: int, antialias: bool = False) -> jax.Array:
    """Resizes as torch's `interpolate(mode="bilinear", align_corners=False)` does.

    Args:
        x: float [B, H, W, C].
        height, width: of the result.
        antialias: widens the window where the result is smaller, so that every pixel counts.

    Returns:
        float [B, height, width, C].
    """
    shape = (x.shape[0], height, width, x.shape[3])
    return jax.image.resize(x, shape, "bilinear", antialias=antialias)


def _layer_norm(name: str) -> nn.LayerNorm:
    # E[x^2] - E[x]^2 would lose digits.
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=name)
