"""Every config builds, has no unknown field, and its trainers can be traced."""

import dataclasses
import importlib
import json
import pkgutil

import jax
import numpy as np
import pytest

import configs
from configs import ablation, common, emoji
from regvq_jax.errors import UserError
from regvq_jax.evaluate.generation import Generation
from regvq_jax.evaluate.protocols import PROTOCOLS
from regvq_jax.evaluate.samples import draw_tokens
from regvq_jax.optim import OptimSettings, make_optimizer
from regvq_jax.settings import DataSettings, TrainSettings, from_config
from regvq_jax.trainers import build, build_condition, build_prior, build_sampling
from regvq_jax.trainers.prior import PriorTrainer
from regvq_jax.workdir import flatten

NAMES = sorted({m.name for m in pkgutil.iter_modules(configs.__path__)} - {"common"})


@pytest.mark.parametrize("choice", [None, "tiny"])
@pytest.mark.parametrize("name", NAMES)
def test_every_config_traces_its_tokenizer(name, choice, image_folder):
    config = importlib.import_module(f"configs.{name}").get_config(choice)
    if config.data.source.startswith(("folder:", "tfds:")):
        config.data.update(source=f"folder:{image_folder}", upscale=True, num_label_classes=0)
    for group in (config.evals.reconstruction, config.prior.evals.generation):
        assert set(group.protocols) <= set(PROTOCOLS)
        group.protocols = ()  # No test fetches weights.
    config.lock()
    trainer = build.make_tokenizer_trainer(config)
    state = jax.eval_shape(trainer.init, jax.random.key(0))
    frozen = jax.eval_shape(trainer.init_frozen)
    size = config.data.image_size
    batch = {"image": jax.ShapeDtypeStruct((config.train.batch_size, size, size, 3), np.uint8)}
    new_state, metrics = jax.eval_shape(trainer.train_step, state, batch, frozen)
    assert jax.tree.structure(new_state) == jax.tree.structure(state)
    assert all(m.shape == () for m in jax.tree.leaves(metrics))


PRIOR_CHOICES = {
    "quickstart": [""],
    "emoji": [f"{c}-{p}" for c in ("text", "map") for p in ("ar", "masked", "diffusion")]
    + ["text-ar,small", "map-ar,map_tokens", "text-diffusion,absorbing"],
    **{name: ["ar", "masked", "diffusion"] for name in ("folder", "coco", "cub", "ade20k", "celebahq")},
}


@pytest.mark.parametrize(
    ("name", "choice"), [(name, choice) for name, choices in PRIOR_CHOICES.items() for choice in choices]
)
def test_every_prior_traces(name, choice):
    """At full size: the network is made, takes a step, and draws, in shapes alone."""
    config = importlib.import_module(f"configs.{name}").get_config(choice).lock()
    tokenizer = build.make_image_tokenizer(config)
    prior = build_sampling.make_prior(config)
    kind = {"auto": "text"}.get(config.prior.condition, config.prior.condition)
    facts = build_condition.PriorFacts(kind, "", num_label_classes=25, map_codebook_size=16, map_grid=(4, 4))
    map_model = build.make_map_tokenizer(config, 25) if kind == "map_tokens" else None
    condition, _ = build_condition.make_condition(config, facts, tokenizer, map_model)
    model = build_prior.make_prior_net(config, prior, tokenizer, condition)
    settings = build_sampling.sample_settings(config)
    build_sampling.check_sampling(settings, prior, model.codebook_size)
    trainer = PriorTrainer(
        prior=prior,
        model=model,
        condition=condition,
        condition_drop=config.prior.condition_drop,
        optimizer=make_optimizer(from_config(OptimSettings, config.prior.optim, "prior.optim"), 10_000),
        frozen={},
        seed=0,
        train=from_config(TrainSettings, config.prior.train, "prior.train"),
        data=from_config(DataSettings, config.data, "data"),
        make_batches=lambda: None,
    )
    build_prior.check_prior_config(config)
    state = jax.eval_shape(trainer.init, jax.random.key(0))
    inputs = np.repeat(condition.example(), 2, 0)
    batch = {"tokens": np.zeros((2, model.num_tokens), np.int32), "condition": inputs}
    new_state, metrics = jax.eval_shape(trainer.train_step, state, batch, {})
    assert jax.tree.structure(new_state) == jax.tree.structure(state)
    assert all(m.shape == () for m in metrics.values())
    drawn = jax.eval_shape(
        lambda params, keys: draw_tokens(prior, model, condition, settings, params, {}, keys, inputs),
        state.params["prior"],
        jax.random.split(jax.random.key(0), 2),
    )
    assert (drawn.shape, drawn.dtype) == ((2, *model.grid), np.int32)


