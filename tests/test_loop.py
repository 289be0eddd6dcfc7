"""The loop's mechanics on a trainer that compiles in no time: resume, NaN, preemption, evaluation, best."""

import dataclasses
import os
import signal

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from regvq_jax import loop, rng
from regvq_jax.checkpoint import Checkpoints
from regvq_jax.errors import UserError
from regvq_jax.evaluate.result import Evaluation
from regvq_jax.files import read_json
from regvq_jax.metric_writers import read_jsonl
from regvq_jax.optim import gradient_metrics
from regvq_jax.preemption import Preempted, stop_if_requested
from regvq_jax.settings import DataSettings, TrainSettings
from regvq_jax.state import init_state, update_ema

OPTIMIZER = optax.adam(0.1)


class Rows:
    """Endless rows, each a function of its index; an index may be poisoned."""

    def __init__(self, poison=None, action=None):
        self.poison, self.action = poison, action

    def __len__(self):
        return 1000

    def __getitem__(self, index):
        if index == self.poison:
            return self.action()
        return {"x": np.full((3,), index, np.float32)}


class Killed(Exception):
    """Stands in for kill -9: nothing may be done about it."""


def kill():
    raise Killed


def not_a_number():
    return {"x": np.full((3,), np.nan, np.float32)}


@dataclasses.dataclass
class DistanceEvaluator:
    """Counts its calls; calls step 4 the best."""

    every_steps: int = 4
    name: str = "distance"
    calls: int = 0

    def __call__(self, ema, frozen, mesh):
        self.calls += 1
        value = {1: 0.1}.get(self.calls, 1.0)
        return Evaluation({"eval/distance": value}, {"picture": np.zeros((4, 4, 3), np.uint8)})


@dataclasses.dataclass
class ToyTrainer:
    """Noisy regression of one vector."""

    source: Rows
    train: TrainSettings = TrainSettings(
        batch_size=8, total_steps=12, log_every_steps=2, checkpoint_every_steps=3
    )
    data: DataSettings = DataSettings(source="toy", image_size=8, num_threads=0)
    num_examples: int = 32
    seed: int = 0
    name: str = "toy"
    best_metric: tuple = ("eval/distance", "min")
    evaluators: tuple = dataclasses.field(default_factory=lambda: (DistanceEvaluator(),))

    def make_batches(self):
        return grain.MapDataset.source(self.source).batch(self.train.batch_size)

    def init(self, key):
        params = {"w": jax.random.normal(key, (3,))}
        return init_state({"toy": params}, {"toy": OPTIMIZER}, averaged=("toy",))

    def init_frozen(self):
        return {"scale": np.float32(0.01)}

    def make_watches(self, metrics_path):
        return ()

    def train_step(self, state, batch, frozen):
        noise = jax.random.normal(rng.step_key(self.seed, "noise", state.step), (3,))
        params = state.params["toy"]

        def loss_fn(params):
            return jnp.mean((params["w"] + noise - frozen["scale"] * batch["x"]) ** 2)

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = OPTIMIZER.update(grads, state.opt_state["toy"], params)
        params = optax.apply_updates(params, updates)
        ema = update_ema(state.ema["toy"], params, state.step, 0.9)
        new = state.replace(
            step=state.step + 1,
            params={"toy": params},
            opt_state={"toy": opt_state},
            ema={"toy": ema},
        )
        return new, {"train/loss": loss} | gradient_metrics({"toy": grads})


def final_state(directory):
    trainer = ToyTrainer(Rows())
    with Checkpoints(directory / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.restore(jax.eval_shape(trainer.init, jax.random.key(0)))[0]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, one_device_mesh):
    directory = tmp_path_factory.mktemp("unbroken")
    results = loop.train(ToyTrainer(Rows()), directory, one_device_mesh)
    return directory, results


