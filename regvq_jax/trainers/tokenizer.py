"""Stage one: encoder, codebook and decoder with Reg-VQ's three regularizations."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import grain
import jax
import jax.numpy as jnp
import optax

from regvq_jax import losses, optim, quantize, rng
from regvq_jax.data.ranges import to_unit_range
from regvq_jax.losses import normalize
from regvq_jax.models.discriminator import PatchDiscriminator
from regvq_jax.models.features import RandomFeatures
from regvq_jax.models.tokenizer import ImageTokenizer
from regvq_jax.settings import DataSettings, TrainSettings
from regvq_jax.state import TrainState, init_state, update_ema

PyTree = Any
# The weights of the random features. They belong to the loss, not to the run: every run compares with
# the same filters, so that losses of different seeds can be compared.
FEATURE_SEED = 0


@dataclasses.dataclass(frozen=True)
class QuantizerSettings:
    """A config's `quantizer` group; see `quantize.regularized`."""

    mask_ratio: float = 0.4
    temperature: float = 1.0


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """A config's `loss` group: a weight for each term (0 leaves it out), and what shapes the terms.

    Attributes:
        l1_weight: pixels (`losses.l1_loss`).
        perceptual_weight: `losses.feature_distance`.
        prior_kl_weight, prior_kl_scope: `quantize.prior_kl`.
        cl_weight, pcl_weight: `losses.contrastive_loss`, `losses.probabilistic_contrastive_loss`.
        contrastive_temperature: tau of both.
        contrastive_places: places compared at each feature map.
        adversarial_weight: factor on the adaptive weight of the GAN loss.
        adversarial_start_step: the discriminator neither learns nor teaches before this step.
        adversarial_ramp_steps: over which its influence then rises linearly.
    """

    l1_weight: float = 1.0
    perceptual_weight: float = 1.0
    prior_kl_weight: float = 0.01
    prior_kl_scope: str = "batch"
    cl_weight: float = 0.0
    pcl_weight: float = 0.1
    contrastive_temperature: float = 0.07
    contrastive_places: int = 256
    adversarial_weight: float = 0.8
    adversarial_start_step: int = 10_000
    adversarial_ramp_steps: int = 1_000


