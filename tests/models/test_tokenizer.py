"""Shapes, dtypes, and what the blocks promise."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax.models.discriminator import PatchDiscriminator
from regvq_jax.models.features import RandomFeatures
from regvq_jax.models.layers import Downsample, Upsample, group_norm
from regvq_jax.models.quantizer import Quantizer
from regvq_jax.models.tokenizer import ImageTokenizer, encode_maps, one_hot_maps

SMALL = dict(
    quantizer=Quantizer(codebook_size=16, code_dim=4),
    channels=8,
    multipliers=(1, 1, 2),
    num_res_blocks=1,
    attention_levels=(2,),
)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 16, 24, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    return jax.jit(ImageTokenizer(**SMALL).init)(jax.random.key(0), IMAGES)["params"]


def test_images_of_any_size_shrink_by_the_levels(params):
    model = ImageTokenizer(**SMALL)
    assert model.downsampling == 4
    features = model.apply({"params": params}, IMAGES, method="encode_features")
    assert features.shape == (2, 4, 6, 4) and features.dtype == jnp.float32
    codes = model.apply({"params": params}, IMAGES, method="encode")
    assert codes.shape == (2, 4, 6) and codes.dtype == jnp.int32
    vectors = model.apply({"params": params}, codes, method="lookup")
    np.testing.assert_array_equal(vectors, params["quantizer"]["codebook"][codes])
    decoded = model.apply({"params": params}, vectors, method="decode")
    assert decoded.shape == IMAGES.shape and decoded.dtype == jnp.float32


def test_bfloat16_computes_low_and_keeps_high_parameters(params):
    low = ImageTokenizer(**SMALL, dtype=jnp.bfloat16)
    shapes = jax.eval_shape(low.init, jax.random.key(0), IMAGES)["params"]
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {np.dtype("float32")}
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params)
    full = ImageTokenizer(**SMALL).apply({"params": params}, IMAGES, method="encode_features")
    features = low.apply({"params": params}, IMAGES, method="encode_features")
    assert features.dtype == jnp.float32
    np.testing.assert_allclose(features, full, atol=0.1 * float(jnp.abs(full).max()))
    quantized = jnp.zeros((1, 4, 4, 4))
    features = low.apply({"params": params}, quantized, method="decode_features")
    assert features.dtype == jnp.bfloat16


def test_to_images_is_the_rest_of_decode(params):
    model = ImageTokenizer(**SMALL)
    quantized = jax.random.normal(jax.random.key(1), (1, 4, 4, 4))
    features = model.apply({"params": params}, quantized, method="decode_features")
    images = model.apply({"params": params}, features, method="to_images")
    np.testing.assert_allclose(
        images, model.apply({"params": params}, quantized, method="decode"), rtol=1e-5, atol=1e-6
    )


def test_label_maps_go_in_one_hot_and_come_out_as_logits():
    fields = SMALL | dict(multipliers=(1, 1), attention_levels=(), middle_attention=False)
    model = ImageTokenizer(**fields, out_channels=200, dtype=jnp.bfloat16)
    labels = np.random.default_rng(0).integers(0, 200, (2, 4, 6), np.uint8)
    maps = one_hot_maps(model, labels)
    assert maps.shape == (2, 4, 6, 200) and maps.dtype == jnp.bfloat16
    np.testing.assert_array_equal(jnp.argmax(maps, -1), labels)
    np.testing.assert_array_equal(maps.sum(-1), 1)
    for other in (model, model.clone(architecture="maskgit")):
        shapes = jax.eval_shape(other.init, jax.random.key(0), maps)["params"]
        assert shapes["conv_out"]["kernel"].shape == (3, 3, 8, 200)
        logits = jax.eval_shape(other.apply, {"params": shapes}, maps)
        assert logits.shape == (2, 4, 6, 200) and logits.dtype == jnp.float32
    params = jax.jit(model.init)(jax.random.key(0), maps)["params"]
    assert params["encoder"]["conv_in"]["kernel"].shape == (3, 3, 200, 8)
    encode = jax.jit(encode_maps, static_argnums=0)
    codes = encode(model, params, labels)
    assert codes.shape == (2, 2, 3) and codes.dtype == jnp.int32
    # Compiled, too: in bfloat16 a compiler rounds elsewhere, and codes may be nearly as good as each other.
    expected = jax.jit(partial(model.apply, method="encode"))({"params": params}, maps)
    np.testing.assert_array_equal(codes, expected)
    assert np.any(codes != encode(model, params, (labels + 1) % 200))


def test_down_and_upsampling_halve_and_double():
    x = jnp.ones((1, 6, 4, 2))
    assert Downsample().init_with_output(jax.random.key(0), x)[0].shape == (1, 3, 2, 2)
    assert Upsample().init_with_output(jax.random.key(0), x)[0].shape == (1, 12, 8, 2)


@pytest.mark.parametrize("channels, groups", [(8, 2), (16, 4), (128, 32), (512, 32), (3, 1)])
def test_groups(channels, groups):
    assert group_norm(channels, jnp.float32).num_groups == groups


def test_a_patch_is_judged_by_its_own_image_alone():
    model = PatchDiscriminator(channels=8, num_layers=2)
    images = jnp.asarray(IMAGES)
    variables = model.init(jax.random.key(0), images)
    both = model.apply(variables, images)
    assert both.shape[0] == 2 and both.shape[-1] == 1 and both.dtype == jnp.float32
    np.testing.assert_allclose(model.apply(variables, images[:1]), both[:1], rtol=1e-4, atol=1e-6)


def test_random_features_halve_at_each_tap_and_see_differences():
    model = RandomFeatures(channels=(4, 8))
    variables = model.init(jax.random.key(0), IMAGES)
    taps = model.apply(variables, IMAGES)
    assert [t.shape for t in taps] == [(2, 16, 24, 4), (2, 8, 12, 8)]
    assert not np.allclose(taps[1][0], taps[1][1])
