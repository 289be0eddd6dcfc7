"""A training's evaluators, once more for what has been trained: `python -m regvq_jax.evaluate COMMAND`."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
from ml_collections import ConfigDict
from PIL import Image

from regvq_jax import sharding
from regvq_jax.command_line import Parser
from regvq_jax.errors import UserError
from regvq_jax.evaluate.compare_images import (
    add_protocol_arguments,
    finish,
    fit_batch,
    protocol_spec,
)
from regvq_jax.evaluate.generation import REFERENCES, Generation
from regvq_jax.evaluate.reconstruction import Reconstruction
from regvq_jax.evaluate.result import Evaluation
from regvq_jax.report.page import write_html
from regvq_jax.trained import TrainedPrior, load_prior, load_tokenizer, open_tokenizer
from regvq_jax.trainers import build_data, build_prior, build_sampling
from regvq_jax.workdir import load_config

PyTree = Any
T = TypeVar("T")
RECONSTRUCTION_HELP = """Judges a trained tokenizer on held-out images.

    python -m regvq_jax.evaluate reconstruction runs/quickstart --protocol=efficientnet_lite0
    python -m regvq_jax.evaluate reconstruction vqgan.safetensors --source=folder:PATH --image_size=256

Both sides are the same centre crops; what is rebuilt is rounded to uint8 first. Figures go to
RUN/results/reconstruction.json, or for a file to results/NAME.json here."""

GENERATION_HELP = """Judges a trained prior: draws from held-out conditions and compares with true images.

    python -m regvq_jax.evaluate generation runs/quickstart --protocol=efficientnet_lite0 --num_images=1000
    python -m regvq_jax.evaluate generation runs/coco --num_images=30000 --set temperature=0.9,guidance=2

