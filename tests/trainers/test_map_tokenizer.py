"""The tokenizer of label maps: its loss, where gradients go, devices, accumulation, learning, its watch."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from regvq_jax import loop, optim, quantize, rng, sharding
from regvq_jax.checkpoint import Checkpoints
from regvq_jax.data.pipeline import evaluation_batches, make_batches
from regvq_jax.data.sources import make_source
from regvq_jax.data.transforms import keep
from regvq_jax.errors import UserError
from regvq_jax.evaluate.maps import MapReconstruction
from regvq_jax.losses.classification import binary_cross_entropy, cross_entropy
from regvq_jax.models.tokenizer import ImageTokenizer
from regvq_jax.settings import DataSettings, TrainSettings
from regvq_jax.trainers.map_tokenizer import MapLossSettings, MapTokenizerTrainer
from regvq_jax.trainers.tokenizer_settings import QuantizerSettings

SIZE, CLASSES, BATCH = 8, 25, 8
LABELS_ONLY = [partial(keep, names=("labels",))]


def make_trainer(quantizer, total_steps=4, **loss):
    """A small trainer over emoji labels; `quantizer` are fields of the settings."""
    quantizer = QuantizerSettings(**dict(codebook_size=16, code_dim=4, logits="distance") | quantizer)
    model = ImageTokenizer(
        quantizer=quantizer.make_module(),
        channels=8,
        multipliers=(1, 1),
        num_res_blocks=1,
        attention_levels=(),
        middle_attention=False,
        latent_channels=8,
        out_channels=CLASSES,
    )
    source = make_source("emoji", split="train", image_size=SIZE)
    return MapTokenizerTrainer(
        model=model,
        quantizer=quantizer,
        loss=MapLossSettings(**loss),
        optimizer=optim.make_optimizer(optim.OptimSettings(lr=1e-2, schedule="constant"), total_steps),
        seed=0,
        train=TrainSettings(batch_size=BATCH, total_steps=total_steps, checkpoint_every_steps=2),
        data=DataSettings("emoji", SIZE),
        make_batches=partial(make_batches, source, LABELS_ONLY, batch_size=BATCH, seed=0),
    )


@pytest.fixture(scope="module")
def trainer():
    return make_trainer({})


@pytest.fixture(scope="module")
def start(trainer):
    """(state at step 0, batch) on the host."""
    return jax.device_get((jax.jit(trainer.init)(jax.random.key(0)), dict(trainer.make_batches()[0])))


@pytest.fixture(scope="module")
def step_fn(trainer):
    return jax.jit(trainer.train_step)


def gradients(trainer, state, labels, key=None):
    """(gradients, metrics) of a trainer's loss."""
    key = jax.random.key(1) if key is None else key
    loss_fn = jax.jit(jax.grad(trainer._loss, has_aux=True))
    grads, (metrics, _) = loss_fn(state.params["tokenizer"], labels, state.step, key)
    return grads, metrics


def assert_trees_close(got, want, tolerance):
    """All leaves within `tolerance` of the largest one."""
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(want))
    assert largest > 0
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * largest, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("name, loss_fn", [("cross_entropy", cross_entropy), ("bce", binary_cross_entropy)])
def test_the_loss_is_that_of_the_map_and_of_the_codes(trainer, start, name, loss_fn):
    """Loss and gradient against both terms written out in one piece."""
    state, batch = start
    one = dataclasses.replace(trainer, loss=MapLossSettings(name=name, prior_kl_weight=0.3))
    key, labels = jax.random.key(3), batch["labels"]
    params = state.params["tokenizer"]

    def plain(params):
        maps = jax.nn.one_hot(labels, CLASSES)
        features = one.model.apply({"params": params}, maps, method="encode_features")
        codebook = params["quantizer"]["codebook"]
        out = quantize.regularized(
            rng.fold_in_name(key, "quantizer"),
            quantize.distance_logits(features, codebook),
            codebook,
            mask_ratio=0.4,
        )
        logits = one.model.apply({"params": params}, out.quantized, method="decode")
        return loss_fn(logits, labels) + 0.3 * quantize.prior_kl(out.posterior)

    value, expected = jax.jit(jax.value_and_grad(plain))(params)
    grads, metrics = gradients(one, state, labels, key)
    assert float(metrics["train/loss"]) == pytest.approx(float(value), rel=1e-5)
    total = metrics[f"train/{name}"] + 0.3 * metrics["train/prior_kl"]
    assert float(metrics["train/loss"]) == pytest.approx(float(total), rel=1e-5)
    assert_trees_close(grads, expected, 1e-4)