def test_names_of_priors():
    assert common.parse_prior(None, ("text", "map"), ("ar",)) == ("text", "autoregressive", "")
    assert common.parse_prior("map-ar,tiny", ("text", "map"), ("ar",)) == ("map", "autoregressive", "tiny")
    assert common.parse_prior("tiny", ("text",), ("masked", "ar")) == ("text", "masked", "tiny")
    with pytest.raises(UserError, match='no prior "map-arr". Did you mean "map-ar"'):
        common.parse_prior("map-arr", ("text", "map"), ("ar",))
    with pytest.raises(UserError, match='no prior "map"'):
        common.parse_prior("map", ("text", "map"), ("ar",))
    for choice in ("text-ar,map_tokens", "map-masked,absorbing", "small,size=128"):
        with pytest.raises(UserError, match="does not go with the others"):
            emoji.get_config(choice)
    with pytest.raises(UserError, match="size=96 is not one of"):
        emoji.get_config("text-ar,size=96")
    with pytest.raises(UserError, match='no prior "ar".'):
        common.parse_prior("ar", ("text",), ("masked",))


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
    for ratio in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        for tiny, size in (("", 1024), (",tiny", 32)):
            quantizer = ablation.get_config(f"mask_ratio={ratio}{tiny}").quantizer
            assert (quantizer.name, quantizer.mask_ratio) == ("regularized", ratio)
            assert quantizer.codebook_size == size
    for codes in (1024, 2048, 4096, 8192, 65536):
        for rung in ("pcl", "vqgan"):
            config = ablation.get_config(f"{rung},codes={codes},tiny")
            assert config.quantizer.codebook_size == codes and config.train.total_steps == 8
    with pytest.raises(UserError, match='"vqgan" has no stochastic mask'):
        ablation.get_config("vqgan,mask_ratio=0.2")
    with pytest.raises(UserError, match='no rung "vqgann". Did you mean "vqgan"'):
        ablation.get_config("vqgann,tiny")


@pytest.mark.parametrize("choice", ["mask_ratio=0.0", "mask_ratio=1.0", "codes=65536", "vqgan,codes=65536"])
def test_both_ends_of_a_sweep_trace_in_small(choice):
    config = ablation.get_config(f"{choice},tiny")
    trainer = build.make_tokenizer_trainer(config.lock())
    state = jax.eval_shape(trainer.init, jax.random.key(0))
    batch = {"image": jax.ShapeDtypeStruct((8, 64, 64, 3), np.uint8)}
    jax.eval_shape(trainer.train_step, state, batch, jax.eval_shape(trainer.init_frozen))
    codebook = state.params["tokenizer"]["quantizer"]["codebook"]
    assert codebook.shape[0] == (65536 if "codes" in choice else 32)


@pytest.mark.parametrize("ratio", [-0.1, 1.1])
def test_a_mask_ratio_that_is_no_share_is_refused(ratio):
    with pytest.raises(UserError, match=f"config.quantizer.mask_ratio={ratio} is no share of the positions"):
        build.make_tokenizer_trainer(ablation.get_config(f"mask_ratio={ratio},tiny"))


@pytest.mark.parametrize("name", NAMES)
def test_every_config_is_judged_by_samples(name):
    """Every field of its group is one of the evaluator's."""
    group = importlib.import_module(f"configs.{name}").get_config(None).prior.evals.generation
    known = {field.name for field in dataclasses.fields(Generation)}
    assert set(group.keys()) <= known and group.reference == ("train" if name == "celebahq" else "heldout")


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
