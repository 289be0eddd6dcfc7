"""From the features of two sets of images to the figures that papers report."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from regvq_jax.errors import UserError
from regvq_jax.evaluate.features import Collector, Features, ImageSet, features_of
from regvq_jax.evaluate.frechet import frechet_distance
from regvq_jax.evaluate.inception_score import inception_score
from regvq_jax.evaluate.kernel_distance import cmmd, kernel_distance
from regvq_jax.evaluate.manifold import manifold_scores
from regvq_jax.evaluate.protocols import Extractor, make_extractor

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
            f"{what}: {count} image(s) are too few to compare; each side needs at least {MIN_IMAGES}, and "
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
    fewest = min([count for count in counts.values() if count], default=0)
    warnings = []
    frechet = f"{'fid' if extractor.is_inception else 'fd'}_{tag}"
    metrics = {frechet: frechet_distance(real.statistics, fake.statistics)}
    has_features = len(real.kept) > 0 and len(fake.kept) > 0
    if 0 < fewest < UNBIASED_FROM:
        advice = f", and look at kid_{tag}, which is not biased" if has_features else ""
        warnings.append(
            f"{frechet} of {fewest:,} images is biased upwards, as it is below {UNBIASED_FROM:,}: compare it "
            f"with figures of the same counts only{advice}."
        )
    about = dict(counts)
    if has_features:
        size = min(len(real.kept), len(fake.kept))
        subset = KID_SUBSET_SIZE if size >= KID_SUBSET_SIZE else size // 2
        mean, deviation = kernel_distance(real.kept, fake.kept, subsets=KID_SUBSETS, subset_size=subset)
        metrics |= {f"kid_{tag}": mean, f"kid_{tag}_std": deviation}
        scores = manifold_scores(real.kept, fake.kept, k=MANIFOLD_K, k_density=DENSITY_K)
        metrics |= {f"{name}_{tag}": value for name, value in scores.items()}
        about |= {
            "kid_subsets": KID_SUBSETS, "kid_subset_size": subset, "manifold_k": MANIFOLD_K,
            "density_k": DENSITY_K, "real_features": len(real.kept), "fake_features": len(fake.kept),
        }  # fmt: skip
        if extractor.protocol.network.startswith("clip"):
            metrics[f"cmmd_{tag}"] = cmmd(real.kept, fake.kept)
    if extractor.is_inception and fake.class_sums is not None:
        mean, deviation = inception_score(fake.class_sums)
        metrics |= {f"inception_score_{tag}": mean, f"inception_score_{tag}_std": deviation}
    bad = [name for name, value in metrics.items() if not np.isfinite(value)]
    if bad:
        raise UserError(f"{', '.join(bad)} is not finite: look at the images of both sides.")
    return Comparison(metrics, about, tuple(warnings))


class Verdict:
    """Figures of one set of images under several protocols.

    Attributes:
        metrics: of all protocols.
        features: of the judged images, by protocol.
    """

    def __init__(self, extractors: tuple[Extractor, ...], comparisons: list[Comparison], features):
        """Joins comparisons, one for each extractor."""
        self._extractors, self._comparisons = extractors, comparisons
        self.features: dict[str, Features] = features
        self.metrics = {name: x for part in comparisons for name, x in part.metrics.items()}

    def about(self, settings: dict[str, Any], warnings: tuple[str, ...] = ()) -> dict[str, Any]:
        """`Evaluation.about` of these figures; {} without protocols."""
        if not self._extractors:
            return {}
        pairs = zip(self._extractors, self._comparisons, strict=True)
        protocols = {extractor.name: extractor.describe() | part.about for extractor, part in pairs}
        warnings = [*warnings, *(x for part in self._comparisons for x in part.warnings)]
        return {"protocols": protocols, "settings": settings, "warnings": warnings}


class Judge:
    """Compares sets of images with a reference under some protocols; loaded and compiled once."""

    def __init__(self, protocols: tuple[str, ...], reference: ImageSet | None):
        """Loads the weights.

        Args:
            protocols: see `make_extractor`; () judges nothing.
            reference: the real images; may be None where nothing is judged.

        Raises:
            UserError: an unknown protocol, weights that cannot be had, or too few images.
        """
        self.extractors = tuple(make_extractor(spec) for spec in protocols)
        names = [extractor.name for extractor in self.extractors]
        if len(set(names)) < len(names):
            raise UserError(f"The protocols {', '.join(protocols)} name one twice: each has one figure.")
        if self.extractors:
            check_count(reference.count, reference.name)
        self.reference = reference
        self._features: dict[tuple[str, str, str], Features] = {}

    def features(self, images: ImageSet, extractor: Extractor, mesh: jax.sharding.Mesh) -> Features:
        """Those of true images, computed at the first call."""
        key = (images.name, extractor.name, extractor.digest)
        if key not in self._features:
            self._features[key] = features_of(images, extractor, mesh)
        return self._features[key]

    def start(self, mesh: jax.sharding.Mesh, count: int, name_fn: Callable[[int], str] = str) -> "Judging":
        """Begins with a set of `count` images, called as `name_fn` says."""
        if self.extractors:
            check_count(count, "the images to judge")
        collectors = [Collector(x, mesh, count, name_fn=name_fn) for x in self.extractors]
        return Judging(self, mesh, collectors)


class Judging:
    """One set of images that is being judged."""

    def __init__(self, judge: Judge, mesh: jax.sharding.Mesh, collectors: list[Collector]):
        """See `Judge.start`."""
        self._judge, self._mesh, self._collectors = judge, mesh, collectors

    def add(self, images: jax.Array, valid: np.ndarray, index: np.ndarray) -> None:
        """One batch; Args as of `Collector.add`."""
        for collector in self._collectors:
            collector.add(images, valid, index)

    def finish(self) -> Verdict:
        """The figures of all that was added."""
        extractors, comparisons, features = self._judge.extractors, [], {}
        for extractor, collector in zip(extractors, self._collectors, strict=True):
            fake = collector.finish()
            real = self._judge.features(self._judge.reference, extractor, self._mesh)
            comparisons.append(compare(real, fake, extractor))
            features[extractor.name] = fake
        return Verdict(extractors, comparisons, features)
