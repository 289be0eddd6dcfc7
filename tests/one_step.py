"""One step of every trainer on the devices of all processes; `python -m tests.one_step FILE` writes them."""

import sys

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils

from configs import quickstart
from regvq_jax import distributed, loop, sharding
from regvq_jax.metrics import average
from regvq_jax.trainers import build
from tests.processes import keep_all_compiled
from tests.trainers.test_prior import make_trainer

BATCH = 16
PRIORS = ("autoregressive", "masked", "released")


def make_tokenizer_trainer():
    """Every term that looks at the whole batch is on, and both players play from the first step on."""
    config = quickstart.get_config("tiny")
    config.data.image_size = 16
    config.model.update(multipliers=(1, 1), middle_attention=False)
    config.loss.update(adversarial_start_step=0, lecam_weight=0.1, cl_weight=0.1, prior_kl_weight=0.1)
    config.train.batch_size = BATCH
    return build.make_tokenizer_trainer(config)


def take_steps(mesh: jax.sharding.Mesh) -> dict[str, np.ndarray]:
    """Metrics, gradients and statistics after the first step, by a name that begins with the trainer's."""
    tokenizer = make_tokenizer_trainer()
    found = step_of(tokenizer, dict(tokenizer.make_batches()[0]), mesh, "tokenizer")
    for name in PRIORS:
        trainer = make_trainer(name, slices=2 if name == "masked" else 1)
        tokens = np.random.default_rng(0).integers(0, 8, (BATCH, 4), dtype=np.int32)
        captions = trainer.condition.encode_fn(["red", "blue"] * (BATCH // 2), trainer.condition.length)
        own = slice(*(np.array([0, 1]) + jax.process_index()) * (BATCH // jax.process_count()))
        found |= step_of(trainer, {"tokens": tokens[own], "condition": captions[own]}, mesh, name)
    return found


def step_of(trainer, batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh, name: str):
    """`take_steps` of one trainer and this process's rows."""
    key = jax.random.key(0)
    shapes = jax.eval_shape(trainer.init, key)
    state = jax.jit(trainer.init, out_shardings=sharding.param_shardings(shapes, mesh))(key)
    frozen = jax.device_put(trainer.init_frozen(), sharding.replicated(mesh))
    state, metrics = loop.jit_step(trainer, shapes, mesh)(state, sharding.put_batch(batch, mesh), frozen)
    # Adam's first moments are the gradients up to a factor.
    moments = {network: optax.tree.get(tree, "mu") for network, tree in state.opt_state.items()}
    trees = jax.device_get(multihost_utils.process_allgather((moments, state.statistics), tiled=True))
    leaves = jax.tree.leaves_with_path(dict(zip(("gradient", "statistics"), trees, strict=True)))
    found = {f"{name}{jax.tree_util.keystr(path)}": np.asarray(leaf) for path, leaf in leaves}
    return found | {f"{name}/{tag}": np.asarray(value) for tag, value in average([metrics]).items()}


if __name__ == "__main__":
    distributed.start()
    keep_all_compiled()
    # Small arrays are split, too.
    sharding.MIN_SHARDED_SIZE = 16
    results = take_steps(sharding.make_mesh(data=-1, fsdp=2 if jax.process_count() > 1 else 1))
    if jax.process_index() == 0:
        np.savez(sys.argv[1], **results)
