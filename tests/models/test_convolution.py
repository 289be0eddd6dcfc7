"""The forms of a convolution: each gives what the plain one gives, up to gradients of gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax.losses import r1_penalty
from regvq_jax.models import convolution, discriminator
from regvq_jax.models.convolution import Conv, convolve, convolve_upsampled, upsample_nearest
from regvq_jax.models.discriminator import PatchDiscriminator
from regvq_jax.models.layers import num_groups

SAME, FAR, WIDER = "SAME", ((0, 1), (0, 1)), ((1, 1), (1, 1))


def plain(x, kernel, strides, padding):
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def values_and_gradients(function, *arguments):
    """Of a function: its values, a gradient in each argument, and gradients of those."""

    def gradients(*arguments):
        loss = lambda *arguments: jnp.sum(jnp.tanh(function(*arguments)))
        return jax.grad(loss, tuple(range(len(arguments))))(*arguments)

    def of_gradients(*arguments):
        return sum(jnp.sum(jnp.sin(x)) for x in gradients(*arguments))

    everything = lambda *x: (function(*x), gradients(*x), jax.grad(of_gradients, (0, 1))(*x))
    return jax.jit(everything)(*arguments)


def check_equal(values, reference, tolerance=1e-5):
    assert jax.tree.structure(values) == jax.tree.structure(reference)
    for value, expected in zip(jax.tree.leaves(values), jax.tree.leaves(reference), strict=True):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(value, expected, atol=tolerance * scale)


def draw(*shape):
    rng = np.random.default_rng(sum(shape))
    return rng.standard_normal(shape, np.float32) / np.float32(np.prod(shape[:-1]) ** 0.5)


# Channels that are alike, few before many, many before few; and kernels that outweigh the grid.
@pytest.mark.parametrize("channels, features", [(5, 4), (2, 6), (7, 3), (3, 150)])
@pytest.mark.parametrize(
    "size, strides, padding, grid",
    [
        ((3, 3), (1, 1), SAME, (7, 6)),
        ((3, 3), (2, 2), FAR, (8, 6)),
        ((4, 4), (2, 2), SAME, (7, 9)),
        ((4, 4), (1, 1), SAME, (5, 6)),
        ((2, 2), (1, 1), WIDER, (5, 4)),
        ((3, 3), (1, 1), "VALID", (5, 6)),
    ],
)
def test_forms_are_the_plain_convolution(size, strides, padding, grid, channels, features, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    # So that small arrays go the ways of large ones, in several strips and a rest.
    for name, value in (("NARROW", 0), ("WIDE", 0), ("STRIP_BYTES", 2_000)):
        monkeypatch.setattr(convolution, name, value)
    x, kernel = draw(2, *grid, channels), draw(*size, channels, features)
    values = values_and_gradients(lambda x, k: convolve(x, k, strides, padding), x, kernel)
    check_equal(values, values_and_gradients(lambda x, k: plain(x, k, strides, padding), x, kernel))


def test_upsampled_by_hand():
    x, kernel = np.array([[[[2.0], [3.0]]]], np.float32), np.arange(9.0, dtype=np.float32).reshape(3, 3, 1, 1)
    # Two rows of [2, 2, 3, 3] between zeros; the first misses weights 0 to 2 and the second 6 to 8.
    padded, rows = np.array([0, 2, 2, 3, 3, 0]), (np.array([3 + 6, 4 + 7, 5 + 8]), np.array([3, 5, 7]))
    expected = [[np.dot(weights, padded[j : j + 3]) for j in range(4)] for weights in rows]
    found = convolution._convolve_squares(x, kernel)[0, :, :, 0]
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("few_places", [0, 10**9])
def test_upsampled_is_the_convolution_of_repeated_places(few_places, monkeypatch):
    monkeypatch.setattr(convolution, "FEW_PLACES", few_places)
    x, kernel = draw(2, 5, 4, 3), draw(3, 3, 3, 4)
    values = values_and_gradients(convolve_upsampled, x, kernel)
    repeated = lambda x, k: plain(upsample_nearest(x), k, (1, 1), SAME)
    check_equal(values, values_and_gradients(repeated, x, kernel))


def test_upsampling_with_few_products_has_fewer():
    def flops(function):
        return jax.jit(function).lower(draw(1, 16, 16, 4), draw(3, 3, 4, 4)).cost_analysis()["flops"]

    direct = flops(lambda x, k: plain(upsample_nearest(x), k, (1, 1), SAME))
    assert flops(convolution._convolve_squares) < 0.6 * direct


@pytest.mark.parametrize("strides, padding", [((1, 1), SAME), ((2, 2), FAR)])
def test_layer_has_the_parameters_and_values_of_flax(strides, padding):
    x = draw(2, 6, 8, 3)
    ours, theirs = (cls(5, (3, 3), strides, padding) for cls in (Conv, nn.Conv))
    values, params = ours.init_with_output(jax.random.key(0), x)
    expected, their_params = theirs.init_with_output(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, params, their_params)
    np.testing.assert_allclose(values, expected, atol=1e-6)
    assert Conv(5, use_bias=False).init(jax.random.key(0), x)["params"].keys() == {"kernel"}


@pytest.mark.parametrize("upsample", [False, True])
def test_bfloat16_is_the_plain_convolution_bit_for_bit(upsample):
    x, kernel = (jnp.asarray(a, jnp.bfloat16) for a in (draw(2, 8, 8, 64), draw(3, 3, 64, 128)))
    ours = convolve_upsampled if upsample else convolve
    found, pull = jax.vjp(ours, x, kernel)
    expected, pull_plain = jax.vjp(
        lambda x, k: plain(upsample_nearest(x) if upsample else x, k, (1, 1), SAME), x, kernel
    )
    np.testing.assert_array_equal(found, expected)
    jax.tree.map(np.testing.assert_array_equal, pull(found), pull_plain(found))


@pytest.mark.parametrize("devices", [1, 4])
def test_other_devices_have_plain_convolutions(devices, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    x, kernel = draw(1, 64, 64, 128), draw(3, 3, 128, 128)
    gradient = jax.jit(jax.grad(lambda x, k: jnp.sum(convolve_upsampled(convolve(x, k), k)), (0, 1)))
    traced = gradient.trace(x, kernel)
    texts = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "cuda")}
    # In strips, on one device alone.
    assert ("while" in texts["cpu"]) == ("dot_general" in texts["cpu"]) == (devices == 1)
    assert "while" not in texts["cuda"] and "dot_general" not in texts["cuda"]


def test_penalty_of_the_discriminator_is_that_of_plain_layers(monkeypatch):
    """R1 takes a gradient of a gradient through strided convolutions and normalisations."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(convolution, "NARROW", 0)
    network, images = PatchDiscriminator(channels=4, num_layers=1), draw(2, 8, 8, 3)
    params = network.init(jax.random.key(0), images)

    def penalty_and_gradient():
        penalty = lambda params: r1_penalty(lambda x: network.apply(params, x), images)
        return jax.jit(jax.value_and_grad(penalty))(params)

    ours = penalty_and_gradient()
    monkeypatch.setattr(discriminator, "Conv", nn.Conv)
    monkeypatch.setattr(
        discriminator, "group_norm", lambda width, dtype: nn.GroupNorm(num_groups(width, 0), epsilon=1e-6)
    )
    check_equal(ours, penalty_and_gradient(), tolerance=1e-4)