def test_a_training_leaves_what_it_promises(unbroken):
    directory, results = unbroken
    assert results["step"] == 12 and results["eval/distance"] == 1.0 and results["seconds"] > 0
    assert loop.read_result(directory) == pytest.approx(results)
    lines = read_jsonl(directory / "metrics.jsonl")
    epochs = {line["step"]: line["data/epoch"] for line in lines if "data/epoch" in line}
    assert epochs[12] == 3.0 and epochs[4] == 1.0  # of 32 examples in batches of 8
    assert {line["step"] for line in lines} >= {1, 2, 4, 6, 8, 10, 12}
    assert (directory / "images" / "picture_0000012.png").exists()
    assert list(directory.glob("events.out.tfevents*"))
    with Checkpoints(directory / "checkpoints", best_metric="eval/distance", read_only=True) as kept:
        assert kept.latest_step() == 12 and kept.best_step() == 4


@pytest.mark.parametrize("poisoned_row", [5, 40, 71, 95])
def test_killed_and_resumed_equals_unbroken_to_the_bit(tmp_path, one_device_mesh, unbroken, poisoned_row):
    with pytest.raises(Killed):
        loop.train(ToyTrainer(Rows(poisoned_row, kill)), tmp_path, one_device_mesh)
    assert loop.read_result(tmp_path) is None
    loop.train(ToyTrainer(Rows()), tmp_path, one_device_mesh)
    jax.tree.map(np.testing.assert_array_equal, final_state(tmp_path), final_state(unbroken[0]))
    losses = [
        {r["step"]: r.get("train/loss") for r in read_jsonl(d / "metrics.jsonl") if "train/loss" in r}
        for d in (tmp_path, unbroken[0])
    ]
    assert losses[0][12] == losses[1][12]


def test_killed_before_the_result_is_written(tmp_path, one_device_mesh, unbroken):
    loop.train(ToyTrainer(Rows()), tmp_path, one_device_mesh)
    (tmp_path / "result.json").unlink()
    results = loop.train(ToyTrainer(Rows()), tmp_path, one_device_mesh)
    assert results["eval/distance"] == 0.1 and loop.read_result(tmp_path)["step"] == 12


def test_nan_stops_with_step_checkpoint_and_batch(tmp_path, one_device_mesh):
    # Row 60 is in batch 7; steps 0 to 5 are safe in the checkpoint of step 6.
    words = r"train/loss \(the gradient of toy/w first\) is not finite at step 7; the last good .* step 6"
    with pytest.raises(UserError, match=words):
        loop.train(ToyTrainer(Rows(60, not_a_number)), tmp_path, one_device_mesh)
    with np.load(tmp_path / "nonfinite_batch_7.npz") as batch:
        assert np.isnan(batch["x"]).any() and batch["x"].shape == (8, 3)
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as kept:
        assert kept.latest_step() == 6
    assert np.isfinite(final_state(tmp_path).params["toy"]["w"]).all()


def test_sigterm_saves_and_goes_on(tmp_path, one_device_mesh, unbroken):
    def terminate():
        os.kill(os.getpid(), signal.SIGTERM)
        return {"x": np.full((3,), 33, np.float32)}

    with pytest.raises(Preempted):
        loop.train(ToyTrainer(Rows(33, terminate)), tmp_path, one_device_mesh)
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as kept:
        assert kept.latest_step() == 5  # Row 33 is in batch 4, which is step 5's.
    loop.train(ToyTrainer(Rows()), tmp_path, one_device_mesh)
    jax.tree.map(np.testing.assert_array_equal, final_state(tmp_path), final_state(unbroken[0]))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def with_skips(allowed):
    return dataclasses.replace(ToyTrainer(Rows()).train, skip_nonfinite_steps=allowed)


def test_a_rare_nan_is_skipped_and_counted(tmp_path, one_device_mesh, caplog):
    # Row 60 is in batch 7.
    trainer = ToyTrainer(Rows(60, not_a_number), train=with_skips(1))
    with caplog.at_level("WARNING", "regvq_jax"):
        loop.train(trainer, tmp_path, one_device_mesh)
    assert "(the gradient of toy/w first) is not finite at step 7, which is skipped" in caplog.text
    lines = {r["step"]: r for r in read_jsonl(tmp_path / "metrics.jsonl") if "train/loss" in r}
    assert lines[8]["optim/skipped_steps"] == 1 and lines[10]["optim/skipped_steps"] == 0
    assert np.isfinite(lines[8]["train/loss"])
    # What was skipped has left no trace: Adam has made one step fewer.
    state = final_state(tmp_path)
    assert state.step == 12 and state.opt_state["toy"][0].count == 11
    assert np.isfinite(state.params["toy"]["w"]).all()


