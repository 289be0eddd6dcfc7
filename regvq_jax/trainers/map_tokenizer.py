"""The tokenizer of label maps: a semantic map becomes tokens, which condition a prior."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import grain
import jax
import jax.numpy as jnp
import optax

from regvq_jax import optim, rng
from regvq_jax.losses.classification import CLASSIFICATION_LOSSES, pixel_accuracy
from regvq_jax.models.tokenizer import ImageTokenizer, one_hot_maps
from regvq_jax.settings import DataSettings, TrainSettings, choose
from regvq_jax.state import TrainState, init_state, update_ema
from regvq_jax.trainers.code_statistics import (
    init_code_statistics,
    observe_codes,
    update_code_statistics,
)
from regvq_jax.trainers.latent_terms import LatentSettings, latent_losses
from regvq_jax.trainers.tokenizer import share_metrics
from regvq_jax.trainers.tokenizer_settings import LATENT_TERMS, QuantizerSettings
from regvq_jax.watch import UsageWatch, usage_history

PyTree = Any
MAP_USAGE = "map_codebook/usage"


@dataclasses.dataclass(frozen=True)
class MapLossSettings(LatentSettings):
    """The `loss` group of a label-map tokenizer: one term for the map, and those of `LatentSettings`.

    Attributes:
        name: of the map's term: "cross_entropy" over the classes of a pixel, or "bce", one yes-or-no question
            a class, which is taming-transformers'; it learns far slower where most pixels are background.
        prior_kl_weight: higher than for images, since much of a map is background, and without it most
            tokens are a few codes.
    """

    name: str = "cross_entropy"
    prior_kl_weight: float = 0.05

    group: ClassVar[str] = "map_tokenizer.loss"

    def __post_init__(self):
        super().__post_init__()
        choose(CLASSIFICATION_LOSSES, self.name, "map_tokenizer.loss.name")


@dataclasses.dataclass(frozen=True)
class MapTokenizerTrainer:
    """Trains an `ImageTokenizer` on one-hot label maps; there is no adversary.

    Attributes:
        model: the network, with a channel for each class.
        quantizer, loss: see the settings classes.
        optimizer: of the network.
        The others: see `loop.Trainer`.
    """

    model: ImageTokenizer
    quantizer: QuantizerSettings
    loss: MapLossSettings
    optimizer: optax.GradientTransformation
    seed: int
    train: TrainSettings
    data: DataSettings
    make_batches: Callable[[], grain.MapDataset]
    num_examples: int = 0
    evaluators: tuple = ()
    name: str = "map_tokenizer"
    best_metric: tuple[str, str] = ("eval/map_reconstruction/miou", "max")

    def init(self, key: jax.Array) -> TrainState:
        """A fresh state; pure, for `jit` and `eval_shape`."""
        side = self.data.image_size
        maps = one_hot_maps(self.model, jnp.zeros((1, side, side), jnp.uint8))
        params = self.model.init(rng.fold_in_name(key, "map_tokenizer"), maps)["params"]
        positions = self.train.batch_size * (side // self.model.downsampling) ** 2
        return init_state(
            {"tokenizer": params},
            {"tokenizer": self.optimizer},
            averaged=("tokenizer",),
            statistics=init_code_statistics(
                self.quantizer, self.model.quantizer.codebook_size, positions
            ),
        )

    def init_frozen(self) -> PyTree:
        """Nothing."""
        return {}

    def train_step(
        self, state: TrainState, batch: dict[str, jax.Array], frozen: PyTree
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One update.

        Args:
            state: at step n.
            batch: {"labels": uint8 [B, H, W]} in [0, C).
            frozen: not used.

        Returns:
            The state at step n + 1 and float32 [] metrics.
        """
        del frozen
        key = rng.step_key(self.seed, "map_tokenizer_step", state.step)
        params = state.params["tokenizer"]

        def slice_gradients(labels, index):
            slice_key = jax.random.fold_in(key, index)
            grads, aux = jax.grad(self._loss, has_aux=True)(params, labels, state.step, slice_key)
            return grads, aux

        grads, (metrics, observed) = optim.accumulate(
            slice_gradients, batch["labels"], self.train.accumulation_slices
        )
        updates, opt_state = self.optimizer.update(grads, state.opt_state["tokenizer"], params)
        new_params = optax.apply_updates(params, updates)
        statistics, moved_codebook = update_code_statistics(
            rng.fold_in_name(key, "restart"),
            self.quantizer,
            state.statistics,
            observed,
            params.get("quantizer", {}).get("codebook"),
        )
        if moved_codebook is not None:
            new_params = {**new_params, "quantizer": {"codebook": moved_codebook}}
        ema = update_ema(state.ema["tokenizer"], new_params, state.step, self.train.ema_decay)
        if moved_codebook is not None:
            # It is an average already; another one would blend restarted codes with what they were.
            ema = {**ema, "quantizer": {"codebook": jnp.copy(moved_codebook)}}

        metrics["optim/grad_norm"] = optax.tree.norm(grads)
        metrics |= optim.gradient_metrics({"tokenizer": grads})
        metrics |= share_metrics(statistics["code_shares"])
        new_state = state.replace(
            step=state.step + 1,
            params={"tokenizer": new_params},
            opt_state={"tokenizer": opt_state},
            ema={"tokenizer": ema},
            statistics=statistics,
        )
        return new_state, metrics

    def make_watches(self, metrics_path: Path) -> tuple[Callable[[int, Mapping[str, float]], None], ...]:
        """A watch on the codebook's usage, in the process that logs."""
        if jax.process_index() > 0:
            return ()
        return (UsageWatch(usage_history(metrics_path, MAP_USAGE), tag=MAP_USAGE),)

    def _loss(self, params, labels, step, key):
        """(loss, (metrics, observed)) of one slice of a batch."""
        variables = {"params": params}
        temperature = self.quantizer.temperature_schedule()(step)
        features = self.model.apply(
            variables, one_hot_maps(self.model, labels), method="encode_features"
        )
        out = self.model.apply(
            variables,
            features,
            rng.fold_in_name(key, "quantizer"),
            self.quantizer.mask_ratio,
            temperature,
            method="quantize",
        )
        logits = self.model.apply(variables, out.quantized, method="decode")
        map_loss = CLASSIFICATION_LOSSES[self.loss.name](logits, labels)
        latent_loss, terms = latent_losses(
            out, self.loss, LATENT_TERMS[self.quantizer.name], self.model.quantizer.codebook_size
        )
        total = map_loss + latent_loss
        metrics = {
            "train/loss": total,
            f"train/{self.loss.name}": map_loss,
            "train/accuracy": pixel_accuracy(logits, labels),
            "train/resampled": jnp.mean(out.codes != out.best_codes),
            "train/temperature": jnp.asarray(temperature, jnp.float32),
        }
        metrics |= {f"train/{name}": value for name, value in terms.items()}
        return total, (metrics, observe_codes(self.quantizer, out, features))
