"""Stage one: the step's gradients, the discriminator's start, devices, accumulation, learning, resuming."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax import loop, losses, quantize, rng, sharding
from regvq_jax.checkpoint import Checkpoints
from regvq_jax.data.ranges import to_unit_range
from regvq_jax.trainers import build


@pytest.fixture(scope="module")
def trainer():
    from configs import quickstart

    return build.make_tokenizer_trainer(quickstart.get_config("tiny"))


@pytest.fixture(scope="module")
def start(trainer):
    """(state at step 0, batch, frozen) on the host."""
    state = jax.jit(trainer.init)(jax.random.key(0))
    return jax.device_get((state, dict(trainer.make_batches()[0]), trainer.init_frozen()))


@pytest.fixture(scope="module")
def step_fn(trainer):
    return jax.jit(trainer.train_step)


def at_step(state, step):
    return state.replace(step=np.int32(step))


def run(trainer, start, mesh, steps):
    """Losses of `steps` steps on a mesh, and the last state."""
    state, batch, frozen = start
    shardings = sharding.param_shardings(state, mesh)
    state = jax.device_put(state, shardings)
    batch = sharding.put_batch(batch, mesh)
    step_fn = loop.compile_step(trainer, state, frozen, jax.device_get(batch), mesh)
    history = []
    for _ in range(steps):
        state, metrics = step_fn(state, batch, jax.device_put(frozen, sharding.replicated(mesh)))
        history.append({name: float(value) for name, value in metrics.items()})
    return history, jax.device_get(state)


def test_one_backward_gives_the_gradient_of_the_sum_of_all_terms(trainer, start):
    """The two pullbacks against jax.grad of the loss written out in one piece."""
    state, batch, frozen = start
    state = at_step(state, 5)
    key = jax.random.key(3)
    images = to_unit_range(jnp.asarray(batch["image"]))
    loss = trainer.loss

    def plain(params, adversarial_weight):
        logits = trainer.model.apply({"params": params}, images, method="encode")
        out = quantize.regularized(
            rng.fold_in_name(key, "quantizer"),
            logits,
            params["codebook"],
            mask_ratio=trainer.quantizer.mask_ratio,
        )
        fake = trainer.model.apply({"params": params}, out.quantized, method="decode")
        total = loss.l1_weight * losses.l1_loss(images, fake)
        taps = [trainer.features.apply({"params": frozen["features"]}, x) for x in (images, fake)]
        total += loss.perceptual_weight * losses.feature_distance(*taps)
        for tap, (y, z) in enumerate(zip(*taps, strict=True)):
            place_key = jax.random.fold_in(rng.fold_in_name(key, "places"), tap)
            y, z, w = losses.sample_places(place_key, y, z, out.perturbation, loss.contrastive_places)
            pcl = losses.probabilistic_contrastive_loss(
                losses.normalize(y),
                losses.normalize(z),
                w,
                temperature=loss.contrastive_temperature,
            )
            total += loss.pcl_weight * pcl / len(taps[0])
        total += loss.prior_kl_weight * quantize.prior_kl(out.posterior)
        judged = trainer.discriminator.apply({"params": state.params["discriminator"]}, fake)
        return total + adversarial_weight * losses.hinge_generator_loss(judged)

    grads, metrics = jax.jit(trainer._gradients)(state, jnp.asarray(batch["image"]), frozen, key)
    ramp = (5 - loss.adversarial_start_step + 1) / loss.adversarial_ramp_steps
    weight = loss.adversarial_weight * ramp * metrics["train/adaptive_weight"]
    assert weight > 0
    expected = jax.jit(jax.grad(plain))(state.params["tokenizer"], weight)
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(expected))
    for (path, want), got in zip(
        jax.tree.leaves_with_path(expected), jax.tree.leaves(grads["tokenizer"]), strict=True
    ):
        np.testing.assert_allclose(got, want, atol=1e-4 * largest, err_msg=jax.tree_util.keystr(path))


def test_every_part_of_the_tokenizer_learns(trainer, start, step_fn):
    state, batch, frozen = start
    after, _ = step_fn(state, batch, frozen)
    # The warm-up's first learning rate is 0: the second step is the first that moves anything.
    after, _ = step_fn(after, batch, frozen)
    # A bias just before a GroupNorm may stand still; kernels and the codebook may not.
    moved = jax.tree.map(
        lambda a, b: bool(np.any(a != b)), state.params["tokenizer"], after.params["tokenizer"]
    )
    still = [
        jax.tree_util.keystr(path)
        for path, has_moved in jax.tree.leaves_with_path(moved)
        if not has_moved and "bias" not in jax.tree_util.keystr(path)
    ]
    assert not still


def test_the_discriminator_rests_until_its_start(trainer, start, step_fn):
    state, batch, frozen = start
    begins = trainer.loss.adversarial_start_step
    before, metrics = step_fn(at_step(state, begins - 1), batch, frozen)
    for tree in ("params", "opt_state"):
        jax.tree.map(
            np.testing.assert_array_equal,
            getattr(before, tree)["discriminator"],
            getattr(state, tree)["discriminator"],
        )
    assert metrics["train/adversarial"] == 0 and metrics["train/discriminator"] == 0
    after, metrics = step_fn(at_step(state, begins), batch, frozen)
    assert metrics["train/discriminator"] > 0 and metrics["train/adaptive_weight"] > 0
    kernels = [s.opt_state["discriminator"] for s in (after, state)]
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, kernels), strict=True))


def test_same_losses_and_state_on_one_and_on_eight_devices(trainer, start, one_device_mesh):
    one, state_one = run(trainer, start, one_device_mesh, 5)
    eight, state_eight = run(trainer, start, sharding.make_mesh(4, 2), 5)
    for step, (a, b) in enumerate(zip(one, eight, strict=True)):
        for name in ("train/loss", "train/l1", "train/prior_kl", "train/pcl"):
            assert a[name] == pytest.approx(b[name], rel=2e-3 if step else 1e-5, abs=1e-5), (
                step,
                name,
            )
    assert state_one.step == state_eight.step == 5


def test_accumulation_sees_the_whole_batch(trainer, start):
    state, batch, frozen = start
    sliced = dataclasses.replace(trainer, train=dataclasses.replace(trainer.train, accumulation_slices=2))
    new_state, metrics = jax.jit(sliced.train_step)(state, batch, frozen)
    assert int(new_state.step) == 1 and np.isfinite(float(metrics["train/loss"]))
    # Terms that are means over images are the same up to the random draws of each slice.
    _, whole = jax.jit(trainer.train_step)(state, batch, frozen)
    assert float(metrics["train/l1"]) == pytest.approx(float(whole["train/l1"]), rel=0.1)


def test_it_learns_one_batch(trainer, start, step_fn):
    state, batch, frozen = start
    first = None
    for _ in range(30):
        state, metrics = step_fn(state, batch, frozen)
        first = first or float(metrics["train/l1"])
    assert float(metrics["train/l1"]) < 0.8 * first


def test_n_plus_n_steps_equal_2n_to_the_bit(trainer, tmp_path, one_device_mesh):
    """Discriminator, both optimisers, EMA, random draws and data position included."""

    class Stop(Exception):
        pass

    class Stopping:
        name, every_steps = "stop", 4

        def __call__(self, ema, frozen, mesh):
            raise Stop

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    plain = dataclasses.replace(trainer, evaluators=())
    short = dataclasses.replace(trainer.train, checkpoint_every_steps=2)
    with pytest.raises(Stop):  # At step 4, after the checkpoint of step 2.
        loop.train(
            dataclasses.replace(plain, train=short, evaluators=(Stopping(),)),
            broken,
            one_device_mesh,
        )
    for directory in (whole, broken):
        loop.train(plain, directory, one_device_mesh)
    states = []
    for directory in (whole, broken):
        with Checkpoints(directory / "checkpoints", read_only=True) as checkpoints:
            states.append(checkpoints.restore(jax.eval_shape(trainer.init, jax.random.key(0)))[0])
    assert states[0].step == 8
    jax.tree.map(np.testing.assert_array_equal, *states)
