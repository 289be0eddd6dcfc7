"""From the features of two sets of images to the figures that papers report."""

import dataclasses

import numpy as np

from regvq_jax.errors import UserError
from regvq_jax.evaluate.features import Features
from regvq_jax.evaluate.frechet import frechet_distance
from regvq_jax.evaluate.inception_score import inception_score
from regvq_jax.evaluate.kernel_distance import cmmd, kernel_distance
from regvq_jax.evaluate.manifold import manifold_scores
from regvq_jax.evaluate.protocols import Extractor

# With fewer, neighbours and subsets mean nothing.
MIN_IMAGES = 10
UNBIASED_FROM = 10_000
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
MANIFOLD_K, DENSITY_K = 3, 5


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Figures, and what a reader has to know of them.

    Attributes:
        metrics: by name with the protocol in it, such as "fid_torch_fidelity", "kid_efficientnet_lite0".
        about: counts and settings that are not the protocol's.
        warnings: sentences.
    """

    metrics: dict[str, float]
    about: dict[str, float]
    warnings: tuple[str, ...] = ()


def check_count(count: int, what: str) -> None:
    """Raises UserError where there are too few images for any figure."""
    if count < MIN_IMAGES:
        raise UserError(
            f"{what}: {count} image(s) are too few to compare, at least {MIN_IMAGES} of each side are needed; "
            f"FID is biased below {UNBIASED_FROM:,}."
        )


def compare(real: Features, fake: Features, extractor: Extractor) -> Comparison:
    """All figures that the features of both sides allow.

    The Frechet distance is called FID where the network is FID's own, and `fd` elsewhere. KID, precision,
    recall, density and coverage take the kept features; Inception Score is that of `fake`.

    Raises:
        UserError: fewer than `MIN_IMAGES` on one side.
    """
    tag = extractor.tag
    for side, features in (("the real side", real), ("the other side", fake)):
        if features.statistics.count:  # 0: statistics of elsewhere do not say.
            check_count(int(features.statistics.count), side)
    counts = {"real_images": int(real.statistics.count), "fake_images": int(fake.statistics.count)}
    known = [count for count in counts.values() if count]
    warnings = []
    frechet = f"{'fid' if extractor.is_inception else 'fd'}_{tag}"
    metrics = {frechet: frechet_distance(real.statistics, fake.statistics)}
    if min(known) < UNBIASED_FROM:
        warnings.append(
            f"{frechet} of {min(known):,} images is biased upwards (below {UNBIASED_FROM:,}): compare it with "
            f"figures of the same counts only, and look at kid_{tag}, which is not."
        )
    about = dict(counts)
    if len(real.kept):
        size = min(len(real.kept), len(fake.kept))
        subset = KID_SUBSET_SIZE if size >= KID_SUBSET_SIZE else size // 2
        mean, deviation = kernel_distance(
            real.kept, fake.kept, subsets=KID_SUBSETS, subset_size=subset
        )
        metrics |= {f"kid_{tag}": mean, f"kid_{tag}_std": deviation}
        scores = manifold_scores(real.kept, fake.kept, k=MANIFOLD_K, k_density=DENSITY_K)
        metrics |= {f"{name}_{tag}": value for name, value in scores.items()}
        about |= {
            "kid_subsets": KID_SUBSETS, "kid_subset_size": subset, "manifold_k": MANIFOLD_K,
            "density_k": DENSITY_K, "real_features": len(real.kept), "fake_features": len(fake.kept),
        }  # fmt: skip
        if extractor.protocol.network.startswith("clip"):
            metrics["cmmd"] = cmmd(real.kept, fake.kept)
    if extractor.is_inception and fake.class_sums is not None:
        mean, deviation = inception_score(fake.class_sums)
        metrics |= {f"inception_score_{tag}": mean, f"inception_score_{tag}_std": deviation}
    bad = [name for name, value in metrics.items() if not np.isfinite(value)]
    if bad:
        raise UserError(f"{', '.join(bad)} is not finite: look at the images of both sides.")
    return Comparison(metrics, about, tuple(warnings))
