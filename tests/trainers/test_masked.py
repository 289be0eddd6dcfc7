"""Stage two: the condition, devices, learning; with and without captions."""

import dataclasses

import jax
import numpy as np
import pytest

from regvq_jax import loop, sharding
from regvq_jax.conditioning.text import make_tokenizer
from regvq_jax.models.prior import PriorNet
from regvq_jax.optim import OptimSettings, make_optimizer
from regvq_jax.settings import DataSettings, TrainSettings
from regvq_jax.trainers.masked import MaskedSettings, MaskedTrainer

LENGTH = 6


def make_trainer(text_length):
    return MaskedTrainer(
        model=PriorNet(
            codebook_size=8,
            grid=(2, 2),
            dim=16,
            depth=1,
            num_heads=2,
            dropout=0.1,
            text_length=text_length,
            text_depth=1,
            text_embed_dim=4,
        ),
        masked=MaskedSettings(condition_drop=0.2, label_smoothing=0.0),
        optimizer=make_optimizer(OptimSettings(lr=1e-2, schedule="constant", weight_decay=0.01), 100),
        frozen={},
        seed=0,
        train=TrainSettings(batch_size=16, total_steps=100),
        data=DataSettings(source="emoji", image_size=8),
        make_batches=lambda: None,
    )


@pytest.fixture(scope="module")
def batch():
    """Two captions, each with its own tokens: only the caption tells which."""
    which = np.arange(16) % 2
    tokens = np.where(which[:, None] == 0, [[1, 2, 3, 4]], [[5, 6, 7, 0]]).astype(np.int32)
    captions = np.array(["red", "blue"])[which].tolist()
    return {"tokens": tokens, "text_tokens": make_tokenizer().encode(captions, LENGTH)}


def test_the_caption_decides_what_is_drawn(batch, one_device_mesh):
    trainer = make_trainer(LENGTH)
    state = jax.jit(trainer.init)(jax.random.key(0))
    step_fn = jax.jit(trainer.train_step)
    for _ in range(100):
        state, metrics = step_fn(state, batch, {})
    assert metrics["train/loss"] < 0.3  # Undecided between two pictures costs log 2 = 0.69 a token.
    masked = np.full((2, 4), trainer.model.mask_id, np.int32)
    logits = trainer.model.apply({"params": state.ema["prior"]}, masked, batch["text_tokens"][:2])
    np.testing.assert_array_equal(np.argmax(logits, -1), batch["tokens"][:2])


def test_an_unconditional_prior_needs_no_text(batch):
    trainer = make_trainer(0)
    state = jax.jit(trainer.init)(jax.random.key(0))
    state, metrics = jax.jit(trainer.train_step)(state, {"tokens": batch["tokens"]}, {})
    assert np.isfinite(float(metrics["train/loss"])) and "text_encoder" not in state.params["prior"]


@pytest.mark.parametrize("slices", [1, 2])
def test_same_losses_on_one_and_on_eight_devices(batch, one_device_mesh, slices):
    trainer = make_trainer(LENGTH)
    trainer = dataclasses.replace(
        trainer, train=dataclasses.replace(trainer.train, accumulation_slices=slices)
    )
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