@pytest.mark.parametrize(
    "quantizer",
    [
        {},
        {"name": "nearest"},
        {"name": "simvq"},
        {"name": "ibq"},
        {"name": "fsq", "levels": (4, 4)},
        {"name": "lfq"},
        {"depth": 2},
    ],
    ids=str,
)
def test_the_gradient_of_the_map_reaches_encoder_and_codebook(quantizer, start):
    """Of every kind of quantizer, its own terms included."""
    one = make_trainer(quantizer)
    state = jax.eval_shape(one.init, jax.random.key(0))
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda x: 0.3 * random.normal(size=x.shape).astype(x.dtype), state.params)
    grads, metrics = gradients(one, state.replace(params=params, step=np.int32(0)), start[1]["labels"])
    reached = {name for name, tree in grads.items() if any(np.any(g != 0) for g in jax.tree.leaves(tree))}
    # "fsq" and "lfq" have no codebook to learn; that of "simvq" is moved by its projection.
    assert reached >= {"encoder", "quant_conv", "decoder", "conv_out"} | (grads.keys() & {"quantizer"})
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))
    assert 0 <= metrics["train/accuracy"] <= 1


def test_same_state_on_one_and_on_eight_devices(trainer, start, one_device_mesh):
    results = []
    for mesh in (one_device_mesh, sharding.make_mesh(4, 2)):
        state, batch = start
        state = jax.device_put(state, sharding.param_shardings(state, mesh))
        step = loop.compile_step(trainer, state, trainer.init_frozen(), batch, mesh)
        state, metrics = step(state, sharding.put_batch(batch, mesh), trainer.init_frozen())
        results.append(jax.device_get((state, metrics)))
    (one, one_metrics), (eight, eight_metrics) = results
    for name, value in one_metrics.items():
        assert float(eight_metrics[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-6), name
    # Adam's first step is a sign, which noise decides where the gradient is next to nothing.
    moments = [optax.tree.get(state.opt_state["tokenizer"], "mu") for state in (eight, one)]
    assert_trees_close(*moments, 1e-4)
    np.testing.assert_allclose(eight.statistics["code_shares"], one.statistics["code_shares"], atol=1e-6)


def test_accumulation_is_the_whole_batch():
    """Without a term that looks at the whole batch, and without draws, slices change nothing."""
    whole = make_trainer({"name": "deterministic"}, prior_kl_weight=0.0)
    sliced = dataclasses.replace(whole, train=dataclasses.replace(whole.train, accumulation_slices=2))
    state, batch = jax.jit(whole.init)(jax.random.key(0)), dict(whole.make_batches()[0])
    (one, one_metrics), (two, two_metrics) = (
        jax.jit(x.train_step)(state, batch, {}) for x in (whole, sliced)
    )
    assert one_metrics.keys() == two_metrics.keys()
    for name in ("train/loss", "train/accuracy", "optim/grad_norm", "codebook/train_perplexity"):
        assert float(two_metrics[name]) == pytest.approx(float(one_metrics[name]), rel=1e-4)
    assert_trees_close(*(optax.tree.get(s.opt_state["tokenizer"], "mu") for s in (two, one)), 1e-4)


def test_a_moving_codebook_follows_its_features():
    one = make_trainer(
        {"name": "nearest", "ema_decay": 0.9, "restart_below": 0.1}, codebook_weight=0.0
    )
    state, batch = jax.jit(one.init)(jax.random.key(0)), dict(one.make_batches()[0])
    step, first = jax.jit(one.train_step), state.params["tokenizer"]["quantizer"]["codebook"]
    for _ in range(3):
        state, metrics = step(state, batch, {})
    codebook = state.params["tokenizer"]["quantizer"]["codebook"]
    assert np.any(codebook != first)
    np.testing.assert_array_equal(state.ema["tokenizer"]["quantizer"]["codebook"], codebook)
    np.testing.assert_allclose(state.statistics["moving_counts"].sum(), BATCH * 16, rtol=0.2)
    assert float(metrics["train/commitment"]) > 0 and "train/codebook" not in metrics


def test_it_learns_one_batch(start, step_fn):
    state, batch = start
    history = []
    for _ in range(40):
        state, metrics = step_fn(state, batch, {})
        history.append(jax.device_get(metrics))
    background = np.mean(batch["labels"] == 0)
    assert history[-1]["train/accuracy"] > max(background, history[0]["train/accuracy"]) + 0.05
    assert history[-1]["train/loss"] < 0.5 * history[0]["train/loss"]


def test_the_loop_trains_judges_and_keeps_it(trainer, tmp_path, one_device_mesh):
    """N + N steps with a restart equal 2N, and what is kept loads as a network named "tokenizer"."""
    heldout = make_source("emoji", split="heldout", image_size=SIZE)
    evaluator = MapReconstruction(
        trainer.model, partial(evaluation_batches, heldout, LABELS_ONLY, 64), every_steps=4, num_shown=4
    )
    judged = dataclasses.replace(trainer, evaluators=(evaluator,))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    results = loop.train(judged, whole, one_device_mesh)
    assert results["eval/map_reconstruction/maps"] == len(heldout) and results["step"] == 4
    assert (whole / "images").is_dir() and len(list((whole / "images").glob("maps_*.png"))) == 1

    class Stop(Exception):
        pass

    class Stopping:
        name, every_steps = "stop", 3

        def __call__(self, ema, frozen, mesh):
            raise Stop

    with pytest.raises(Stop):  # At step 3, after the checkpoint of step 2.
        loop.train(dataclasses.replace(trainer, evaluators=(Stopping(),)), broken, one_device_mesh)
    loop.train(dataclasses.replace(trainer, evaluators=()), broken, one_device_mesh)
    shapes = jax.eval_shape(trainer.init, jax.random.key(0))
    states = []
    for directory in (whole, broken):
        with Checkpoints(directory / "checkpoints", read_only=True) as checkpoints:
            states.append(checkpoints.restore(shapes)[0])
            kept = checkpoints.restore_params(shapes.ema["tokenizer"], key=("ema", "tokenizer"), step=None)
    jax.tree.map(np.testing.assert_array_equal, *states)
    jax.tree.map(np.testing.assert_array_equal, kept, states[1].ema["tokenizer"])


def test_the_watch_looks_at_the_codebook_of_the_maps(trainer, tmp_path, caplog):
    metrics_path = tmp_path / "metrics.jsonl"
    before = {"step": 10, "map_codebook/usage": 0.9, "codebook/usage": 0.1}
    metrics_path.write_text(json.dumps(before) + "\n")
    (watch,) = trainer.make_watches(metrics_path)
    watch(20, {"train/loss": 1.0, "codebook/usage": 0.1})
    assert not caplog.text
    watch(30, {"map_codebook/usage": 0.5})
    assert "fallen from 90.0% at step 10 to 50.0% at step 30" in caplog.text


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(UserError, match='Did you mean "cross_entropy"'):
        MapLossSettings(name="crossentropy")
    with pytest.raises(UserError, match="prior_kl_weight=-1.0 must be at least 0"):
        MapLossSettings(prior_kl_weight=-1.0)
    with pytest.raises(UserError, match="loss.prior_kl_scope"):
        MapLossSettings(prior_kl_scope="pixel")
