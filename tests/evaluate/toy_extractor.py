"""A small network in place of Inception, and sets of images that count how often they are read."""

import jax
import jax.numpy as jnp
import numpy as np

from regvq_jax.evaluate.features import ImageSet
from regvq_jax.evaluate.protocols import Extractor, Protocol
from regvq_jax.evaluate.resizing import half_pixel_bilinear

SIDE, NUM_FEATURES, NUM_CLASSES = 4, 12, 5


class Network:
    """One layer.

    Attributes:
        calls: how often it was traced.
        logits: it also gives logits.
    """

    def __init__(self, logits):
        self.calls, self.logits = 0, logits

    def apply(self, variables, images):
        self.calls += 1
        params = variables["params"]
        flat = images.reshape(len(images), -1)
        # Images whose first value is 1, brightest white, have no features.
        flat = jnp.where(flat[:, :1] < 1, flat, jnp.nan)
        features = jnp.tanh(flat @ params["features"])
        return {"features": features} | ({"logits": features @ params["logits"]} if self.logits else {})


def make_toy(name="toy", network="toy", logits=True, digest="0" * 64):
    """An `Extractor` of `Network`, for images of any size."""
    rng = np.random.default_rng(0)
    params = {
        "features": rng.standard_normal((SIDE * SIDE * 3, NUM_FEATURES)).astype(np.float32) / 4,
        "logits": rng.standard_normal((NUM_FEATURES, NUM_CLASSES)).astype(np.float32),
    }

    def load_fn(weights):
        return Network(logits), params, digest

    grey = (127.5,) * 3
    protocol = Protocol(network, load_fn, SIDE, half_pixel_bilinear, grey, grey, "bilinear to 4")
    return Extractor(name, protocol, *load_fn(""))


def draw_images(count, seed=0):
    """Uint8 [count, 6, 8, 3] with features."""
    return np.random.default_rng(seed).integers(0, 200, (count, 6, 8, 3), dtype=np.uint8)


def expected_outputs(extractor, images):
    """Features and logits of all images at once."""
    out = jax.jit(extractor)(extractor.params, images)
    return {name: np.asarray(x) for name, x in out.items()}


class Images:
    """An `ImageSet` of arrays.

    Attributes:
        passes: how often its batches were begun.
        set: the set.
    """

    def __init__(self, images, batch_size, name="toys", **more):
        """The last batch is filled up with images that have no features."""
        self.passes, self._images, self._batch_size = 0, images, batch_size
        self.set = ImageSet(name, len(images), self._batches, **more)

    def _batches(self):
        self.passes += 1
        for start in range(0, len(self._images), self._batch_size):
            part = self._images[start : start + self._batch_size]
            batch = np.full((self._batch_size, *part.shape[1:]), 255, np.uint8)
            batch[: len(part)] = part
            index = start + np.arange(self._batch_size)
            yield {"image": batch, "valid": index < len(self._images), "index": index}
