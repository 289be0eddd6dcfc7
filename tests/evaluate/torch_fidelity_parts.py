"""Networks and metrics of torch-fidelity, without torchvision, which its package imports to read images."""

import functools
import importlib
import importlib.util
import sys
import types
from unittest import mock

import pytest

PACKAGE = "torch_fidelity"
MODULES = {
    "inception": "feature_extractor_inceptionv3",
    "interpolate": "interpolate_compat_tensorflow",
    "fid": "metric_fid",
    "kid": "metric_kid",
    "isc": "metric_isc",
    "prc": "metric_prc",
}


@functools.cache
def load() -> types.SimpleNamespace:
    """The modules of torch-fidelity that `MODULES` names.

    Skips the test where torch or torch-fidelity is not installed. They are not left in `sys.modules`, where
    others would take them for the whole package.
    """
    pytest.importorskip("torch", reason="needs the extra [parity]")
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        pytest.skip("needs torch-fidelity 0.4.0 (pip install --no-deps)")
    package = types.ModuleType(PACKAGE)
    package.__path__ = list(spec.submodule_search_locations)
    # It reads images and data sets; the metrics import functions of it that those on features never call.
    reading = types.ModuleType(f"{PACKAGE}.utils")
    reading.__getattr__ = lambda name: _unavailable
    kept = _take_out()
    sys.modules |= {PACKAGE: package, f"{PACKAGE}.utils": reading}
    try:
        modules = {key: importlib.import_module(f"{PACKAGE}.{name}") for key, name in MODULES.items()}
    finally:
        _take_out()
        sys.modules |= kept
    return types.SimpleNamespace(**modules)


def _take_out() -> dict[str, types.ModuleType]:
    names = [name for name in sys.modules if name.partition(".")[0] == PACKAGE]
    return {name: sys.modules.pop(name) for name in names}


def _unavailable(*args, **kwargs):
    raise NotImplementedError("torch-fidelity's reading of images is left out")


@functools.cache
def random_inception():
    """FID's network in torch, with random weights, norms and statistics of norms.

    Returns:
        A torch module: uint8 [B, 3, H, W] -> (features [B, 2048], logits [B, 1008] without bias).
    """
    inception = load().inception
    import torch  # There is one, or `load` had skipped the test.

    # Threads of torch beside those of jax wait for each other, on machines of few cores for seconds.
    torch.set_num_threads(1)
    cls = inception.FeatureExtractorInceptionV3
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with (
            mock.patch.object(inception, "load_state_dict_from_url"),
            mock.patch.object(cls, "load_state_dict"),
        ):
            network = cls("random", ["2048", "logits_unbiased"])
        for layer in network.modules():
            # Such that the differences between images do not die out on the way.
            if isinstance(layer, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(layer.weight)
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.running_mean.uniform_(-0.2, 0.2)
                layer.running_var.uniform_(0.5, 1.5)
                layer.weight.uniform_(0.8, 1.2)
                layer.bias.uniform_(-0.2, 0.2)
    return network
