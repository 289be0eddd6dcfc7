"""A protocol whose network costs nothing: colours of a coarse grid."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax.evaluate import protocols, resizing


class Colours(nn.Module):
    """[B, 4, 4, 3] -> its 48 values and as many logits."""

    def __call__(self, images):
        features = images.reshape(images.shape[0], -1) / 16.0
        return {"features": features, "logits": features @ jnp.asarray(np.eye(48), jnp.float32)}


LOADED = []


def load(weights):
    """As the `load_fn` of a protocol; notes that it was called."""
    LOADED.append(weights)
    return Colours(), {}, "0" * 64


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """The protocol "toy", and a cache directory of the test's own."""
    grey = (128.0,) * 3
    protocol = protocols.Protocol("toy", load, 4, resizing.pillow_bicubic, grey, grey, "4 x 4", clip=True)
    monkeypatch.setitem(protocols.PROTOCOLS, "toy", protocol)
    monkeypatch.setenv("REGVQ_JAX_CACHE", str(tmp_path / "kept"))
    LOADED.clear()
    return protocol
