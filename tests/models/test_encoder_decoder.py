"""What the two architectures of encoder and decoder promise, at a few channels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax.errors import UserError
from regvq_jax.models.decoder import Decoder
from regvq_jax.models.encoder import Encoder
from regvq_jax.models.layers import AttentionBlock, ResBlock, group_norm, num_groups
from regvq_jax.models.maskgit import MaskGITDecoder, MaskGITEncoder
from regvq_jax.models.quantizer import Quantizer
from regvq_jax.models.tokenizer import ImageTokenizer

TAMING = dict(channels=8, multipliers=(1, 2), num_res_blocks=1, attention_levels=(1,))
MASKGIT = dict(channels=8, multipliers=(1, 2), num_res_blocks=1)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3)).astype(np.float32)
LATENTS = np.random.default_rng(1).normal(size=(2, 4, 6, 5)).astype(np.float32)
NETWORKS = [
    (Encoder, TAMING, IMAGES),
    (Decoder, TAMING, LATENTS),
    (MaskGITEncoder, MASKGIT, IMAGES),
    (MaskGITDecoder, MASKGIT, LATENTS),
]


@pytest.mark.parametrize("network, fields, inputs", NETWORKS)
def test_remat_keeps_names_values_and_gradients(network, fields, inputs):
    fields = fields | dict(multipliers=(1,))
    plain, remat = network(**fields), network(**fields, remat=True)
    shapes = [jax.eval_shape(m.init, jax.random.key(0), inputs) for m in (plain, remat)]
    assert shapes[0] == shapes[1]
    params = jax.jit(plain.init)(jax.random.key(0), inputs)

    def loss(model, params):
        return jnp.sum(model.apply(params, inputs) ** 2)

    # That it recomputes at all: each residual block is one remat in the program.
    program = str(jax.make_jaxpr(jax.grad(loss, argnums=1), static_argnums=0)(remat, params))
    blocks = sum(name.startswith(("ResBlock", "AttentionBlock")) for name in params["params"])
    assert program.count("remat") >= blocks >= 2
    value_and_grad = jax.jit(jax.value_and_grad(loss, argnums=1), static_argnums=0)
    value, grads = value_and_grad(plain, params)
    remat_value, remat_grads = value_and_grad(remat, params)
    assert value == pytest.approx(float(remat_value), rel=1e-6)
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6 * scale), grads, remat_grads)


@pytest.mark.parametrize("network, fields, inputs", NETWORKS)
def test_bfloat16_keeps_float32_parameters(network, fields, inputs):
    model = network(**fields, dtype=jnp.bfloat16)
    out, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), inputs)
    assert out.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(variables)} == {np.dtype("float32")}


def test_shapes_of_maskgit():
    latents, variables = jax.eval_shape(
        MaskGITEncoder(**MASKGIT, latent_channels=5).init_with_output, jax.random.key(0), IMAGES
    )
    assert latents.shape == (2, 4, 6, 5)
    features, _ = jax.eval_shape(MaskGITDecoder(**MASKGIT).init_with_output, jax.random.key(0), LATENTS)
    assert features.shape == (2, 8, 12, 8)
    # One block at each of two levels and one at the bottleneck, without biases; no convolution shrinks.
    params = variables["params"]
    assert params.keys() == {"conv_in", "ResBlock_0", "ResBlock_1", "ResBlock_2", "norm_out", "conv_out"}
    assert params["ResBlock_1"].keys() == {"norm_1", "conv_1", "norm_2", "conv_2", "skip"}
    no_biases = [params["conv_in"], *(params["ResBlock_1"][name] for name in ("conv_1", "conv_2", "skip"))]
    assert all(layer.keys() == {"kernel"} for layer in no_biases)
    assert params["conv_out"]["kernel"].shape == (16, 5)


@pytest.mark.parametrize("field", [dict(attention_levels=(1,)), dict(middle_attention=True)])
def test_maskgit_refuses_attention(field):
    for network, inputs in ((MaskGITEncoder, IMAGES), (MaskGITDecoder, LATENTS)):
        with pytest.raises(UserError, match="no attention"):
            jax.eval_shape(network(**MASKGIT, **field).init, jax.random.key(0), inputs)


@pytest.mark.parametrize("architecture", ["taming", "maskgit"])
def test_a_tokenizer_of_either_has_gradients_through_remat(architecture):
    model = ImageTokenizer(
        Quantizer(codebook_size=8, code_dim=4),
        architecture=architecture,
        channels=8,
        multipliers=(1, 2),
        num_res_blocks=1,
        attention_levels=(),
        middle_attention=architecture == "taming",
        remat=True,
    )
    params = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    grads = jax.eval_shape(jax.grad(lambda p: jnp.sum(model.apply(p, IMAGES))), params)
    assert grads == params


def test_groups_follow_the_width_or_are_the_same_everywhere():
    assert [num_groups(channels, 0) for channels in (3, 8, 64, 128, 512)] == [1, 2, 16, 32, 32]
    assert [num_groups(channels, 8) for channels in (8, 64, 512)] == [8, 8, 8]
    assert group_norm(16, jnp.float32, norm_groups=2).num_groups == 2
    with pytest.raises(UserError, match="norm_groups=8 does not divide a layer of 12 channels"):
        num_groups(12, 8)


@pytest.mark.parametrize("block", [ResBlock(8, norm_groups=4), AttentionBlock(norm_groups=4)])
def test_norm_groups_reach_the_blocks(block):
    """A shift of one whole group is invisible to the branch, a shift of half of it is not."""
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))
    variables = block.init(jax.random.key(1), x)
    shifted = x.at[..., 2:4].add(100.0)
    branch, shifted_branch = (block.apply(variables, y) - y for y in (x, shifted))
    np.testing.assert_allclose(branch, shifted_branch, atol=2e-3)
    uneven = x.at[..., 2:3].add(100.0)
    assert not np.allclose(branch, block.apply(variables, uneven) - uneven, atol=2e-3)


@pytest.mark.parametrize("network, fields, inputs", NETWORKS[:2])
def test_norm_groups_change_values_and_no_shapes(network, fields, inputs):
    by_width, by_four = network(**fields), network(**fields, norm_groups=8)
    params = jax.jit(by_width.init)(jax.random.key(0), inputs)
    assert jax.eval_shape(by_four.init, jax.random.key(0), inputs) == jax.eval_shape(lambda: params)
    assert not np.allclose(by_width.apply(params, inputs), by_four.apply(params, inputs), atol=1e-3)


def test_attention_is_softmax_of_products_over_the_root_of_the_width():
    x = jax.random.normal(jax.random.key(0), (1, 2, 3, 8))
    block = AttentionBlock(norm_groups=2)
    params = block.init(jax.random.key(1), x)["params"]
    h = np.asarray(group_norm(8, jnp.float32, norm_groups=2).apply({"params": params["norm"]}, x), np.float64)
    h = h.reshape(6, 8)
    query, key, value = (h @ np.asarray(params[name]["kernel"]) for name in ("query", "key", "value"))
    weights = np.exp(query @ key.T / 8**0.5)
    out = weights / weights.sum(1, keepdims=True) @ value @ np.asarray(params["out"]["kernel"])
    np.testing.assert_allclose(
        block.apply({"params": params}, x)[0].reshape(6, 8), x.reshape(6, 8) + out, atol=1e-5
    )
