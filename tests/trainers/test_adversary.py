"""The discriminator's switch-on, in a whole training: what is logged of it, and that it cannot win unseen."""

import dataclasses
import re

import jax
import numpy as np
import optax
import pytest

from regvq_jax import loop
from regvq_jax.checkpoint import Checkpoints
from regvq_jax.errors import UserError
from regvq_jax.metric_writers import read_jsonl
from regvq_jax.trainers import build

OF_THE_ADVERSARY = {
    "optim/discriminator_grad_norm",
    "train/adaptive_weight",
    "train/adversarial",
    "train/discriminator",
    "train/fake_accuracy",
    "train/fake_logits",
    "train/last_layer_gan_grad",
    "train/last_layer_rec_grad",
    "train/real_accuracy",
    "train/real_logits",
}


def test_a_discriminator_that_wins_ends_the_training(tiny_config, tmp_path, one_device_mesh, caplog):
    """Against a generator that stands still it wins soon; the patience is 8 steps, the start step 5."""
    tiny_config.loss.update(
        adversarial_start_step=5, adversarial_ramp_steps=1, discriminator_patience_steps=8
    )
    tiny_config.data.image_size = 16
    tiny_config.train.update(batch_size=4, total_steps=2000, log_every_steps=2, checkpoint_every_steps=20)
    trainer = build.make_tokenizer_trainer(tiny_config)
    optimizers = {"tokenizer": optax.sgd(0.0), "discriminator": optax.adam(2e-2)}
    trainer = dataclasses.replace(trainer, optimizers=optimizers, evaluators=())
    with pytest.raises(UserError) as stop:
        loop.train(trainer, tmp_path, one_device_mesh)

    finding = r"Stopped because the discriminator has won for (\d+) steps, up to step (\d+): it tells "
    won_steps, step = map(int, re.match(finding, str(stop.value)).groups())
    assert won_steps == 8 and "loss.discriminator_patience_steps=0 would let it go on" in str(stop.value)
    assert "\n" not in str(stop.value)
    assert "the training stops at 8 such steps" in caplog.text
    # It is there to be looked at, and to go on from with other settings.
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        assert step - 20 < checkpoints.latest_step() <= step

    lines = {line["step"]: line for line in read_jsonl(tmp_path / "metrics.jsonl")}
    assert max(lines) == step and min(lines) == 1
    for at, line in lines.items():
        assert line.keys() & OF_THE_ADVERSARY == (OF_THE_ADVERSARY if at >= 6 else set())
    # Of the window of steps 5 and 6 one has an adversary, and the mean is that of this one.
    assert lines[6]["train/discriminator"] == pytest.approx(1.0, abs=0.2)
    assert lines[6]["optim/discriminator_grad_norm"] > 0
    won = [line for at, line in lines.items() if at >= step - won_steps]
    assert len(won) == 5
    assert all(line[f"train/{side}_accuracy"] >= 0.98 for line in won for side in ("real", "fake"))


def test_without_an_adversary_nothing_is_said_of_one(tiny_config):
    tiny_config.loss.adversarial_weight = 0.0
    trainer = build.make_tokenizer_trainer(tiny_config)
    state = jax.eval_shape(trainer.init, jax.random.key(0))
    batch = {"image": jax.ShapeDtypeStruct((8, 32, 32, 3), np.uint8)}
    _, metrics = jax.eval_shape(trainer.train_step, state, batch, trainer.init_frozen())
    assert not metrics.keys() & OF_THE_ADVERSARY