The prior is that of the checkpoint with the lowest held-out loss. What was drawn is kept in
RUN/results/drawn: a call that was stopped goes on there. Figures go to RUN/results/generation.json."""


def reconstruction(argv: Sequence[str]) -> None:
    """`python -m regvq_jax.evaluate reconstruction`."""
    parser = Parser("regvq_jax.evaluate reconstruction", RECONSTRUCTION_HELP)
    parser.add_argument("path", type=Path, help="workdir of a run, or a tokenizer file")
    add_protocol_arguments(parser)
    parser.add_argument("--lpips", choices=("vgg16", "alexnet"), default="", help="also measure LPIPS")
    parser.add_argument("--source", help="other data than the run's, as in config.data.source")
    parser.add_argument("--image_size", type=int, help="side of the images; that of the run by default")
    args = parser.parse_args(argv)
    path = args.path.expanduser().absolute()
    began = time.perf_counter()
    mesh = sharding.make_mesh()
    model, params = open_tokenizer(path)
    config = load_config(path) if path.is_dir() else ConfigDict({"data": {}})
    with config.unlocked():
        config.data.update({k: v for k in ("source", "image_size") if (v := getattr(args, k)) is not None})
    missing = [name for name in ("source", "image_size") if name not in config.data]
    if missing:
        raise UserError(f"A tokenizer file has no data of its own: give --{' and --'.join(missing)}.")
    if config.data.image_size % model.downsampling:
        raise UserError(
            f"--image_size={config.data.image_size} is not a multiple of {model.downsampling}, by which this "
            "tokenizer shrinks images."
        )
    evaluator = Reconstruction(
        model,
        build_data.image_set(config, "heldout", fit_batch(args.batch_size, mesh)),
        lpips=args.lpips,
        protocols=(protocol_spec(args),),
    )
    evaluation = evaluator({"tokenizer": jax.device_put(params, sharding.replicated(mesh))}, {}, mesh)
    results = path / "results" if path.is_dir() else Path("results")
    name = "reconstruction" if path.is_dir() else path.stem
    _write(evaluation, results, name, time.perf_counter() - began, checkpoint=str(path))


def generation(argv: Sequence[str]) -> None:
    """`python -m regvq_jax.evaluate generation`."""
    parser = Parser("regvq_jax.evaluate generation", GENERATION_HELP)
    parser.add_argument("path", type=Path, help="workdir of a run")
    add_protocol_arguments(parser)
    parser.add_argument("--num_images", type=int, default=0, help="0 = one a held-out image")
    parser.add_argument("--reference", choices=REFERENCES, default="heldout", help="what to compare with")
    parser.add_argument("--memorisation", type=int, default=10_000, help="training images to compare with")
    parser.add_argument("--segmenter", default="", help="SegFormer file, for a prior that is told maps")
    parser.add_argument("--set", default="", help="sampler settings over the run's: temperature=0.9,steps=8")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    args = parser.parse_args(argv)
    began = time.perf_counter()
    mesh = sharding.make_mesh()
    path = args.path.expanduser().absolute()
    run = LoadedRun(path)
    evaluator = run.make_evaluator(
        parse_settings(args.set),
        fit_batch(args.batch_size, mesh),
        directory=path / "results" / "drawn",
        num_images=args.num_images,
        protocols=(protocol_spec(args),),
        reference=args.reference,
        memorisation=args.memorisation,
        segmenter=args.segmenter,
        seed=args.seed,
        keep_others=True,
    )
    evaluation = run(evaluator, mesh)
    where = {"checkpoint": str(path / "prior" / "checkpoints"), "step": run.trained.step}
    _write(evaluation, path / "results", "generation", time.perf_counter() - began, **where)


def report(argv: Sequence[str]) -> None:
    """`python -m regvq_jax.evaluate report`."""
    parser = Parser("regvq_jax.evaluate report", "Writes RUN/report.html anew from what the run has left.")
    parser.add_argument("path", type=Path, help="workdir of a run")
    path = parser.parse_args(argv).path.expanduser().absolute()
    load_config(path)
    print(write_html(path))


class LoadedRun:
    """A trained prior with its tokenizer and data, to be drawn from under several settings.

    Attributes:
        trained: the prior.
        config: of the run.
    """

    def __init__(self, workdir: Path):
        """Loads it.

        Raises:
            UserError: the directory is not the workdir of a run with a trained prior.
        """
        self.config = load_config(workdir)
        self._tokenizer, params = load_tokenizer(self.config, workdir)
        self.trained: TrainedPrior = load_prior(self.config, workdir, self._tokenizer, params)
        self._frozen = {**self.trained.frozen, "tokenizer": params}
        self._sent: dict[jax.sharding.Mesh, tuple[PyTree, PyTree]] = {}
        self._heldout = build_prior.open_source(self.config, workdir, "heldout")

    def make_evaluator(self, changes: dict, batch_size: int, **fields) -> Generation:
        """An evaluator that draws with the config's sampler settings, some of them changed.

        Raises:
            UserError: settings that the prior does not have, or as `Generation`.
        """
        trained = self.trained
        settings = build_sampling.sample_settings(self.config, **changes)
        build_sampling.check_sampling(settings, trained.prior, trained.model.codebook_size)
        drawing = build_prior.drawing(
            self.config, trained.prior, trained.model, trained.condition, trained.facts,
            self._tokenizer, settings, self._heldout, batch_size,
        )  # fmt: skip
        return Generation(**drawing, **fields)

    def __call__(self, evaluate_fn: Callable[[PyTree, PyTree, jax.sharding.Mesh], T], mesh) -> T:
        """Calls an evaluator, or what has its arguments, with the parameters, sent to `mesh` once."""
        if mesh not in self._sent:
            whole = sharding.replicated(mesh)
            self._sent[mesh] = jax.device_put((self.trained.params, self._frozen), whole)
        params, frozen = self._sent[mesh]
        return evaluate_fn({"prior": params}, frozen, mesh)


def parse_settings(text: str) -> dict[str, str]:
    """"temperature=0.9,guidance=2" as a dict; values are checked where they are used.

    Raises:
        UserError: an entry without "=".
    """
    settings = {}
    for entry in filter(None, text.split(",")):
        name, equals, value = entry.partition("=")
        if not equals:
            raise UserError(f'"{entry}" is no setting: write NAME=VALUE, such as temperature=0.9.')
        settings[name.strip()] = value.strip()
    return settings


def _write(evaluation: Evaluation, results: Path, name: str, seconds: float, **more) -> None:
    finish(evaluation, results / f"{name}.json", seconds, **more)
    if jax.process_index() == 0:
        for picture, pixels in evaluation.images.items():
            path = results / f"{picture}.png"
            Image.fromarray(pixels).save(path)
            print(path)
