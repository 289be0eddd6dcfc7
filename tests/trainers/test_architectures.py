"""Both architectures through a step of the trainer, with what saves memory: bfloat16 and remat."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax.metrics import average
from regvq_jax.trainers import build


def two_steps(config):
    """(state, metrics of the second step) from step 4 on, at which the adversary plays."""
    config.loss.adversarial_start_step = 4
    trainer = build.make_tokenizer_trainer(config)
    state = jax.jit(trainer.init)(jax.random.key(0)).replace(step=np.int32(4))
    step_fn, batch = jax.jit(trainer.train_step), dict(trainer.make_batches()[0])
    for _ in range(2):
        state, metrics = step_fn(state, batch, trainer.init_frozen())
    return state, average([metrics])


@pytest.mark.parametrize(
    "architecture, fields",
    [
        ("taming", dict(attention_levels=(2,))),
        ("maskgit", dict(attention_levels=(), middle_attention=False)),
    ],
)
def test_bfloat16_with_remat_trains_as_float32_does(tiny_config, architecture, fields):
    tiny_config.data.image_size = 16
    tiny_config.model.update(architecture=architecture, **fields)
    plain = two_steps(tiny_config.copy_and_resolve_references())
    tiny_config.model.update(remat=True, dtype="bfloat16")
    tiny_config.discriminator.dtype = tiny_config.features.dtype = "bfloat16"
    state, metrics = two_steps(tiny_config)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, plain[0])
    for leaf in jax.tree.leaves((state.params, state.ema)):
        assert leaf.dtype == jnp.float32 and np.isfinite(leaf).all()
    assert metrics.keys() == plain[1].keys()
    for name in ("train/l1", "train/perceptual", "train/prior_kl", "train/discriminator"):
        assert metrics[name] == pytest.approx(plain[1][name], rel=0.1), name
    for name in ("optim/grad_norm", "optim/discriminator_grad_norm"):
        assert metrics[name] == pytest.approx(plain[1][name], rel=0.3), name
