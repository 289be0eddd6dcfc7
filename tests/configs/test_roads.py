"""Every prior with every condition, in its tiny form from tokens to training, samples and loading."""

import importlib

import jax
import numpy as np
import pytest

from regvq_jax import Prior, Tokenizer, stages
from regvq_jax.files import read_json
from regvq_jax.workdir import open_workdir

PRIORS = ("ar", "masked", "diffusion")
ROADS = [
    *(("emoji", f"{condition}-{prior}") for condition in ("text", "map") for prior in PRIORS),
    ("emoji", "map-ar,map_tokens"),
    ("emoji", "text-diffusion,absorbing"),
    # The paper's configs with their own priors: test_datasets.py; with others, in shapes: test_configs.py.
]


@pytest.fixture(scope="module")
def tokenizer_file(tiny_run, tmp_path_factory):
    """One tokenizer for all: stage one's road is the quickstart's (tests/test_main.py)."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.safetensors"
    Tokenizer.load(tiny_run[0]).save(path)
    return str(path)


@pytest.mark.parametrize(("name", "choice"), ROADS)
def test_from_images_to_samples(name, choice, tokenizer_file, tmp_path, one_device_mesh):
    config = importlib.import_module(f"configs.{name}").get_config(f"{choice},tiny")
    config.tokenizer = tokenizer_file
    workdir = open_workdir(str(tmp_path / "run"), config)
    stages.run(config, workdir, one_device_mesh, tuple(config.stages))

    result = read_json(workdir / "prior" / "result.json")
    assert np.isfinite(result["eval/prior/bits_per_token"]) and "eval/prior/loss_shuffled" in result
    assert (workdir / "samples.png").stat().st_size > 0
    facts = read_json(workdir / "prior" / "facts.json")
    assert facts["condition"] == config.prior.condition

    prior = Prior.load(workdir)
    if config.prior.condition == "text":
        condition = {"text": ["a red heart", ""]}
    else:
        assert facts["num_label_classes"] == 25
        side = config.data.image_size
        condition = {"labels": np.arange(2 * side * side).reshape(2, side, side) % 25}
    images = prior.sample(jax.random.key(0), **condition)
    assert images.shape == (2, 32, 32, 3) and np.isfinite(images).all()


@pytest.mark.parametrize(
    ("condition", "given"),
    [
        ("class", {"classes": [0, -1]}),
        ("none", {"num_images": 2}),
        ("map_tokens", {"labels": np.zeros((2, 32, 32), np.int32)}),
        ("text", {"text": ["a", ""]}),
    ],
)
def test_images_are_encoded_on_the_fly(condition, given, tokenizer_file, tmp_path, one_device_mesh):
    emoji = importlib.import_module("configs.emoji")
    choice = "map-masked,map_tokens,tiny" if condition == "map_tokens" else "text-masked,tiny"
    config = emoji.get_config(choice)
    config.tokenizer = tokenizer_file
    config.data.source = "emoji-grounds"
    config.prior.update(condition=condition, from_images=True)
    config.sample.captions = ()
    if condition == "none":
        config.sample.guidance = 1.0
    workdir = open_workdir(str(tmp_path / "run"), config)
    stages.run(config, workdir, one_device_mesh, tuple(config.stages))
    assert not (workdir / "tokens").exists()
    assert Prior.load(workdir).sample(jax.random.key(0), **given).shape == (2, 32, 32, 3)
