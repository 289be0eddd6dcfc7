"""Stage one: encoder, quantizer and decoder with Reg-VQ's three regularizations, or its rivals' terms."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import optax

from regvq_jax import losses, optim, rng
from regvq_jax.data.ranges import to_unit_range
from regvq_jax.losses import normalize
from regvq_jax.metrics import Occasional
from regvq_jax.models.discriminator import PatchDiscriminator
from regvq_jax.models.tokenizer import ImageTokenizer
from regvq_jax.settings import DataSettings, TrainSettings
from regvq_jax.state import TrainState, init_state, update_ema
from regvq_jax.trainers.adversary import judge_reconstructions
from regvq_jax.trainers.code_statistics import init_code_statistics, observe_codes, update_code_statistics
from regvq_jax.trainers.latent_terms import latent_losses
from regvq_jax.trainers.tokenizer_settings import LATENT_TERMS, LossSettings, QuantizerSettings
from regvq_jax.watch import DiscriminatorWatch, UsageWatch, usage_history

PyTree = Any


@dataclasses.dataclass(frozen=True)
class TokenizerTrainer:
    """Trains an `ImageTokenizer` against a `PatchDiscriminator`.

    Attributes:
        model, discriminator: the networks.
        features, lpips: fixed networks of the perceptual terms, images -> taps; `lpips` is None where its
            weight is 0.
        frozen: their parameters, {"features": ..., "lpips": {"features", "heads"}}.
        quantizer, loss: see the settings classes.
        optimizers: for "tokenizer" and "discriminator".
        The others: see `loop.Trainer`.
    """

    model: ImageTokenizer
    discriminator: PatchDiscriminator
    features: nn.Module
    lpips: nn.Module | None
    frozen: PyTree
    quantizer: QuantizerSettings
    loss: LossSettings
    optimizers: dict[str, optax.GradientTransformation]
    seed: int
    train: TrainSettings
    data: DataSettings
    make_batches: Callable[[], grain.MapDataset]
    num_examples: int = 0
    evaluators: tuple = ()
    name: str = "tokenizer"
    best_metric: tuple[str, str] = ("eval/reconstruction/psnr", "max")

    def init(self, key: jax.Array) -> TrainState:
        """A fresh state; pure, for `jit` and `eval_shape`."""
        images = jnp.zeros((1, self.data.image_size, self.data.image_size, 3))
        networks = {"tokenizer": self.model, "discriminator": self.discriminator}
        params = {
            name: network.init(rng.fold_in_name(key, name), images)["params"]
            for name, network in networks.items()
        }
        num_codes = self.model.quantizer.codebook_size
        positions = self.train.batch_size * (self.data.image_size // self.model.downsampling) ** 2
        statistics = init_code_statistics(self.quantizer, num_codes, positions)
        statistics["moving_logits"] = {"real": jnp.zeros(()), "fake": jnp.zeros(())}
        return init_state(params, self.optimizers, averaged=("tokenizer",), statistics=statistics)

    def init_frozen(self) -> PyTree:
        """Parameters that the step reads but never changes: those of the feature networks."""
        return self.frozen

    def train_step(
        self, state: TrainState, batch: dict[str, jax.Array], frozen: PyTree
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One update of both players.

        Args:
            state: at step n.
            batch: {"image": uint8 [B, H, W, 3]}.
            frozen: from `init_frozen`.

        Returns:
            The state at step n + 1 and float32 [] metrics; what is said of the adversary is an `Occasional`,
            present from its start on.
        """
        key = rng.step_key(self.seed, "tokenizer_step", state.step)

        def slice_gradients(images, index):
            return self._gradients(state, images, frozen, jax.random.fold_in(key, index))

        grads, (metrics, observed) = optim.accumulate(
            slice_gradients, batch["image"], self.train.accumulation_slices
        )

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

        statistics, moved_codebook = update_code_statistics(
            rng.fold_in_name(key, "restart"),
            self.quantizer,
            state.statistics,
            observed,
            state.params["tokenizer"].get("quantizer", {}).get("codebook"),
        )
        statistics["moving_logits"] = observed["moving_logits"]
        if moved_codebook is not None:
            params["tokenizer"]["quantizer"] = {"codebook": moved_codebook}

        ema = update_ema(state.ema["tokenizer"], params["tokenizer"], state.step, self.train.ema_decay)
        if moved_codebook is not None:
            # It is an average already; another one would blend restarted codes with what they were.
            ema["quantizer"] = jax.tree.map(jnp.copy, params["tokenizer"]["quantizer"])
        metrics["optim/grad_norm"] = optax.tree.norm(grads["tokenizer"])
        metrics |= optim.gradient_metrics(grads)
        if self.loss.adversarial_weight > 0:
            metrics["optim/discriminator_grad_norm"] = Occasional(
                optax.tree.norm(grads["discriminator"]), adversary_started.astype(jnp.float32)
            )
        metrics |= share_metrics(statistics["code_shares"])
        new_state = state.replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema={"tokenizer": ema},
            statistics=statistics,
        )
        return new_state, metrics

    def make_watches(self, metrics_path: Path) -> tuple[Callable[[int, dict[str, float]], None], ...]:
        """A watch on the discriminator and one on the codebook's usage."""
        # All processes must stop together, one is enough to warn.
        discriminator = DiscriminatorWatch(self.loss.discriminator_patience_steps)
        if jax.process_index() > 0:
            return (discriminator,)
        return discriminator, UsageWatch(usage_history(metrics_path))

    def _gradients(self, state, images, frozen, key):
        """(gradients by network, (metrics, observed)); one decoder backward for all terms."""
        params = state.params["tokenizer"]
        images = to_unit_range(images)
        temperature = self.quantizer.temperature_schedule()(state.step)

        def generate(params):
            variables = {"params": params}
            features = self.model.apply(variables, images, method="encode_features")
            out = self.model.apply(
                variables,
                features,
                rng.fold_in_name(key, "quantizer"),
                self.quantizer.mask_ratio,
                temperature,
                method="quantize",
            )
            decoded = self.model.apply(variables, out.quantized, method="decode_features")
            known, num_codes = LATENT_TERMS[self.quantizer.name], self.model.quantizer.codebook_size
            latent_loss, terms = latent_losses(out, self.loss, known, num_codes)
            return (decoded, latent_loss), (out, features, terms)

        def to_images(conv_out, decoded):
            variables = {"params": {**params, "conv_out": conv_out}}
            return self.model.apply(variables, decoded, method="to_images")

        (decoded, latent_loss), pull_generator, (out, features, latent_terms) = jax.vjp(
            generate, params, has_aux=True
        )
        reconstructions, pull_to_images = jax.vjp(to_images, params["conv_out"], decoded)

        image_losses = partial(self._image_losses, images, out.perturbation, frozen, key)
        image_cotangent, metrics = jax.grad(image_losses, has_aux=True)(reconstructions)
        moving_logits = state.statistics["moving_logits"]

        def play(_):
            return judge_reconstructions(
                lambda params, x: self.discriminator.apply({"params": params}, x),
                state.params["discriminator"],
                images,
                reconstructions,
                lambda cotangent: pull_to_images(cotangent)[0]["kernel"],
                pull_to_images(image_cotangent)[0]["kernel"],
                moving_logits,
                losses.linear_ramp(
                    state.step, self.loss.adversarial_start_step, self.loss.adversarial_ramp_steps
                ),
                self.loss,
            )

        def skip(_):
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(play, None))
            return *zeros[:3], moving_logits

        if self.loss.adversarial_weight > 0:
            started = state.step >= self.loss.adversarial_start_step
            adversarial_cotangent, discriminator_grads, adversary_metrics, moving_logits = jax.lax.cond(
                started, play, skip, None
            )
            image_cotangent += adversarial_cotangent
            metrics |= adversary_metrics
        else:
            discriminator_grads = jax.tree.map(jnp.zeros_like, state.params["discriminator"])

        conv_out_grads, decoded_cotangent = pull_to_images(image_cotangent)
        (grads,) = pull_generator((decoded_cotangent, jnp.ones_like(latent_loss)))
        grads = {**grads, "conv_out": jax.tree.map(jnp.add, grads["conv_out"], conv_out_grads)}

        metrics |= {f"train/{name}": value for name, value in latent_terms.items()}
        metrics["train/loss"] = metrics["train/loss"] + latent_loss
        metrics["train/resampled"] = jnp.mean(out.codes != out.best_codes)
        metrics["train/temperature"] = jnp.asarray(temperature, jnp.float32)
        observed = observe_codes(self.quantizer, out, features) | {"moving_logits": moving_logits}
        gradients = {"tokenizer": grads, "discriminator": discriminator_grads}
        return gradients, (metrics, jax.lax.stop_gradient(observed))

    def _image_losses(self, images, perturbation, frozen, key, reconstructions):
        """(weighted sum of the terms that look at the reconstruction, those with a weight by name)."""
        loss = self.loss
        names = ("l1", "l2", "perceptual", "lpips", "cl", "pcl")
        weights = {name: w for name in names if (w := getattr(loss, f"{name}_weight"))}
        terms = {"l1": losses.l1_loss(images, reconstructions)}
        if "l2" in weights:
            terms["l2"] = losses.l2_loss(images, reconstructions)
        if weights.keys() & {"perceptual", "cl", "pcl"}:
            extract = partial(self.features.apply, {"params": frozen["features"]})
            keys, queries = extract(images), extract(reconstructions)
        if "perceptual" in weights:
            terms["perceptual"] = losses.feature_distance(keys, queries)
        if "lpips" in weights:
            extract = partial(self.lpips.apply, {"params": frozen["lpips"]["features"]})
            distances = losses.lpips(extract(images), extract(reconstructions), frozen["lpips"]["heads"])
            terms["lpips"] = jnp.mean(distances)
        if weights.keys() & {"cl", "pcl"}:
            terms |= self._contrastive_terms(keys, queries, perturbation, key, weights)
        total = sum((weight * terms[name] for name, weight in weights.items()), jnp.float32(0.0))
        return total, {"train/loss": total} | {f"train/{name}": x for name, x in terms.items()}

    def _contrastive_terms(self, keys, queries, perturbation, key, weights):
        """CL and PCL over all taps; only those with a weight."""
        tau = self.loss.contrastive_temperature
        layer_weights = self.loss.contrastive_layer_weights or (1 / len(keys),) * len(keys)
        terms = {name: jnp.float32(0.0) for name in ("cl", "pcl") if name in weights}
        for tap, (key_map, query_map, layer_weight) in enumerate(
            zip(keys, queries, layer_weights, strict=True)
        ):
            place_key = jax.random.fold_in(rng.fold_in_name(key, "places"), tap)
            y, z, w = losses.sample_places(
                place_key, key_map, query_map, perturbation, self.loss.contrastive_places
            )
            y, z = normalize(y), normalize(z)
            if "cl" in terms:
                terms["cl"] += layer_weight * losses.contrastive_loss(y, z, temperature=tau)
            if "pcl" in terms:
                pcl = losses.probabilistic_contrastive_loss(y, z, w, temperature=tau)
                terms["pcl"] += layer_weight * pcl
        return terms


def share_metrics(shares: jax.Array) -> dict[str, jax.Array]:
    """How evenly codes were used lately.

    Args:
        shares: float32 [K], moving average of each code's share of the positions, up to a factor.

    Returns:
        "codebook/train_usage", the codes above a hundredth of an even share, in [0, 1], and
        "codebook/train_perplexity" in [1, K].
    """
    shares = shares / jnp.sum(shares)
    entropy = -jnp.sum(jax.scipy.special.xlogy(shares, shares))
    return {
        "codebook/train_usage": jnp.mean(shares > 0.01 / shares.size),
        "codebook/train_perplexity": jnp.exp(entropy),
    }
