"""The discrete-diffusion prior: its loss, likelihood bound and samplers around a timed `PriorNet`."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from regvq_jax import rng
from regvq_jax.errors import UserError
from regvq_jax.evaluate.samples import SampleSettings, guided_network
from regvq_jax.models.conditioners import Encoded
from regvq_jax.models.prior import PriorNet
from regvq_jax.priors import absorbing, diffusion, diffusion_sampling, timesteps
from regvq_jax.priors.diffusion_schedules import SCHEDULES as REPLACE_SCHEDULES
from regvq_jax.priors.diffusion_schedules import make_schedule
from regvq_jax.settings import choose

PyTree = Any
SCHEDULES = {"mask_replace": REPLACE_SCHEDULES, "absorbing": absorbing.SCHEDULES}


@dataclasses.dataclass(frozen=True)
class DiffusionSampling(SampleSettings):
    """How to draw from a diffusion prior. See `priors.diffusion_sampling.sample`, `priors.absorbing.sample`.

    Attributes:
        steps: calls of the network; of "mask_replace" at most its `num_steps`, fewer skip times.
        truncation: codes are drawn of the likeliest that together hold this share; 1 = of all. Of
            "mask_replace".
        purity: strength with which sure places open first; 0 = off. Of "mask_replace".
        remask: "none" (ancestral), or "cap", "rescale" or "conf": ReMDM's ways to draw again what is
            there. Of "absorbing".
        eta: how much is drawn again.
        The others: see `SampleSettings`.
    """

    steps: int = 50
    truncation: float = 1.0
    purity: float = 0.0
    remask: str = "none"
    eta: float = 0.02

    def __post_init__(self):
        super().__post_init__()
        choose(dict.fromkeys(absorbing.REMASKS), self.remask, "sample.remask")
        if self.steps < 1:
            raise UserError(f"config.sample.steps={self.steps} must be at least 1.")
        if not 0 < self.truncation <= 1:
            raise UserError(
                f"config.sample.truncation={self.truncation} must be above 0 and at most 1; 1 draws of all "
                "codes."
            )
        if self.purity < 0 or not 0 <= self.eta <= 1:
            raise UserError(
                f"config.sample.purity={self.purity} must be at least 0 and eta={self.eta} from 0 to 1."
            )


@dataclasses.dataclass(frozen=True)
class DiffusionPrior:
    """A `TokenPrior`.

    Attributes:
        process: "mask_replace" (VQ-Diffusion: tokens are masked or replaced) or "absorbing" (MD4, MDLM:
            tokens are masked, in continuous time).
        schedule: "paper" or "released" of "mask_replace", "linear" or "cosine" of "absorbing".
        num_steps: T, of "mask_replace".
        auxiliary_weight: of the auxiliary x_0 loss of "mask_replace".
        importance: draw times in proportion to the size of their loss, of "mask_replace".
    """

    process: str = "mask_replace"
    schedule: str = "released"
    num_steps: int = 100
    auxiliary_weight: float = 5e-4
    importance: bool = True

    causal: ClassVar[bool] = False
    timed: ClassVar[bool] = True
    exact: ClassVar[bool] = False
    sampling: ClassVar[type] = DiffusionSampling

    def __post_init__(self):
        schedules = choose(SCHEDULES, self.process, "prior.diffusion.process")
        choose(schedules, self.schedule, "prior.diffusion.schedule")
        if self.num_steps < 1:
            raise UserError(f"config.prior.diffusion.num_steps={self.num_steps} must be at least 1.")

    @property
    def _replaces(self) -> bool:
        return self.process == "mask_replace"

    def check_sampling(self, settings: DiffusionSampling) -> None:
        """Raises UserError where the settings are of the other process."""
        idle = {"truncation": 1.0, "purity": 0.0} if not self._replaces else {"remask": "none"}
        for name, off in idle.items():
            if getattr(settings, name) != off:
                raise UserError(
                    f"config.sample.{name}={getattr(settings, name)} does nothing with "
                    f'prior.diffusion.process="{self.process}": set it to {off!r}.'
                )
        if self._replaces and settings.steps > self.num_steps:
            raise UserError(
                f"config.sample.steps={settings.steps} is more than prior.diffusion.num_steps="
                f"{self.num_steps}, the times there are: choose at most as many."
            )

    def init_statistics(self) -> PyTree:
        """The history of the loss by time, which decides how times are drawn."""
        return {"history": timesteps.init_history(self.num_steps)} if self._replaces else {}

    def loss(self, network_fn, tokens, key, statistics, special_id):
        """The term of the bound at each row's time, per token; see `TokenPrior`."""
        rows, num_tokens = tokens.shape
        time_key, noise_key = rng.fold_in_name(key, "time"), rng.fold_in_name(key, "noise")
        if not self._replaces:
            time = absorbing.draw_times(time_key, rows)
            corrupted, is_masked = absorbing.corrupt(
                noise_key, tokens, time, mask_id=special_id, schedule=self.schedule
            )
            logits = network_fn(corrupted, time)
            losses = absorbing.loss(logits, tokens, is_masked, time, schedule=self.schedule)
            return losses.mean() / num_tokens, {}, {}
        schedule = make_schedule(self.schedule, special_id, self.num_steps)
        history = statistics["history"] if self.importance else timesteps.init_history(self.num_steps)
        t, probability = timesteps.draw_times(time_key, history, rows)
        noisy = diffusion.corrupt(noise_key, tokens, t, schedule)
        logits = network_fn(noisy, t / self.num_steps)
        losses = diffusion.loss(
            logits,
            tokens,
            noisy,
            t,
            schedule,
            probability=probability,
            auxiliary_weight=self.auxiliary_weight,
        )
        metrics = {
            "bound": jnp.mean(losses.variational / probability) / num_tokens,
            "auxiliary": jnp.mean(losses.auxiliary) / num_tokens,
        }
        observed = timesteps.observe(t, losses.variational, self.num_steps)
        return losses.loss.mean() / num_tokens, metrics, observed

    def update_statistics(self, statistics, observed):
        """Takes the step's losses into the history."""
        if not self._replaces:
            return statistics
        return {"history": timesteps.update_history(statistics["history"], observed)}

    def bound(self, network_fn, tokens, key, special_id, draws):
        """An estimate of the variational bound on -log p(tokens), float32 [B] in nats."""
        if self._replaces:
            schedule = make_schedule(self.schedule, special_id, self.num_steps)
            return diffusion.bound(key, network_fn, tokens, schedule, draws=draws)
        return absorbing.bound(
            key, network_fn, tokens, mask_id=special_id, schedule=self.schedule, draws=draws
        )

    def sample(
        self,
        model: PriorNet,
        params: PyTree,
        keys: jax.Array,
        tokens: jax.Array,
        encoded: Encoded,
        null: Encoded,
        settings: DiffusionSampling,
    ) -> jax.Array:
        """Goes back from noise; see `TokenPrior`."""
        logits_fn = guided_network(model, params, encoded, null, settings)
        shared = {"steps": settings.steps, "temperature": settings.temperature}
        if self._replaces:
            schedule = make_schedule(self.schedule, model.codebook_size, self.num_steps)
            return diffusion_sampling.sample(
                keys,
                logits_fn,
                tokens,
                schedule,
                truncation=settings.truncation,
                purity=settings.purity,
                **shared,
            )
        return absorbing.sample(
            keys,
            logits_fn,
            tokens,
            mask_id=model.special_id,
            schedule=self.schedule,
            remask=settings.remask,
            eta=settings.eta,
            **shared,
        )
