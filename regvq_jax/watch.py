"""What warns of a training that goes wrong although every number is finite."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from regvq_jax.errors import UserError
from regvq_jax.metric_writers import read_jsonl

USAGE = "codebook/usage"
log = logging.getLogger("regvq_jax")


@dataclasses.dataclass
class DiscriminatorWatch:
    """Ends a training whose discriminator has won for long: it then teaches the generator no more.

    It has won where it tells nearly all patches right, of originals and of reconstructions. The watch
    warns at half of its patience. It counts anew after a restart: a run that is lost wins again soon.

    Attributes:
        patience_steps: consecutive steps it may win, measured between the ends of logging windows; 0
            turns the watch off.
        threshold: share of patches on either side from which on it wins.
    """

    patience_steps: int
    threshold: float = 0.98
    _won_since: int | None = dataclasses.field(default=None, init=False)
    _warned: bool = dataclasses.field(default=False, init=False)

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Judges one logging window.

        Args:
            step: finished steps.
            metrics: means over the window; without "train/real_accuracy" and "train/fake_accuracy" (no
                adversary) nothing happens. All processes must pass the same, since all must stop.

        Raises:
            UserError: the discriminator has won for `patience_steps`.
        """
        if self.patience_steps == 0 or "train/real_accuracy" not in metrics:
            return
        real, fake = metrics["train/real_accuracy"], metrics["train/fake_accuracy"]
        if min(real, fake) < self.threshold:
            self._won_since, self._warned = None, False
            return
        if self._won_since is None:
            self._won_since = step
        won_steps = step - self._won_since
        finding = (
            f"the discriminator has won for {won_steps} steps, up to step {step}: it tells {real:.1%} of the "
            f"original and {fake:.1%} of the reconstructed patches right, so the reconstructions learn "
            "nothing more from it; lower loss.adversarial_weight, raise loss.adversarial_start_step, or set "
            "loss.r1_weight or loss.lecam_weight"
        )
        if won_steps >= self.patience_steps:
            raise UserError(
                f"Stopped because {finding}; loss.discriminator_patience_steps=0 would let it go on."
            )
        if 2 * won_steps >= self.patience_steps and not self._warned:
            log.warning(f"{finding}; the training stops at {self.patience_steps} such steps.")
            self._warned = True


@dataclasses.dataclass
class UsageWatch:
    """Warns when a codebook falls out of use, once for each fall below its best usage.

    Attributes:
        history: (step, usage in [0, 1]) of the evaluations before a restart, from `usage_history`.
        tolerance: share of the best usage that may be lost without a warning.
        tag: of the usage among an evaluation's numbers.
    """

    history: dataclasses.InitVar[Sequence[tuple[int, float]]] = ()
    tolerance: float = 0.1
    tag: str = USAGE
    _best: tuple[int, float] = dataclasses.field(default=(0, 0.0), init=False)
    _fallen: bool = dataclasses.field(default=False, init=False)

    def __post_init__(self, history):
        for step, usage in history:
            self._update(step, usage)

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Judges one evaluation.

        Args:
            step: finished steps.
            metrics: the evaluation's numbers; without `tag` nothing happens.
        """
        if self.tag not in metrics:
            return
        had_fallen, usage = self._fallen, metrics[self.tag]
        self._update(step, usage)
        if self._fallen and not had_fallen:
            best_step, best = self._best
            log.warning(
                f"the usage of the codebook has fallen from {best:.1%} at step {best_step} to "
                f"{usage:.1%} at step {step}; raise loss.prior_kl_weight, lower optim.lr, or take "
                "the best checkpoint."
            )

    def _update(self, step: int, usage: float) -> None:
        if usage >= self._best[1]:
            self._best = (step, usage)
        self._fallen = usage < (1.0 - self.tolerance) * self._best[1]


def usage_history(path: Path, tag: str = USAGE) -> list[tuple[int, float]]:
    """The codebook's usage at every evaluation that a stage's metrics.jsonl holds.

    Args:
        path: of the metrics.jsonl; none is there before the first run.
        tag: of the usage.

    Returns:
        (step, usage in [0, 1]), in the order of the lines.
    """
    lines = read_jsonl(path) if path.exists() else []
    return [(line["step"], line[tag]) for line in lines if tag in line]
