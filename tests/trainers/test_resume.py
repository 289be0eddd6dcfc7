"""Trainings that are broken off and go on: to the bit on the same devices, and on other ones."""

import dataclasses

import grain
import jax
import numpy as np
import pytest

from regvq_jax import loop, sharding
from regvq_jax.checkpoint import Checkpoints
from regvq_jax.conditioning.condition import Condition
from regvq_jax.metric_writers import read_jsonl
from regvq_jax.trainers import build
from tests.trainers.test_prior import make_trainer

BATCH = 16


class Killed(Exception):
    """Stands in for kill -9."""


class Rows:
    """Token rows, each a function of its index; one of them may be the last."""

    def __init__(self, last=None):
        self.last = last

    def __len__(self):
        return 1000

    def __getitem__(self, index):
        if index == self.last:
            raise Killed
        return {"tokens": np.random.default_rng(index).integers(0, 8, 4, dtype=np.int32)}


@dataclasses.dataclass(frozen=True)
class OverRows:
    """A prior's trainer with what the loop asks of one, over `Rows`."""

    trainer: object
    rows: Rows
    total_steps: int = 6
    name: str = "prior"
    num_examples: int = 0
    evaluators: tuple = ()
    best_metric: tuple = ("eval/prior/loss", "min")

    @property
    def train(self):
        settings = dict(log_every_steps=1, checkpoint_every_steps=2, total_steps=self.total_steps)
        return dataclasses.replace(self.trainer.train, **settings)

    @property
    def data(self):
        return dataclasses.replace(self.trainer.data, num_threads=0)

    def make_batches(self):
        return grain.MapDataset.source(self.rows).batch(BATCH)

    def make_watches(self, metrics_path):
        return ()

    def __getattr__(self, name):
        return getattr(self.trainer, name)


def last_state(trainer, directory):
    with Checkpoints(directory / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.restore(jax.eval_shape(trainer.init, jax.random.key(0)))[0]


@pytest.mark.parametrize("name", ["autoregressive", "masked", "released", "absorbing"])
def test_a_killed_prior_goes_on_to_the_bit(tmp_path, one_device_mesh, name):
    """Optimiser, averages, the diffusion's history, random draws and data; gradients of two slices."""
    trainer = make_trainer(name, Condition(), slices=2)
    loop.train(OverRows(trainer, Rows()), tmp_path / "whole", one_device_mesh)
    with pytest.raises(Killed):  # In the fifth batch: four steps are saved.
        loop.train(OverRows(trainer, Rows(4 * BATCH)), tmp_path / "broken", one_device_mesh)
    loop.train(OverRows(trainer, Rows()), tmp_path / "broken", one_device_mesh)
    states = [last_state(trainer, tmp_path / directory) for directory in ("whole", "broken")]
    assert states[0].step == 6
    jax.tree.map(np.testing.assert_array_equal, *states)


# From eight devices down to one and back, split in each of the three ways.
MESHES = [(4, 2, 1), (1, 4, 1), (1, 1, 2), (1, 1, 1), (4, 2, 1)]


def meshes():
    return [sharding.make_mesh(*axes, devices=jax.devices()[: np.prod(axes)]) for axes in MESHES]


def test_a_prior_goes_on_on_other_devices(tmp_path, one_device_mesh, monkeypatch):
    """A part of the training on every mesh: the losses of one device throughout."""
    monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 16)
    trainer = make_trainer("masked", Condition(), num_heads=4)
    loop.train(OverRows(trainer, Rows(), total_steps=10), tmp_path / "one", one_device_mesh)
    for part, mesh in enumerate(meshes(), 1):
        loop.train(OverRows(trainer, Rows(), total_steps=2 * part), tmp_path / "many", mesh)
    one, many = (
        {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}
        for lines in (read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("one", "many"))
    )
    assert list(many) == list(range(1, 11)) and len(set(one.values())) == 10
    assert many == pytest.approx(one, rel=1e-3)


def test_a_tokenizers_state_is_the_same_to_the_bit_on_all_devices(tmp_path, tiny_config, monkeypatch):
    """Saved on one mesh, restored on the next and saved there, and so on."""
    monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 16)
    tiny_config.model.update(multipliers=(1, 1), middle_attention=False)
    trainer = build.make_tokenizer_trainer(tiny_config)
    trainer = dataclasses.replace(trainer, loss=dataclasses.replace(trainer.loss, lecam_weight=0.1))
    shapes = jax.eval_shape(trainer.init, jax.random.key(0))
    random = np.random.default_rng(0)
    state = jax.tree.map(lambda x: random.integers(0, 99, x.shape).astype(x.dtype), shapes)
    placed, split = jax.device_put(state), []
    with Checkpoints(tmp_path) as checkpoints:
        for step, mesh in enumerate(meshes(), 1):
            mesh = sharding.mesh_of_stage(mesh, "tokenizer")
            checkpoints.save(step, placed, {})
            places = sharding.param_shardings(shapes, mesh)
            abstract = jax.tree.map(lambda x, place: x.update(sharding=place), shapes, places)
            placed, _ = checkpoints.restore(abstract)
            jax.tree.map(np.testing.assert_array_equal, jax.device_get(placed), state)
            split.append(sum(not x.sharding.is_fully_replicated for x in jax.tree.leaves(placed)))
    assert split[2] == split[3] == 0 and min(split[0], split[1], split[4]) > 100
