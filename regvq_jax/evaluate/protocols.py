"""Named ways from images to features: network, resizing, scaling of pixels. Figures of two do not compare."""

import dataclasses
import hashlib
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from regvq_jax import sharding
from regvq_jax.errors import UserError
from regvq_jax.evaluate import resizing
from regvq_jax.files import local_copy
from regvq_jax.interop import efficientnet_weights, vision_weights
from regvq_jax.interop.inception_weights import load_inception
from regvq_jax.settings import did_you_mean

PyTree = Any
Scale = tuple[float, float, float]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How bytes become the features of one network.

    Attributes:
        network: name of the network.
        load_fn: (path or URL of weights, "" = where they usually are) -> (module, parameters, sha256).
        size: side of its input, pixels.
        matrix_fn: the resizing, see `resizing`.
        shift, scale: of pixels in [0, 255], by colour: (x - shift) / scale.
        clip: limit resized pixels to [0, 255], which a bicubic filter leaves.
        about: the resizing and scaling in words, for result files.
    """

    network: str
    load_fn: Callable[[str], tuple[nn.Module, PyTree, str]]
    size: int
    matrix_fn: resizing.MatrixFn
    shift: Scale
    scale: Scale
    about: str
    clip: bool = False


def _load_packaged(weights: str) -> tuple[nn.Module, PyTree, str]:
    """EfficientNet-Lite0, whose weights come with a package."""
    if weights:
        raise UserError(
            f"The protocol efficientnet_lite0 has weights of its own: leave {weights} away, or name the "
            "protocol that the file is for."
        )
    module, params = efficientnet_weights.load_efficientnet_lite0()
    return module, params, efficientnet_weights.EFFICIENTNET_SHA256


def _load_named(
    load_fn: Callable, name: str, num_features: int, file: str, weights: str
) -> tuple[nn.Module, PyTree, str]:
    """A network whose weights the user has to bring."""
    if not weights:
        raise UserError(
            f"The protocol {name} needs a file of weights that cannot be packaged: fetch {file} and give it "
            f"as --weights=FILE, or in a config as protocols=('{name}@FILE',)."
        )
    path = local_copy(weights)
    module, params = load_fn(path)
    size = PROTOCOLS[name].size
    if module.image_size != size:
        raise UserError(
            f"{weights} takes images of {module.image_size} pixels, and {name} has {size}: it is another "
            f"network; fetch {file}."
        )
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    found = jax.eval_shape(module.apply, {"params": params}, image)["features"].shape[1]
    if found != num_features:
        raise UserError(
            f"{weights} gives {found} features, and {name} has {num_features}: it is of another size of that "
            f"network; fetch {file}."
        )
    return module, params, hashlib.sha256(path.read_bytes()).hexdigest()


def _grey(value: float) -> Scale:
    return (value,) * 3


def _bytes(parts: Scale) -> Scale:
    return tuple(255.0 * part for part in parts)


_TF_WORDS = "uint8, TensorFlow 1 bilinear to 299, (x - 128) / 128"
PROTOCOLS = {
    "torch-fidelity": Protocol(
        "inception", load_inception, 299, resizing.tf1_bilinear, _grey(128), _grey(128), _TF_WORDS
    ),
    "pytorch-fid": Protocol(
        "inception", load_inception, 299, resizing.half_pixel_bilinear, _grey(127.5), _grey(127.5),
        "bilinear to 299 with align_corners=False, no antialiasing, 2 x / 255 - 1",
    ),
    "clean-fid": Protocol(
        "inception", load_inception, 299, resizing.pillow_bicubic, _grey(128), _grey(128),
        "Pillow bicubic to 299 in float, clipped, not rounded, (x - 128) / 128", clip=True,
    ),
    # The evaluator of guided-diffusion feeds the same graph; its reference statistics come as .npz.
    "adm": Protocol(
        "inception", load_inception, 299, resizing.tf1_bilinear, _grey(128), _grey(128), _TF_WORDS
    ),
    "efficientnet_lite0": Protocol(
        "efficientnet_lite0", _load_packaged, 224, resizing.pillow_bicubic, _grey(127), _grey(128),
        "Pillow bicubic to 224 in float, clipped, (x - 127) / 128", clip=True,
    ),
    **{
        name: Protocol(
            name,
            partial(_load_named, vision_weights.load_dinov2, name, num_features, f"{name}_pretrain.pth"),
            224, resizing.pillow_bicubic, _bytes(IMAGENET_MEAN), _bytes(IMAGENET_STD),
            "Pillow bicubic to 224 in float, clipped, ImageNet's mean and deviation", clip=True,
        )
        for name, num_features in (("dinov2_vitb14", 768), ("dinov2_vitl14", 1024))
    },
    "clip_vitl14_336": Protocol(
        "clip_vitl14_336",
        partial(
            _load_named, vision_weights.load_clip_vision, "clip_vitl14_336", 768,
            "model.safetensors of openai/clip-vit-large-patch14-336",
        ),
        336, resizing.pillow_bicubic, _bytes(CLIP_MEAN), _bytes(CLIP_STD),
        "Pillow bicubic to 336 in float, clipped, CLIP's mean and deviation", clip=True,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Extractor:
    """A protocol with its weights.

    Attributes:
        name: of the protocol.
        protocol: the protocol.
        module: the network.
        params: its parameters, numpy.
        digest: sha256 of the weights' file.
    """

    name: str
    protocol: Protocol
    module: nn.Module
    params: PyTree = dataclasses.field(repr=False)
    digest: str

    @property
    def is_inception(self) -> bool:
        """Only distances in FID's own network may be called FID."""
        return self.protocol.network == "inception"

    @property
    def tag(self) -> str:
        """The name in metrics: "torch_fidelity"."""
        return self.name.replace("-", "_")

    def __call__(self, params: PyTree, images: jax.Array) -> dict[str, jax.Array]:
        """Features of images; pure, for `jit`.

        Args:
            params: of the module, on the devices.
            images: uint8 [B, H, W, 3].

        Returns:
            {"features": float32 [B, D]}, and "logits" float32 [B, C] of a classifier.
        """
        protocol = self.protocol
        pixels = resizing.resize(images, protocol.size, protocol.matrix_fn)
        if protocol.clip:
            pixels = jnp.clip(pixels, 0.0, 255.0)
        pixels = (pixels - jnp.array(protocol.shift)) / jnp.array(protocol.scale)
        return self.module.apply({"params": params}, pixels)

    def compiled(self, mesh: jax.sharding.Mesh) -> Callable[[jax.Array], dict[str, jax.Array]]:
        """The features of batches that are split over a mesh, with "finite": bool [B]; compiled once."""
        if mesh not in self._compiled:
            self._compiled[mesh] = partial(
                jax.jit(self._with_check, out_shardings=sharding.batch_sharding(mesh)),
                jax.device_put(self.params, sharding.replicated(mesh)),
            )
        return self._compiled[mesh]

    @cached_property
    def _compiled(self) -> dict[jax.sharding.Mesh, Callable]:
        return {}

    def _with_check(self, params: PyTree, images: jax.Array) -> dict[str, jax.Array]:
        out = self(params, images)
        return out | {"finite": jnp.isfinite(out["features"]).all(1)}

    @cached_property
    def num_features(self) -> int:
        """D."""
        image = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.uint8)
        return jax.eval_shape(self, self.params, image)["features"].shape[1]

    def describe(self) -> dict[str, Any]:
        """For result files: all that decides the features."""
        return {
            "name": self.name,
            "network": self.protocol.network,
            "weights_sha256": self.digest,
            "preprocessing": self.protocol.about,
            "features": self.num_features,
        }


def make_extractor(spec: str) -> Extractor:
    """The protocol that a config or a command names, with its weights loaded.

    Args:
        spec: "NAME" or "NAME@WEIGHTS", NAME one of `PROTOCOLS`, WEIGHTS a file or a URL.

    Raises:
        UserError: an unknown protocol, or weights that cannot be had.
    """
    name, _, weights = spec.partition("@")
    if name not in PROTOCOLS:
        raise UserError(f'There is no protocol "{name}".{did_you_mean(name, list(PROTOCOLS))}')
    protocol = PROTOCOLS[name]
    module, params, digest = protocol.load_fn(weights)
    return Extractor(name, protocol, module, params, digest)
