"""Compares two sets of images, whoever made them; no config and no checkpoint is needed.

    python -m regvq_jax.evaluate --real=DIR --fake=DIR --protocol=torch-fidelity --weights=FILE
    python -m regvq_jax.evaluate --real=DIR --fake=DIR --protocol=efficientnet_lite0
    python -m regvq_jax.evaluate --real=DIR --save_statistics=reference.npz

DIR is searched recursively; it may be a .zip or .tar, or a URL, or an .npz of images (ADM's). --real may
also be an .npz of statistics: of --save_statistics, of pytorch-fid or of ADM's evaluator; then there are
only figures that need no more. For trained runs see `python -m regvq_jax.evaluate generation --help`.
"""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from regvq_jax import sharding
from regvq_jax.command_line import Parser, positive
from regvq_jax.errors import UserError
from regvq_jax.evaluate.distances import Verdict, check_count, compare
from regvq_jax.evaluate.feature_statistics import load_statistics, save_statistics
from regvq_jax.evaluate.features import Features, ImageSet, features_of
from regvq_jax.evaluate.image_files import has_images, open_images
from regvq_jax.evaluate.protocols import PROTOCOLS, Extractor, make_extractor
from regvq_jax.evaluate.result import Evaluation, write_result

log = logging.getLogger("regvq_jax")


def main(argv: Sequence[str]) -> None:
    """Reads the arguments, compares, prints a table and writes a JSON file."""
    parser = Parser("regvq_jax.evaluate", __doc__)
    parser.add_argument("--real", required=True, help="true images, or statistics of them (.npz)")
    parser.add_argument("--fake", help="images to judge")
    add_protocol_arguments(parser)
    parser.add_argument("--size", type=int, default=0, help="cut all images to squares of this side first")
    parser.add_argument("--num_images", type=int, default=0, help="the first so many of each side; 0 = all")
    parser.add_argument("--output", type=Path, help="JSON file; results/NAME_OF_FAKE.json by default")
    parser.add_argument("--save_statistics", type=Path, help="also write those of --real, for later (.npz)")
    args = parser.parse_args(argv)
    if not args.fake and not args.save_statistics:
        parser.error("--fake is missing: name the images to judge, or --save_statistics=FILE.npz")
    if args.save_statistics and args.save_statistics.suffix != ".npz":
        parser.error(f"--save_statistics={args.save_statistics} must end in .npz")

    began = time.perf_counter()
    mesh = sharding.make_mesh()
    batch_size = fit_batch(args.batch_size, mesh)
    extractor = make_extractor(protocol_spec(args))
    reading = dict(batch_size=batch_size, size=args.size, limit=args.num_images)
    real, about_real = _real_features(args.real, extractor, mesh, reading)
    if args.save_statistics:
        save_statistics(args.save_statistics, real.statistics, _identity(extractor))
        print(f"{args.save_statistics}  (statistics of {args.real})")
    if not args.fake:
        return
    fake_images = open_images(args.fake, **reading)
    check_count(fake_images.count, args.fake)
    if (shape := about_real.get("shape")) not in (None, fake_images.shape):
        log.warning(
            "%s has images of %s pixels and %s of %s: what resizing does to them becomes part of the figure; "
            "--size=N cuts both alike.", args.real, shape, args.fake, fake_images.shape,
        )  # fmt: skip
    # Not kept: what is judged changes from day to day.
    fake = features_of(fake_images, extractor, mesh, keep=False)
    comparison = compare(real, fake, extractor)
    settings = {"real": about_real, "fake": _about(fake_images)}
    about = Verdict((extractor,), [comparison], {}).about(settings)
    output = args.output or Path("results") / f"{Path(args.fake.rstrip('/')).stem}.json"
    finish(Evaluation(comparison.metrics, {}, about=about), output, time.perf_counter() - began)


def add_protocol_arguments(parser: Parser) -> None:
    """--protocol, --weights and --batch_size."""
    parser.add_argument(
        "--protocol",
        default="torch-fidelity",
        help=f"network, resizing and scaling: {', '.join(PROTOCOLS)}; FID by torch-fidelity by default",
    )
    parser.add_argument("--weights", default="", help="file or URL of the network's weights")
    parser.add_argument("--batch_size", type=positive, default=64, help="images at a time")


def protocol_spec(args) -> str:
    """--protocol and --weights as `make_extractor` reads them."""
    return f"{args.protocol}@{args.weights}" if args.weights else args.protocol


def fit_batch(batch_size: int, mesh: jax.sharding.Mesh) -> int:
    """The next batch size that divides over all devices."""
    return -(-batch_size // mesh.size) * mesh.size


def _about(images: ImageSet) -> dict[str, str | int]:
    return {"images": images.name, "shape": images.shape, **images.identity}


def _identity(extractor: Extractor) -> dict[str, str]:
    return {name: str(value) for name, value in extractor.describe().items()}


def _real_features(path: str, extractor: Extractor, mesh, reading: dict) -> tuple[Features, dict]:
    if not path.endswith(".npz") or has_images(path):
        images = open_images(path, **reading)
        check_count(images.count, path)
        return features_of(images, extractor, mesh), _about(images)
    statistics, about = load_statistics(path)
    if len(statistics.mean) != extractor.num_features:
        raise UserError(
            f"{path} has statistics of {len(statistics.mean)} features, and {extractor.name} has "
            f"{extractor.num_features}: they are of another network; choose its --protocol."
        )
    expected = _identity(extractor)
    differing = [
        f"{name}: {about.get(name)} there, {value} here"
        for name, value in expected.items()
        if about and about.get(name) != value
    ]
    if differing:
        raise UserError(
            f"{path} was made under another protocol ({'; '.join(differing)}): choose that one, or make the "
            "statistics anew with --save_statistics."
        )
    if not about:
        log.warning(
            "%s does not say under which protocol it was made: the figure means something only if it was %s.",
            path,
            extractor.name,
        )
    kept = np.zeros((0, extractor.num_features), np.float32)
    return Features(statistics, kept, np.zeros(0, np.int64)), {"statistics": path, **about}


def finish(evaluation: Evaluation, output: Path, seconds: float, **more) -> None:
    """Prints the figures, the warnings and the path of the JSON file that it writes, with `more` in it."""
    print_figures(evaluation)
    if jax.process_index() == 0:
        write_result(output, evaluation, seconds=seconds, **more)
        print(output)


def print_figures(evaluation: Evaluation) -> None:
    """The figures as a table on standard output, deviations beside their means; warnings to the log."""
    metrics = evaluation.metrics
    table = Table("figure", "value")
    for name, value in metrics.items():
        if name.endswith("_std") and name.removesuffix("_std") in metrics:
            continue
        deviation = metrics.get(f"{name}_std")
        table.add_row(name, f"{value:.5g}" + (f" ± {deviation:.2g}" if deviation is not None else ""))
    Console(soft_wrap=True).print(table)
    for warning in evaluation.about.get("warnings", ()):
        log.warning("%s", warning)
