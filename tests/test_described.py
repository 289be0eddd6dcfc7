import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import ade20k, coco, cub, emoji, quickstart
from regvq_jax.described import describe
from regvq_jax.trainers import build, build_data, build_prior


def shapes(tree):
    return jax.tree.map(lambda x: (tuple(x.shape), np.dtype(x.dtype)), tree)


def settings(trainer):
    """All of a trainer that says how it trains, data and evaluators left out."""
    left_out = ("make_batches", "num_examples", "evaluators", "frozen", "features", "lpips", "condition")
    left_out += ("optimizer", "optimizers", "encode_images_fn")
    return {f.name: getattr(trainer, f.name) for f in dataclasses.fields(trainer) if f.name not in left_out}


def assert_describes(described, trainer):
    """The description is of this trainer, whose data are there."""
    assert settings(described.trainer) == settings(trainer)
    state = jax.eval_shape(trainer.init, jax.random.key(0))
    assert jax.tree.structure(described.state) == jax.tree.structure(state)
    assert jax.tree.leaves(shapes(described.state)) == jax.tree.leaves(shapes(state))
    assert shapes(described.frozen) == shapes(trainer.init_frozen())
    size = trainer.train.batch_size
    assert shapes(described.batch(size)) == shapes(dict(trainer.make_batches()[0]))


def test_the_tokenizer_is_the_one_that_is_trained(tiny_config):
    assert_describes(describe(tiny_config, "tokenizer"), build.make_tokenizer_trainer(tiny_config))


@pytest.mark.parametrize("choice", ["map-masked,map_tokens,tiny", "text-diffusion,tiny", "map-ar,tiny"])
def test_the_prior_is_the_one_that_is_trained(choice):
    config = emoji.get_config(choice)
    config.prior.from_images = True
    classes = build_data.open_source(config, "train").num_label_classes
    config.data.num_label_classes = classes
    tokenizer, map_tokenizer = build.make_image_tokenizer(config), None
    side = config.data.image_size
    params = jax.jit(tokenizer.init)(jax.random.key(0), np.zeros((1, side, side, 3), np.float32))["params"]
    if "map_tokens" in choice:
        model = build.make_map_tokenizer(config, classes)
        maps = np.zeros((1, side, side, classes), np.float32)
        map_tokenizer = (model, jax.jit(model.init)(jax.random.key(0), maps)["params"])
        assert_describes(describe(config, "map_tokenizer"), build.make_map_tokenizer_trainer(config))
    trainer, _ = build_prior.make_prior_trainer(config, Path(), tokenizer, params, map_tokenizer)
    assert_describes(describe(config, "prior"), trainer)
    # From a cache it reads tokens.
    config.prior.from_images = False
    tokens = describe(config, "prior").batch(4)["tokens"]
    assert tokens.shape == (4, trainer.model.num_tokens) and tokens.dtype == np.int32


@pytest.mark.parametrize("config", [coco.get_config(), cub.get_config(), ade20k.get_config()])
def test_large_configs_need_neither_data_nor_weights(config):
    config.data.source = "folder:/there/is/none"
    config.features.update(name="vgg19", weights="")
    config.loss.lpips_weight = 1.0
    if config.prior.condition == "text":
        config.prior.text.update(encoder="clip", weights="/there/is/none")
    described = describe(config, "tokenizer")
    heads = described.frozen["lpips"]["heads"]
    assert [x.shape for x in heads] == [(64,), (128,), (256,), (512,), (512,)]
    prior = describe(config, "prior")
    assert sum(x.size for x in jax.tree.leaves(prior.state.params)) > 1e8
    if config.prior.condition == "text":
        assert shapes(prior.frozen["text"])
        assert prior.batch(2)["condition"].shape == (2, config.prior.text.length)


def test_classes_are_assumed_and_said(caplog):
    config = quickstart.get_config("tiny")
    config.prior.condition = "class"
    embedding = describe(config, "prior").state.params["prior"]["conditioner"]["embedding"]["embedding"]
    assert embedding.shape[0] == 1000 and "taken to have 1000 classes" in caplog.text
