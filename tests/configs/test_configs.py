"""Every config builds, has no unknown field, and its trainers can be traced."""

import importlib
import json
import pkgutil

import jax
import numpy as np
import pytest

import configs
from configs import ablation, common
from regvq_jax.errors import UserError
from regvq_jax.trainers import build
from regvq_jax.workdir import flatten

NAMES = sorted({m.name for m in pkgutil.iter_modules(configs.__path__)} - {"common"})


@pytest.mark.parametrize("choice", [None, "tiny"])
@pytest.mark.parametrize("name", NAMES)
def test_every_config_traces_its_tokenizer(name, choice, image_folder):
    config = importlib.import_module(f"configs.{name}").get_config(choice)
    if config.data.source.startswith("folder:"):
        config.data.source = f"folder:{image_folder}"
        config.data.upscale = True
    config.lock()
    trainer = build.make_tokenizer_trainer(config)
    state = jax.eval_shape(trainer.init, jax.random.key(0))
    frozen = jax.eval_shape(trainer.init_frozen)
    size = config.data.image_size
    batch = {"image": jax.ShapeDtypeStruct((config.train.batch_size, size, size, 3), np.uint8)}
    new_state, metrics = jax.eval_shape(trainer.train_step, state, batch, frozen)
    assert jax.tree.structure(new_state) == jax.tree.structure(state)
    assert all(m.shape == () for m in metrics.values())
    net = build.make_prior_net(config, trainer.model, has_text=True)
    tokens = jax.ShapeDtypeStruct((1, np.prod(net.grid)), np.int32)
    text = jax.ShapeDtypeStruct((1, net.text_length), np.int32)
    jax.eval_shape(net.init, jax.random.key(0), tokens, text)


@pytest.mark.parametrize("rung", ablation.RUNGS)
def test_every_rung_differs_from_reg_vq_only_in_what_it_names(rung):
    config, whole = (
        flatten(json.loads(ablation.get_config(name).to_json())) for name in (f"{rung},tiny", "pcl,tiny")
    )
    changed = {field for field in config if config[field] != whole[field]}
    allowed = {*ablation.RUNGS[rung], "quantizer.temperature_steps", "quantizer.codebook_size"}
    assert changed <= allowed


@pytest.mark.parametrize("rung", ablation.RUNGS)
def test_every_rung_traces(rung):
    config = ablation.get_config(f"{rung},tiny")
    trainer = build.make_tokenizer_trainer(config.lock())
    state = jax.eval_shape(trainer.init, jax.random.key(0))
    batch = {"image": jax.ShapeDtypeStruct((8, 64, 64, 3), np.uint8)}
    frozen = jax.eval_shape(trainer.init_frozen)
    new_state, metrics = jax.eval_shape(trainer.train_step, state, batch, frozen)
    assert jax.tree.structure(new_state) == jax.tree.structure(state)
    weights = {
        name
        for name in ("gumbel_kl", "entropy", "prior_kl", "codebook", "commitment", "cl", "pcl", "adversarial")
        if config.loss[f"{name}_weight"] and f"train/{name}" not in metrics
    }
    # The two halves of the VQ-VAE loss are the only terms that a rung may name without having.
    assert weights <= {"codebook", "commitment"}


def test_maskgits_architecture_is_one_field_away(tiny_config):
    tiny_config.model.update(architecture="maskgit", middle_attention=False)
    trainer = build.make_tokenizer_trainer(tiny_config)
    params = jax.eval_shape(trainer.init, jax.random.key(0)).params["tokenizer"]
    assert "bias" not in params["encoder"]["conv_in"]


def test_sweeps_of_the_ablation():
    assert ablation.get_config("mask_ratio=0.2").quantizer.mask_ratio == 0.2
    large = ablation.get_config("vqgan,codes=65536").quantizer
    assert (large.name, large.codebook_size) == ("nearest", 65536)
    assert ablation.get_config("codes=65536").quantizer.name == "regularized"
    assert ablation.get_config().quantizer.name == "regularized"
    with pytest.raises(UserError, match='"vqgan" has no stochastic mask'):
        ablation.get_config("vqgan,mask_ratio=0.2")
    with pytest.raises(UserError, match='no rung "vqgann". Did you mean "vqgan"'):
        ablation.get_config("vqgann,tiny")


@pytest.mark.parametrize("name", NAMES)
def test_every_config_says_how_to_run_it(name):
    doc = importlib.import_module(f"configs.{name}").__doc__
    assert f"python -m regvq_jax.main --config=configs/{name}.py" in doc


def test_parse_arg():
    values = common.parse_arg("tiny,size=64", tiny=False, size=32, name="a")
    assert (values.tiny, values.size, values.name) == (True, 64, "a")
    assert common.parse_arg(None, tiny=False).tiny is False
    with pytest.raises(UserError, match='no choice "tinny". Did you mean "tiny"'):
        common.parse_arg("tinny", tiny=False)
    with pytest.raises(UserError, match='"size" needs a int'):
        common.parse_arg("size=big", size=32)
    with pytest.raises(UserError, match="needs a value"):
        common.parse_arg("size", size=32)
