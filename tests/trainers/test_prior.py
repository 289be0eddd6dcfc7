"""Stage two: every kind of prior learns what its condition tells, alike on one and on eight devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax import loop, sharding
from regvq_jax.conditioning.condition import Condition
from regvq_jax.conditioning.text import make_tokenizer
from regvq_jax.evaluate.samples import draw_tokens
from regvq_jax.models.conditioners import MapConditioner, TextConditioner
from regvq_jax.models.prior import PriorNet
from regvq_jax.optim import OptimSettings, make_optimizer
from regvq_jax.settings import DataSettings, TrainSettings
from regvq_jax.trainers import build_prior
from regvq_jax.trainers.autoregressive import AutoregressivePrior
from regvq_jax.trainers.diffusion import DiffusionPrior
from regvq_jax.trainers.masked import MaskedPrior
from regvq_jax.trainers.prior import PriorTrainer

LENGTH = 6
PRIORS = {
    "autoregressive": AutoregressivePrior(),
    "masked": MaskedPrior(label_smoothing=0.0),
    "released": DiffusionPrior(num_steps=10),
    "paper": DiffusionPrior(schedule="paper", num_steps=10),
    "absorbing": DiffusionPrior(process="absorbing", schedule="linear"),
}


def text_condition():
    tokenizer = make_tokenizer()
    conditioner = TextConditioner(length=LENGTH, dim=16, depth=1, num_heads=2, embed_dim=4)
    return Condition("text", conditioner, length=LENGTH, encode_fn=tokenizer.encode)


def make_trainer(name, condition=None, slices=1, **fields):
    condition = condition or text_condition()
    prior = PRIORS[name]
    sizes = {"codebook_size": 8, "grid": (2, 2), "dim": 16, "depth": 1, "num_heads": 2, "dropout": 0.0}
    model = PriorNet(
        conditioner=condition.conditioner, causal=prior.causal, timed=prior.timed, **(sizes | fields)
    )
    return PriorTrainer(
        prior=prior,
        model=model,
        condition=condition,
        condition_drop=0.2,
        optimizer=make_optimizer(OptimSettings(lr=1e-2, schedule="constant", weight_decay=0.01), 300),
        frozen={},
        seed=0,
        train=TrainSettings(batch_size=16, total_steps=300, accumulation_slices=slices, ema_decay=0.9),
        data=DataSettings(source="emoji", image_size=8),
        make_batches=lambda: None,
    )


@pytest.fixture(scope="module")
def batch():
    """Two captions, each with its own tokens: only the caption tells which."""
    which = np.arange(16) % 2
    tokens = np.where(which[:, None] == 0, [[1, 2, 3, 4]], [[5, 6, 7, 0]]).astype(np.int32)
    captions = np.array(["red", "blue"])[which].tolist()
    return {"tokens": tokens, "condition": make_tokenizer().encode(captions, LENGTH)}


@pytest.mark.parametrize("name", PRIORS)
def test_the_caption_decides_what_is_drawn(name, batch):
    trainer = make_trainer(name)
    state = jax.jit(trainer.init)(jax.random.key(0))
    step_fn = jax.jit(trainer.train_step, donate_argnums=0)
    for _ in range(300):
        state, metrics = step_fn(state, batch, {})
    assert np.isfinite(float(metrics["train/loss"]))
    params = state.ema["prior"]
    prior, model = trainer.prior, trainer.model

    @jax.jit
    def nats(params, condition, key):
        return build_prior.bound(prior, model, params, batch["tokens"], condition, key, 8).mean()

    right = nats(params, batch["condition"], jax.random.key(0))
    wrong = nats(params, batch["condition"][::-1], jax.random.key(0))
    # Undecided between two pictures costs log 2 = 0.69 a picture; without any knowledge 4 log 8 = 8.3.
    assert right < 0.4 < 2.0 < wrong

    settings = prior.sampling(guidance=2.0, **({} if prior.causal else {"steps": 4}))
    draw = functools.partial(draw_tokens, prior, model, trainer.condition, settings, params, {})
    keys = jax.random.split(jax.random.key(1), 16)
    drawn = jax.jit(draw)(keys, batch["condition"]).reshape(16, 4)
    assert np.mean(np.asarray(drawn) == batch["tokens"]) > 0.95


@pytest.mark.parametrize("name", PRIORS)
def test_a_known_distribution_is_learned_and_sampled_back(name):
    """A joint of two tokens that depend on each other: total variation under 0.05 after training."""
    joint = np.array([[0.30, 0.02, 0.08], [0.05, 0.25, 0.02], [0.03, 0.05, 0.20]])
    trainer = make_trainer(name, Condition(), codebook_size=3, grid=(1, 2))
    trainer = dataclasses.replace(
        trainer,
        optimizer=make_optimizer(OptimSettings(lr=1e-2, final_lr_ratio=0.01), 500),
        train=TrainSettings(batch_size=512, total_steps=500, ema_decay=0.99),
    )
    state = jax.jit(trainer.init)(jax.random.key(0))
    step_fn = jax.jit(trainer.train_step, donate_argnums=0)
    rng = np.random.default_rng(0)
    for _ in range(500):
        drawn = rng.choice(9, 512, p=joint.ravel())
        tokens = np.stack(np.divmod(drawn, 3), 1).astype(np.int32)
        state, _ = step_fn(state, {"tokens": tokens}, {})
    prior, model = trainer.prior, trainer.model
    # Two codes that depend on each other must not be drawn at once.
    steps = {"masked": 2, "absorbing": 64}.get(name, prior.num_steps if model.timed else 0)
    settings = prior.sampling(**({"steps": steps} if steps else {}))
    if name == "masked":
        settings = dataclasses.replace(settings, choice_temperature=1e3)  # In a random order.
    draw = jax.jit(functools.partial(draw_tokens, prior, model, trainer.condition, settings))
    keys = jax.random.split(jax.random.key(1), 8192)
    first, second = np.asarray(draw(state.ema["prior"], {}, keys, None)).reshape(-1, 2).T
    frequency = np.bincount(3 * first + second, minlength=9) / len(first)
    assert np.abs(frequency - joint.ravel()).sum() / 2 < 0.05


def test_half_a_picture_is_kept_and_shapes_the_rest(batch):
    # Without a condition the given first half tells which of the two pictures it is.
    for name in ("autoregressive", "masked", "released"):
        trainer = make_trainer(name, Condition())
        state = jax.jit(trainer.init)(jax.random.key(0))
        step_fn = jax.jit(trainer.train_step, donate_argnums=0)
        for _ in range(300):
            state, _ = step_fn(state, {"tokens": batch["tokens"]}, {})
        prior, model = trainer.prior, trainer.model
        assert "conditioner" not in state.params["prior"]
        settings = prior.sampling(**({} if prior.causal else {"steps": 4}))
        given = jnp.where(jnp.arange(4) < 2, batch["tokens"], model.special_id)
        keys = jax.random.split(jax.random.key(1), 16)
        drawn = draw_tokens(
            prior, model, trainer.condition, settings, state.ema["prior"], {}, keys, None, given
        ).reshape(16, 4)
        np.testing.assert_array_equal(drawn[:, :2], batch["tokens"][:, :2])
        assert np.mean(np.asarray(drawn) == batch["tokens"]) > 0.9


def test_a_label_map_steers_its_own_cells():
    condition = Condition("map", MapConditioner(3, (2, 2), 16), size=3, map_shape=(4, 4))
    trainer = make_trainer("masked", condition)
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 3, (16, 2, 2))
    batch = {
        "tokens": (2 * cells + 1).reshape(16, 4).astype(np.int32),
        "condition": cells.repeat(2, 1).repeat(2, 2).astype(np.uint8),
    }
    state = jax.jit(trainer.init)(jax.random.key(0))
    step_fn = jax.jit(trainer.train_step, donate_argnums=0)
    for _ in range(200):
        state, _ = step_fn(state, batch, {})
    logits = trainer.model.apply(
        {"params": state.ema["prior"]}, np.full((16, 4), 8, np.int32), batch["condition"]
    )
    np.testing.assert_array_equal(np.argmax(logits, -1), batch["tokens"])


@pytest.mark.parametrize(("name", "slices"), [("masked", 2), ("autoregressive", 1), ("released", 2)])
def test_same_losses_on_one_and_on_eight_devices(name, slices, batch, one_device_mesh):
    trainer = make_trainer(name, slices=slices)
    histories = []
    for mesh in (one_device_mesh, sharding.make_mesh(2, 4)):
        state = jax.jit(trainer.init)(jax.random.key(0))
        state = jax.device_put(state, sharding.param_shardings(state, mesh))
        step_fn = loop.compile_step(trainer, state, {}, batch, mesh)
        losses = []
        for _ in range(5):
            state, metrics = step_fn(state, sharding.put_batch(batch, mesh), {})
            losses.append(float(metrics["train/loss"]))
        histories.append(losses)
    np.testing.assert_allclose(*histories, rtol=1e-4)
    if name == "released":
        assert int(state.statistics["history"].visits.sum()) == 5 * 16


def test_images_are_encoded_in_the_step(batch):
    # A tokenizer that reads its codes off the top row of the image.
    trainer = dataclasses.replace(
        make_trainer("masked"), encode_images_fn=lambda params, image: image[:, 0, :4, 0].astype(jnp.int32)
    )
    image = np.zeros((16, 8, 8, 3), np.uint8)
    image[:, 0, :4, 0] = batch["tokens"]
    step_fn = jax.jit(trainer.train_step)
    frozen = {"tokenizer": {}}
    state = jax.jit(trainer.init)(jax.random.key(0))
    of_images = step_fn(state, {"image": image, "condition": batch["condition"]}, frozen)[1]
    of_tokens = step_fn(state, batch, frozen)[1]
    assert float(of_images["train/loss"]) == float(of_tokens["train/loss"])