def test_repeated_nan_ends_the_training_with_a_good_state(tmp_path, one_device_mesh):
    class Poisoned(Rows):
        def __getitem__(self, index):
            return not_a_number() if index in (60, 68, 76) else super().__getitem__(index)

    words = r"the gradient of toy/w first\) is not finite at step 9; the last good"
    with pytest.raises(UserError, match=words):
        loop.train(ToyTrainer(Poisoned(), train=with_skips(2)), tmp_path, one_device_mesh)
    assert np.isfinite(final_state(tmp_path).params["toy"]["w"]).all()


def far_away():
    return {"x": np.full((3,), 1e5, np.float32)}


def test_a_jump_of_the_loss_goes_back_past_its_batches(tmp_path, one_device_mesh, caplog):
    train = dataclasses.replace(
        ToyTrainer(Rows()).train, log_every_steps=1, checkpoint_every_steps=3, rollback_factor=50.0
    )
    # Row 60 is in batch 7: steps 0 to 5 are in the checkpoint of step 6, batches 6 and 7 are left out.
    with caplog.at_level("WARNING", "regvq_jax"):
        loop.train(ToyTrainer(Rows(60, far_away), train=train), tmp_path, one_device_mesh)
    assert "before step 8; goes back to step 6, past 2 batches" in caplog.text
    assert [entry["skipped"] for entry in read_json(tmp_path / "rollbacks.json")] == [2]
    lines = {r["step"]: r for r in read_jsonl(tmp_path / "metrics.jsonl") if "train/loss" in r}
    assert max(line["train/loss"] for line in lines.values()) < 50 and max(lines) == 12

    class Hopeless(Rows):
        def __getitem__(self, index):
            return far_away() if index >= 60 else super().__getitem__(index)

    with pytest.raises(UserError, match="3 returns to a checkpoint have not helped; the last one is step 6"):
        loop.train(ToyTrainer(Hopeless(), train=train), tmp_path / "hopeless", one_device_mesh)


@dataclasses.dataclass
class Interrupted(DistanceEvaluator):
    """Is asked to end in the middle of its first call."""

    def __call__(self, ema, frozen, mesh):
        if self.calls == 0:
            self.calls += 1
            os.kill(os.getpid(), signal.SIGTERM)
            stop_if_requested("half of it is kept")
        return super().__call__(ema, frozen, mesh)


def test_sigterm_during_an_evaluation_saves_and_evaluates_later(tmp_path, one_device_mesh, unbroken):
    trainer = ToyTrainer(Rows(), evaluators=(Interrupted(),))
    with pytest.raises(Preempted, match="half of it is kept"):
        loop.train(trainer, tmp_path, one_device_mesh)
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as kept:
        assert kept.latest_step() == 4
    loop.train(trainer, tmp_path, one_device_mesh)
    jax.tree.map(np.testing.assert_array_equal, final_state(tmp_path), final_state(unbroken[0]))
    evaluated = [line["step"] for line in read_jsonl(tmp_path / "metrics.jsonl") if "eval/distance" in line]
    assert evaluated == [4, 8, 12]


def test_a_batch_that_does_not_fit_the_mesh(tmp_path):
    from regvq_jax import sharding

    trainer = ToyTrainer(Rows(), train=TrainSettings(batch_size=6, total_steps=2))
    with pytest.raises(UserError, match="toy batch_size=6 does not divide over 8 device"):
        loop.train(trainer, tmp_path, sharding.make_mesh())


def test_result_is_plain_json(unbroken):
    assert all(isinstance(v, int | float) for v in read_json(unbroken[0] / "result.json").values())