@dataclasses.dataclass(frozen=True)
class TokenizerTrainer:
    """Trains an `ImageTokenizer` against a `PatchDiscriminator`.

    Attributes:
        model, discriminator, features: the networks; `features` is fixed.
        quantizer, loss: see the settings classes.
        optimizers: for "tokenizer" and "discriminator".
        The others: see `loop.Trainer`.
    """

    model: ImageTokenizer
    discriminator: PatchDiscriminator
    features: RandomFeatures
    quantizer: QuantizerSettings
    loss: LossSettings
    optimizers: dict[str, optax.GradientTransformation]
    seed: int
    train: TrainSettings
    data: DataSettings
    make_batches: Callable[[], grain.MapDataset]
    evaluators: tuple = ()
    name: str = "tokenizer"
    best_metric: tuple[str, str] = ("eval/reconstruction/psnr", "max")

    def init(self, key: jax.Array) -> TrainState:
        """A fresh state; pure, for `jit` and `eval_shape`."""
        images = jnp.zeros((1, self.data.image_size, self.data.image_size, 3))
        params = {
            "tokenizer": self.model.init(rng.fold_in_name(key, "tokenizer"), images)["params"],
            "discriminator": self.discriminator.init(rng.fold_in_name(key, "discriminator"), images)[
                "params"
            ],
        }
        return init_state(params, self.optimizers, averaged=("tokenizer",))

    def init_frozen(self) -> PyTree:
        """Parameters that the step reads but never changes: the feature extractor's."""
        images = jnp.zeros((1, self.data.image_size, self.data.image_size, 3))
        variables = jax.jit(self.features.init)(jax.random.key(FEATURE_SEED), images)
        return {"features": variables["params"]}

    def train_step(
        self, state: TrainState, batch: dict[str, jax.Array], frozen: PyTree
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One update of both players.

        Args:
            state: at step n.
            batch: {"image": uint8 [B, H, W, 3]}.
            frozen: from `init_frozen`.

        Returns:
            The state at step n + 1 and float32 [] metrics.
        """
        key = rng.step_key(self.seed, "tokenizer_step", state.step)

        def slice_gradients(images, index):
            return self._gradients(state, images, frozen, jax.random.fold_in(key, index))

        grads, metrics = optim.accumulate(slice_gradients, batch["image"], self.train.accumulation_slices)

        params, opt_state = {}, {}
        for name, optimizer in self.optimizers.items():
            updates, opt_state[name] = optimizer.update(
                grads[name], state.opt_state[name], state.params[name]
            )
            params[name] = optax.apply_updates(state.params[name], updates)
        # Before its start the discriminator must not move at all, its Adam moments and schedule included.
        adversary_started = state.step >= self.loss.adversarial_start_step
        for new, old in ((params, state.params), (opt_state, state.opt_state)):
            new["discriminator"] = jax.tree.map(
                partial(jnp.where, adversary_started), new["discriminator"], old["discriminator"]
            )

        ema = update_ema(state.ema["tokenizer"], params["tokenizer"], state.step, self.train.ema_decay)
        metrics["optim/grad_norm"] = optax.tree.norm(grads["tokenizer"])
        metrics["optim/discriminator_grad_norm"] = optax.tree.norm(grads["discriminator"])
        new_state = state.replace(
            step=state.step + 1, params=params, opt_state=opt_state, ema={"tokenizer": ema}
        )
        return new_state, metrics

    def _gradients(self, state, images, frozen, key):
        """(gradients by network, metrics) for uint8 images; one decoder backward for all terms."""
        params = state.params["tokenizer"]
        images = to_unit_range(images)

        def generate(params):
            logits = self.model.apply({"params": params}, images, method="encode")
            out = quantize.regularized(
                rng.fold_in_name(key, "quantizer"),
                logits,
                params["codebook"],
                mask_ratio=self.quantizer.mask_ratio,
                temperature=self.quantizer.temperature,
            )
            features = self.model.apply({"params": params}, out.quantized, method="decode_features")
            prior_kl = quantize.prior_kl(out.posterior, scope=self.loss.prior_kl_scope)
            return (features, prior_kl), out

        def to_images(conv_out, features):
            variables = {"params": {**params, "conv_out": conv_out}}
            return self.model.apply(variables, features, method="to_images")

        (features, prior_kl), pull_generator, out = jax.vjp(generate, params, has_aux=True)
        reconstructions, pull_to_images = jax.vjp(to_images, params["conv_out"], features)

        image_losses = partial(self._image_losses, images, out.perturbation, frozen, key)
        image_cotangent, metrics = jax.grad(image_losses, has_aux=True)(reconstructions)
        last_layer = pull_to_images(image_cotangent)[0]["kernel"]

        def play(_):
            return self._adversary(
                state, images, reconstructions, lambda g: pull_to_images(g)[0]["kernel"], last_layer
            )

        def skip(_):
            shapes = jax.eval_shape(play, None)
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        if self.loss.adversarial_weight > 0:
            started = state.step >= self.loss.adversarial_start_step
            adversarial_cotangent, discriminator_grads, adversary_metrics = jax.lax.cond(
                started, play, skip, None
            )
            image_cotangent += adversarial_cotangent
            metrics |= adversary_metrics
        else:
            discriminator_grads = jax.tree.map(jnp.zeros_like, state.params["discriminator"])

        conv_out_grads, features_cotangent = pull_to_images(image_cotangent)
        prior_kl_cotangent = jnp.float32(self.loss.prior_kl_weight)
        (grads,) = pull_generator((features_cotangent, prior_kl_cotangent))
        grads = {**grads, "conv_out": jax.tree.map(jnp.add, grads["conv_out"], conv_out_grads)}

        metrics["train/prior_kl"] = prior_kl
        metrics["train/loss"] = metrics["train/loss"] + self.loss.prior_kl_weight * prior_kl
        metrics["train/resampled"] = jnp.mean(out.codes != out.best_codes)
        return {"tokenizer": grads, "discriminator": discriminator_grads}, metrics

    def _image_losses(self, images, perturbation, frozen, key, reconstructions):
        """(weighted sum of the terms that look at the reconstruction, all terms by name)."""
        loss = self.loss
        terms = {"l1": losses.l1_loss(images, reconstructions)}
        weights = {"l1": loss.l1_weight, "perceptual": loss.perceptual_weight}
        weights |= {"cl": loss.cl_weight, "pcl": loss.pcl_weight}

        if weights["perceptual"] or weights["cl"] or weights["pcl"]:
            extract = partial(self.features.apply, {"params": frozen["features"]})
            keys, queries = extract(images), extract(reconstructions)
            terms["perceptual"] = losses.feature_distance(keys, queries)
        if weights["cl"] or weights["pcl"]:
            terms |= self._contrastive_terms(keys, queries, perturbation, key, weights)
        total = sum(weights[name] * value for name, value in terms.items())
        return total, {"train/loss": total} | {f"train/{name}": x for name, x in terms.items()}

    def _contrastive_terms(self, keys, queries, perturbation, key, weights):
        """CL and PCL, each the mean over taps; only those with a weight."""
        tau = self.loss.contrastive_temperature
        terms = {name: 0.0 for name in ("cl", "pcl") if weights[name]}
        for tap, (key_map, query_map) in enumerate(zip(keys, queries, strict=True)):
            place_key = jax.random.fold_in(rng.fold_in_name(key, "places"), tap)
            y, z, w = losses.sample_places(
                place_key, key_map, query_map, perturbation, self.loss.contrastive_places
            )
            y, z = normalize(y), normalize(z)
            if weights["cl"]:
                terms["cl"] += losses.contrastive_loss(y, z, temperature=tau) / len(keys)
            if weights["pcl"]:
                pcl = losses.probabilistic_contrastive_loss(y, z, w, temperature=tau)
                terms["pcl"] += pcl / len(keys)
        return terms

    def _adversary(self, state, images, reconstructions, last_layer_gradient, rec_gradient):
        """(cotangent for the reconstructions, discriminator gradients, metrics); one pass, two pullbacks."""
        params = state.params["discriminator"]

        def judge(params, x):
            return self.discriminator.apply({"params": params}, x)

        fake_logits, pull_fake = jax.vjp(judge, params, reconstructions)
        real_logits, pull_real = jax.vjp(partial(judge, x=images), params)

        generator_loss, toward_real = jax.value_and_grad(losses.hinge_generator_loss)(fake_logits)
        adversarial_cotangent = pull_fake(toward_real)[1]
        adaptive = losses.adaptive_weight(rec_gradient, last_layer_gradient(adversarial_cotangent))
        finished_steps = state.step - self.loss.adversarial_start_step
        ramp = jnp.clip((finished_steps + 1) / max(self.loss.adversarial_ramp_steps, 1), 0.0, 1.0)
        weight = self.loss.adversarial_weight * ramp * adaptive

        discriminator_loss, (to_real, to_fake) = jax.value_and_grad(
            losses.hinge_discriminator_loss, argnums=(0, 1)
        )(real_logits, fake_logits)
        grads = jax.tree.map(jnp.add, pull_real(to_real)[0], pull_fake(to_fake)[0])
        metrics = {
            "train/adversarial": generator_loss,
            "train/adaptive_weight": adaptive,
            "train/discriminator": discriminator_loss,
            "train/real_logits": jnp.mean(real_logits),
            "train/fake_logits": jnp.mean(fake_logits),
        }
        return weight * adversarial_cotangent, grads, metrics
