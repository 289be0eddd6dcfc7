"""From a config to a prior: what does not go together is said in one sentence, before anything is trained."""

import dataclasses
import logging

import jax
import numpy as np
import pytest

from regvq_jax import stages
from regvq_jax.data.sources import make_source, shuffled
from regvq_jax.errors import UserError
from regvq_jax.trained import load_tokenizer
from regvq_jax.trainers import build, build_prior
from regvq_jax.workdir import load_config


@pytest.fixture(scope="module")
def run(tiny_run):
    """(a function that gives the run's config, its workdir, tokenizer and parameters)."""
    workdir = tiny_run[0]
    return lambda: load_config(workdir), workdir, *load_tokenizer(load_config(workdir), workdir)


def make(run, change=lambda config: None, params=None):
    make_config, workdir, tokenizer, own_params = run
    config = make_config()
    change(config)
    return build_prior.make_prior_trainer(config, workdir, tokenizer, params or own_params)


def test_facts_say_what_the_network_owes_to_its_data(run):
    trainer, facts = make(run)
    assert facts.condition == "text" and facts.tokenizer_hash == build.hash_params(run[3])
    _, facts = make(run, lambda config: config.prior.update(condition="class"))
    assert (facts.condition, facts.num_classes) == ("class", 9)
    trainer, facts = make(run, lambda config: config.prior.update(condition="map"))
    assert (facts.num_label_classes, trainer.condition.example().shape) == (25, (1, 32, 32))


def test_tokens_of_another_tokenizer(run):
    other = jax.tree.map(lambda x: x + 1, run[3])
    with pytest.raises(UserError, match=f"tokenizer hash '{build.hash_params(run[3])}' instead of"):
        make(run, params=other)


def test_another_grid(run):
    trainer, facts = make(run)
    model = trainer.model.clone(grid=(4, 16))
    cache = build_prior.open_source(run[0](), run[1], "train")
    with pytest.raises(UserError, match=r"grid \(8, 8\) instead of \(4, 16\)"):
        build_prior.check_cache(cache, facts, model)
    with pytest.raises(UserError, match="map tokenizer hash"):
        tokens = dataclasses.replace(facts, condition="map_tokens", map_tokenizer_hash="x", map_grid=(8, 8))
        build_prior.check_cache(cache, tokens, trainer.model)


def diffusion(config, **sampling):
    config.prior.name = "diffusion"
    config.prior.diffusion = {}
    config.sample = {"captions": (), **sampling}


MISTAKES = {
    "no dropped conditions": (
        lambda c: c.prior.update(condition_drop=0.0),
        "guidance=4.0 needs a prior that was trained without its condition",
    ),
    "top-k above K": (lambda c: c.sample.update(top_k=33), "top_k=33 is more than the 32 codes"),
    "top-p": (lambda c: c.sample.update(top_p=0.0), "top_p=0.0 must be above 0"),
    "ramp": (lambda c: c.sample.update(guidance_ramp="quadratic"), 'guidance_ramp="quadratic" is unknown'),
    "order": (lambda c: c.sample.update(order="halten"), 'Did you mean "halton"'),
    "condition": (lambda c: c.prior.update(condition="txt"), '"txt" is unknown. Did you mean "text"'),
    "no map tokenizer": (lambda c: c.prior.update(condition="map_tokens"), '"map_tokens" needs what'),
    "text encoder": (lambda c: c.prior.text.update(encoder="t5"), 'prior.text.encoder="t5" is unknown'),
    "weights": (lambda c: c.prior.text.update(encoder="clip"), "needs its weights"),
    "positions": (lambda c: c.prior.model.update(positions="rotray"), 'Did you mean "rotary"'),
    "another version": (lambda c: c.prior.__delitem__("condition"), "has no config.prior.condition: it was"),
    "heads": (lambda c: c.prior.model.update(num_heads=3), "dim=32 is not a multiple of num_heads=3"),
    "rotary heads": (lambda c: c.prior.model.update(num_heads=16, positions="rotary"), "num_heads=16 x 4"),
    "prior": (lambda c: c.prior.update(name="maskd"), 'Did you mean "masked"'),
    "another sampler": (lambda c: diffusion(c, order="halton"), "order is no setting of prior.name"),
    "smoothing": (lambda c: c.prior.masked.update(label_smoothing=5.0), "label_smoothing=5.0 must be"),
    "no draws": (lambda c: c.prior.evals.prior_loss.update(num_draws=0), "num_draws=0 must be at least 1"),
    "more steps than times": (lambda c: diffusion(c, steps=200), "steps=200 is more than"),
    "remasking with replacement": (lambda c: diffusion(c, remask="cap"), "remask=cap does nothing"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(run, name):
    change, words = MISTAKES[name]
    with pytest.raises(UserError, match=words):
        make(run, change)


def test_cut_captions_are_counted(run, caplog):
    caplog.set_level(logging.WARNING)
    make(run, lambda config: config.prior.text.update(length=24))
    assert not caplog.records
    make(run, lambda config: config.prior.text.update(length=6))
    assert "captions have more than prior.text.length=6 ids and are cut" in caplog.text


def test_mistakes_are_found_before_stage_one(run):
    build_prior.check_prior_config(run[0]())
    config = run[0]()
    config.prior.condition_drop = 1.0
    with pytest.raises(UserError, match="condition_drop=1.0 must be"):
        build_prior.check_prior_config(config)
    config = run[0]()
    config.prior.optim.warmup_steps = 8
    with pytest.raises(UserError, match="warmup_steps"):
        build_prior.check_prior_config(config)


def test_a_prior_goes_on_only_with_the_networks_it_began_with(run, tmp_path):
    facts = make(run)[1]
    stages.keep_facts(tmp_path, facts)
    (tmp_path / "checkpoints").mkdir()
    stages.keep_facts(tmp_path, facts)
    with pytest.raises(UserError, match=r"tokenizer_hash \(\w+ then, other now\)"):
        stages.keep_facts(tmp_path, dataclasses.replace(facts, tokenizer_hash="other"))


def test_shuffled_conditions_are_not_those_of_neighbours():
    source = make_source("emoji-grounds", split="heldout", image_size=32)
    mixed = shuffled(source)
    classes = np.array([mixed[i]["class"] for i in range(0, 400)])
    assert np.mean(classes == np.roll(classes, 1)) < 0.4  # 0.95 in the order of the source.
    order = [mixed[i]["text"] for i in range(len(mixed))]
    assert sorted(order) == sorted(source[i]["text"] for i in range(len(source)))
