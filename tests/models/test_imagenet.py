"""The feature networks against torch's layers in torchvision's order, tap by tap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax.errors import UserError
from regvq_jax.models.imagenet import ImageNetFeatures, conv_indices

# Torchvision's lists of widths, "M" a max-pool, and the place of each tap's ReLU in its `features`.
VGG = {
    "vgg16": (
        [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"],
        [3, 8, 15, 22, 29],
    ),
    "vgg19": (
        [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"],
        [3, 8, 15, 24, 33],
    ),
}


def torch_features(nn, network):
    """Torchvision's `features` and the places of the taps."""
    if network == "alexnet":
        layers = [nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
        layers += [nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
        for inputs, width in ((192, 384), (384, 256), (256, 256)):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
        return nn.Sequential(*layers), [1, 4, 7, 9, 11]
    widths, taps = VGG[network]
    layers, inputs = [], 3
    for width in widths:
        if width == "M":
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
            inputs = width
    return nn.Sequential(*layers), taps


@pytest.mark.parametrize("network", ["vgg16", "vgg19", "alexnet"])
def test_every_tap_equals_torch(network):
    torch = pytest.importorskip("torch", reason="needs the extra [parity]")
    torch.manual_seed(0)
    features, places = torch_features(torch.nn, network)
    for layer in features:
        if isinstance(layer, torch.nn.Conv2d):
            # Keeps the activations near 1 in every layer, so that a tolerance means something.
            torch.nn.init.kaiming_normal_(layer.weight)
            torch.nn.init.normal_(layer.bias, std=0.1)
    params = {
        f"features_{i}": {
            "kernel": features[i].weight.detach().permute(2, 3, 1, 0).numpy(),
            "bias": features[i].bias.detach().numpy(),
        }
        for i in conv_indices(network)
    }
    # Odd sizes: the pools leave a rest.
    images = np.random.default_rng(0).uniform(-1, 1, (2, 37, 46, 3)).astype(np.float32)
    taps = ImageNetFeatures(network).apply({"params": params}, jnp.asarray(images))

    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (((torch.from_numpy(images) + 1) / 2 - mean) / deviation).permute(0, 3, 1, 2)
    expected = []
    with torch.no_grad():
        for i, layer in enumerate(features[: places[-1] + 1]):
            x = layer(x)
            if i in places:
                expected.append(x.permute(0, 2, 3, 1).numpy())
    for tap, reference in zip(taps, expected, strict=True):
        assert 0.1 < reference.std() < 10
        np.testing.assert_allclose(tap, reference, atol=1e-4)


@pytest.mark.parametrize(
    ("network", "smallest", "finest", "coarsest"),
    [
        ("vgg16", 16, (64, 64, 64), (4, 4, 512)),
        ("vgg19", 16, (64, 64, 64), (4, 4, 512)),
        ("alexnet", 31, (15, 15, 64), (3, 3, 256)),
    ],
)
def test_sizes(network, smallest, finest, coarsest):
    module = ImageNetFeatures(network, jnp.bfloat16)

    def taps_of(height, width):
        image = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
        return jax.eval_shape(module.init_with_output, jax.random.key(0), image)

    taps, variables = taps_of(64, 64)
    assert taps[0].shape == (2, *finest) and taps[-1].shape == (2, *coarsest)
    assert [tap.dtype for tap in taps] == [jnp.bfloat16] * 5
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    assert taps_of(smallest, smallest)[0][-1].shape[1:3] == (1, 1)
    with pytest.raises(UserError, match=f"too small for the features of {network}; .* {smallest}x{smallest}"):
        taps_of(64, smallest - 1)
