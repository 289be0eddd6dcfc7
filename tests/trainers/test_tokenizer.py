"""Stage one: the step's gradients, the discriminator's start, devices, accumulation, learning, resuming."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax import loop, losses, quantize, rng, sharding
from regvq_jax.checkpoint import Checkpoints
from regvq_jax.data.ranges import to_unit_range
from regvq_jax.errors import UserError
from regvq_jax.metrics import average
from regvq_jax.models.imagenet import ImageNetFeatures
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
        history.append(average([metrics]))
    return history, jax.device_get(state)


def test_one_backward_gives_the_gradient_of_the_sum_of_all_terms(trainer, start):
    """The two pullbacks against jax.grad of the loss written out in one piece."""
    state, batch, frozen = start
    state = at_step(state, 5)
    key = jax.random.key(3)
    images = to_unit_range(jnp.asarray(batch["image"]))
    loss = trainer.loss

    def plain(params, adversarial_weight):
        features = trainer.model.apply({"params": params}, images, method="encode_features")
        quantizer = params["quantizer"]
        out = quantize.regularized(
            rng.fold_in_name(key, "quantizer"),
            quantize.distance_logits(features, quantizer["codebook"]),
            quantizer["codebook"],
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

    grads, (metrics, _) = jax.jit(trainer._gradients)(state, jnp.asarray(batch["image"]), frozen, key)
    ramp = (5 - loss.adversarial_start_step + 1) / loss.adversarial_ramp_steps
    weight = loss.adversarial_weight * ramp * metrics["train/adaptive_weight"].value
    assert weight > 0
    expected = jax.jit(jax.grad(plain))(state.params["tokenizer"], weight)
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(expected))
    for (path, want), got in zip(
        jax.tree.leaves_with_path(expected), jax.tree.leaves(grads["tokenizer"]), strict=True
    ):
        np.testing.assert_allclose(got, want, atol=1e-4 * largest, err_msg=jax.tree_util.keystr(path))


TERMS = {
    "l1": {},
    "l2": {},
    "perceptual": {},
    "lpips": {},
    "cl": {},
    "pcl": {},
    "prior_kl": {},
    "gumbel_kl": {},
    "entropy": {},
    "codebook": {"name": "nearest"},
    "commitment": {"name": "nearest"},
}


@pytest.fixture(scope="module")
def lpips():
    """The network of LPIPS and what `frozen` holds of it, with weights that know nothing."""
    network = ImageNetFeatures("alexnet")
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda x: 0.1 * random.standard_normal(x.shape).astype(np.float32), shapes)
    heads = [np.ones(width, np.float32) for width in (64, 192, 384, 256, 256)]
    return network, {"features": params, "heads": heads}


@pytest.mark.parametrize("term", TERMS)
def test_each_term_alone_has_a_metric_and_moves_what_it_should(trainer, start, lpips, term):
    """Every other weight 0: the loss is the term, and its gradient arrives where it belongs."""
    state, batch, frozen = start
    weights = {f.name: 0.0 for f in dataclasses.fields(trainer.loss) if f.name.endswith("_weight")}
    loss = dataclasses.replace(trainer.loss, **weights | {f"{term}_weight": 3.0})
    quantizer = dataclasses.replace(trainer.quantizer, **TERMS[term])
    model = trainer.model.clone(quantizer=quantizer.make_module())
    alone = dataclasses.replace(trainer, loss=loss, quantizer=quantizer, model=model, lpips=lpips[0])
    frozen = {**frozen, "lpips": lpips[1]}
    if TERMS[term]:
        state = jax.jit(alone.init)(jax.random.key(0))
    grads, (metrics, _) = jax.jit(alone._gradients)(
        state, jnp.asarray(batch["image"]), frozen, jax.random.key(1)
    )
    assert float(metrics["train/loss"]) == pytest.approx(3.0 * float(metrics[f"train/{term}"]), rel=1e-5)
    reached = {
        name
        for name in ("encoder", "quantizer", "decoder", "conv_out")
        if any(np.any(g != 0) for g in jax.tree.leaves(grads["tokenizer"][name]))
    }
    latent = {"prior_kl": {"encoder", "quantizer"}, "codebook": {"quantizer"}, "commitment": {"encoder"}}
    latent |= dict.fromkeys(("gumbel_kl", "entropy"), latent["prior_kl"])
    assert reached == latent.get(term, {"encoder", "quantizer", "decoder", "conv_out"})
    assert not any(np.any(g != 0) for g in jax.tree.leaves(grads["discriminator"]))


@pytest.mark.parametrize("adversarial_loss", ["hinge", "non_saturating"])
def test_both_players_get_the_gradients_of_their_whole_losses(trainer, start, adversarial_loss):
    """Ramp, adaptive weight, R1 and LeCam included, against jax.grad of the losses in one piece."""
    state, batch, frozen = start
    state = at_step(state, 7)
    state = state.replace(
        statistics={
            **state.statistics,
            "moving_logits": {"real": jnp.float32(0.2), "fake": jnp.float32(-0.1)},
        }
    )
    weights = {f.name: 0.0 for f in dataclasses.fields(trainer.loss) if f.name.endswith("_weight")}
    weights |= dict(l1_weight=1.0, adversarial_weight=0.7, r1_weight=2.0, lecam_weight=0.5)
    loss = dataclasses.replace(trainer.loss, adversarial_loss=adversarial_loss, **weights)
    alone = dataclasses.replace(trainer, loss=loss)
    images = to_unit_range(jnp.asarray(batch["image"]))
    key = jax.random.key(3)
    grads, (metrics, observed) = jax.jit(alone._gradients)(state, jnp.asarray(batch["image"]), frozen, key)

    def reconstruct(params):
        features = trainer.model.apply({"params": params}, images, method="encode_features")
        out = trainer.model.apply(
            {"params": params}, features, rng.fold_in_name(key, "quantizer"), 0.4, method="quantize"
        )
        return trainer.model.apply({"params": params}, out.quantized, method="decode")

    def judge(params, x):
        return trainer.discriminator.apply({"params": params}, x)

    generator_loss, discriminator_loss = losses.GAN_LOSSES[adversarial_loss]

    def generator(params, weight):
        fake = reconstruct(params)
        judged = judge(state.params["discriminator"], fake)
        return losses.l1_loss(images, fake) + weight * generator_loss(judged)

    def discriminator(params):
        real, fake = judge(params, images), judge(params, reconstruct(state.params["tokenizer"]))
        lecam = losses.lecam_penalty(real, fake, jnp.float32(0.2), jnp.float32(-0.1))
        r1 = losses.r1_penalty(lambda x: judge(params, x), images)
        return discriminator_loss(real, fake) + 0.5 * lecam + 2.0 * r1

    metrics = average([metrics])
    weight = 0.7 * metrics["train/adaptive_weight"]  # The ramp is over at step 7.
    expected = {
        "tokenizer": jax.jit(jax.grad(generator))(state.params["tokenizer"], weight),
        "discriminator": jax.jit(jax.grad(discriminator))(state.params["discriminator"]),
    }
    for network, tree in expected.items():
        largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(tree))
        assert largest > 0
        for want, got in zip(jax.tree.leaves(tree), jax.tree.leaves(grads[network]), strict=True):
            np.testing.assert_allclose(got, want, atol=2e-4 * largest, err_msg=network)
    moved = observed["moving_logits"]["real"]
    assert float(moved) == pytest.approx(0.99 * 0.2 + 0.01 * metrics["train/real_logits"], rel=1e-4)
    ratio = metrics["train/last_layer_rec_grad"] / (metrics["train/last_layer_gan_grad"] + 1e-4)
    assert metrics["train/adaptive_weight"] == pytest.approx(ratio, rel=1e-4)


def test_a_moving_codebook_follows_its_features_and_revives_dead_codes(start):
    from configs import ablation

    trainer = build.make_tokenizer_trainer(ablation.get_config("vqema,tiny"))
    state = jax.jit(trainer.init)(jax.random.key(0))
    step_fn, batch = jax.jit(trainer.train_step), dict(trainer.make_batches()[0])
    first = state.params["tokenizer"]["quantizer"]["codebook"]
    for _ in range(12):
        state, metrics = step_fn(state, batch, trainer.init_frozen())
    codebook = state.params["tokenizer"]["quantizer"]["codebook"]
    counts = state.statistics["moving_counts"]
    positions = 8 * 16 * 16
    np.testing.assert_allclose(counts.sum(), positions, rtol=0.1)
    used = np.asarray(counts) > 1.01 * 0.99**12 * positions / 32
    assert used.any() and np.all(np.any(codebook != first, -1)[used])
    np.testing.assert_array_equal(state.ema["tokenizer"]["quantizer"]["codebook"], codebook)
    assert float(metrics["train/commitment"]) > 0 and "train/codebook" not in metrics


@pytest.mark.parametrize(
    "change, message",
    [
        ({"quantizer.mask_ratio": 1.5}, "mask_ratio=1.5 .* from 0"),
        ({"quantizer.name": "nearst"}, 'Did you mean "nearest"'),
        ({"quantizer.logits": "cosine"}, 'quantizer.logits="cosine" is unknown'),
        (
            {"quantizer.depth": 2, "quantizer.logits": "projection"},
            "depth=2 needs codes in the space of the features",
        ),
        ({"quantizer.ema_decay": 0.9}, 'belong to quantizer.name="nearest"'),
        ({"quantizer.name": "nearest", "quantizer.ema_decay": 0.9}, "both move the codebook"),
        ({"quantizer.name": "nearest", "quantizer.ema_decay": 1.0}, "less than 1"),
        ({"quantizer.name": "nearest", "quantizer.ema_decay": 0.9, "quantizer.depth": 2}, "one level"),
        ({"quantizer.levels": (8, 5)}, 'belongs to quantizer.name="fsq"'),
        ({"loss.prior_kl_scope": "bach"}, 'Did you mean "batch"'),
        ({"loss.l1_weight": -1.0}, "l1_weight=-1.0 must be at least 0"),
        ({"loss.contrastive_temperature": 0.0}, "must be greater than 0"),
        ({"features.weights": "vgg.pth"}, "is of a trained network"),
        ({"quantizer.name": "lfq", "quantizer.codebook_size": 100}, "power of two"),
        ({"quantizer.name": "fsq", "quantizer.codebook_size": 100}, "quantizer.levels"),
        ({"quantizer.name": "nearest", "loss.codebook_weight": 0.0}, "untrained"),
        ({"quantizer.temperature": 0.0}, "must be greater than 0"),
        ({"loss.adversarial_loss": "wgan"}, "non_saturating"),
        ({"loss.contrastive_layer_weights": (1.0,)}, "2 taps"),
        ({"features.name": "vgg19"}, "needs config.features.weights"),
        ({"model.architecture": "unet"}, "architecture"),
        (
            {
                "quantizer.name": "nearest",
                "quantizer.ema_decay": 0.9,
                "loss.codebook_weight": 0.0,
                "train.accumulation_slices": 2,
            },
            "accumulation_slices=1",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_sentence(tiny_config, change, message):
    with tiny_config.unlocked():
        for field, value in change.items():
            group, name = field.split(".")
            tiny_config[group][name] = value
    with pytest.raises(UserError, match=message) as caught:
        build.make_tokenizer_trainer(tiny_config)
    assert "\n" not in str(caught.value)


def test_weights_without_effect_are_named(tiny_config, caplog):
    tiny_config.quantizer.name = "nearest"
    trainer = build.make_tokenizer_trainer(tiny_config)
    assert "loss.prior_kl_weight has no gradient" in caplog.text
    state, batch = jax.eval_shape(trainer.init, jax.random.key(0)), dict(trainer.make_batches()[0])
    _, metrics = jax.eval_shape(trainer.train_step, state, batch, trainer.init_frozen())
    assert "train/prior_kl" not in metrics and "train/codebook" in metrics


def test_the_temperature_falls_on_its_schedule(trainer):
    settings = dataclasses.replace(
        trainer.quantizer, temperature=0.9, final_temperature=0.1, temperature_steps=100
    )
    schedule = settings.temperature_schedule()
    values = [float(schedule(step)) for step in (0, 50, 100, 1000)]
    np.testing.assert_allclose(values, [0.9, 0.5, 0.1, 0.1], rtol=1e-5)
    assert float(trainer.quantizer.temperature_schedule()(5)) == 1.0


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
    resting = average([metrics])
    after, metrics = step_fn(at_step(state, begins), batch, frozen)
    playing = average([metrics])
    assert playing["train/discriminator"] > 0 and playing["train/adaptive_weight"] > 0
    # A 0 for what does not play yet would be a lie.
    assert playing.keys() - resting.keys() == {
        "optim/discriminator_grad_norm",
        *(f"train/{name}" for name in ("adversarial", "discriminator", "adaptive_weight")),
        *(f"train/{side}_{name}" for side in ("real", "fake") for name in ("logits", "accuracy")),
        *(f"train/last_layer_{name}_grad" for name in ("rec", "gan")),
    }
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
