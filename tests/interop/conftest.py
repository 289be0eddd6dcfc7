"""Tokenizers whose parameters show every mistake: no scale is 1, no bias is 0, many codes are used."""

import jax
import numpy as np
import pytest

from regvq_jax.interop.tokenizer_file import param_shapes


def make_lively_params(model, images):
    """Random parameters whose codes lie among the features of `images`.

    Args:
        model: with a codebook, and logits of kind "projection" if it has any.
        images: float [B, H, W, 3].
    """
    rng = np.random.default_rng(0)

    def draw(path, shape):
        if path[-1].key == "scale":
            return rng.normal(1, 0.3, shape.shape).astype(np.float32)
        fan_in = np.prod(shape.shape[:-1]) if len(shape.shape) > 1 else 10
        return rng.normal(0, fan_in**-0.5, shape.shape).astype(np.float32)

    params = jax.tree.map_with_path(draw, param_shapes(model))
    features = jax.jit(lambda p: model.apply({"params": p}, images, method="encode_features"))(params)
    features = np.asarray(features).reshape(-1, model.quantizer.code_dim)
    places = rng.permutation(len(features))[: model.quantizer.codebook_size]
    if "to_logits" in params["quantizer"]:
        # The nearest of these features, as logits; the code vectors are others.
        kernel = features[places].T
        params["quantizer"]["to_logits"] = {"kernel": kernel, "bias": -np.sum(kernel**2, 0) / 2}
    else:
        params["quantizer"]["codebook"] = features[places]
    return params


@pytest.fixture(scope="session")
def lively_params():
    """The function `make_lively_params`."""
    return make_lively_params


@pytest.fixture(scope="session")
def encode_and_decode():
    """A function: (model, params, images) -> (codes [B, h, w], images [B, H, W, 3])."""

    def run(model, params, images):
        @jax.jit
        def both(params, images):
            codes = model.apply({"params": params}, images, method="encode")
            vectors = model.apply({"params": params}, codes, method="lookup")
            return codes, model.apply({"params": params}, vectors, method="decode")

        return jax.tree.map(np.asarray, both(params, images))

    return run
