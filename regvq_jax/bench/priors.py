"""Trained priors side by side: what they know of held-out tokens, and how long they draw.

    python -m regvq_jax.bench priors runs/ar runs/masked runs/diffusion
    python -m regvq_jax.bench priors runs/* --images=16 --json=priors.json

Bits and nats a token are those of each run's last evaluation, exact for an autoregressive prior and of an
upper bound for the others; they compare priors over the tokens of one tokenizer. The sampler is that of
the config, with the conditions of the first held-out images, decoding included; each run has a process of
its own, and they take turns. There is no rival: nobody else draws from these runs. --tiny draws two pictures,
twice; --seed is of the draws.
"""

import argparse
import itertools
import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from regvq_jax import loop
from regvq_jax.bench.flags import add_shared_flags, make_limits, parse
from regvq_jax.bench.measure import (
    Measurement,
    Program,
    describe_machine,
    measure_in_turns,
    warn_if_busy,
)
from regvq_jax.bench.table import mebibytes, milliseconds, publish, spread
from regvq_jax.command_line import Parser, positive
from regvq_jax.errors import UserError
from regvq_jax.evaluate.samples import SampleSettings, decode_codes, draw_tokens, split_levels
from regvq_jax.models.prior import PriorNet
from regvq_jax.models.tokenizer import ImageTokenizer
from regvq_jax.trained import TrainedPrior, load_prior, load_tokenizer
from regvq_jax.trainers import build, build_prior, build_sampling
from regvq_jax.workdir import load_config

PyTree = Any
CASE = ("tokens", "run")
TINY = dict(images=2, repeats=2)


class Loaded(NamedTuple):
    """What a run's pictures are drawn with.

    Attributes:
        tokenizer, tokenizer_params: the tokenizer.
        trained: the prior.
        settings: how to draw.
    """

    tokenizer: ImageTokenizer
    tokenizer_params: PyTree
    trained: TrainedPrior
    settings: SampleSettings


class Run(NamedTuple):
    """A run with a finished prior.

    Attributes:
        workdir: its directory.
        row: figures by field, of the training.
        inputs: conditions, [n, ...] as `Condition.embed` takes them; None without.
        tokenizer_hash: of the tokenizer whose tokens it draws.
    """

    workdir: Path
    row: dict[str, Any]
    inputs: np.ndarray | None
    tokenizer_hash: str


def load(workdir: Path) -> Loaded:
    """The prior with the lowest held-out loss, as `Prior.load`."""
    config = load_config(workdir)
    tokenizer, params = load_tokenizer(config, workdir)
    trained = load_prior(config, workdir, tokenizer, params)
    # () shows what is held out, not the config's captions.
    return Loaded(tokenizer, params, trained, build_sampling.sample_settings(config, captions=()))


def read_run(workdir: Path, name: str) -> Run:
    """What a run has recorded, and conditions to draw from.

    Raises:
        UserError: the directory is not a workdir, or its prior is not trained to the end.
    """
    config = load_config(workdir)
    result = loop.read_result(workdir / "prior")
    if result is None:
        raise UserError(
            f"{workdir} has no finished prior to measure: run its command to the end, or leave it out."
        )
    loaded = load(workdir)
    trained = loaded.trained
    heldout = build_prior.open_source(config, workdir, "heldout")
    prompts = build_sampling.make_prompts(config, loaded.settings, trained.condition, heldout)
    row = {
        "tokens": trained.model.num_tokens,
        "run": name,
        "prior": config.prior.name,
        "condition": trained.condition.kind,
        "parameters": sum(x.size for x in jax.tree.leaves(trained.params)),
        "train_seconds": result["seconds"],
        "train_steps": result["step"],
        "sampler": describe_sampler(loaded.settings, trained.model),
    }
    for field in ("bits_per_token", "loss", "loss_shuffled"):
        value = result.get(f"eval/prior/{field}")
        if value is not None and math.isfinite(value):
            row[field] = value
    return Run(workdir, row, prompts.inputs, build.hash_params(loaded.tokenizer_params))


def describe_sampler(settings: SampleSettings, model: PriorNet) -> str:
    """Calls of the network, and guidance, which doubles its rows."""
    steps = getattr(settings, "steps", model.num_tokens)
    return f"{steps} steps" + (f", guidance {settings.guidance:g}" if settings.guidance != 1 else "")


def sampling_program(
    workdir: Path, inputs: np.ndarray | None, num_images: int, seed: int
) -> Callable[[], Program]:
    """Draws and decodes pictures of a run.

    Args:
        workdir: of the run.
        inputs: conditions, repeated where there are fewer than pictures.
        num_images: B.
        seed: of the first draw; each after it has the next one.
    """
    tokenizer, tokenizer_params, trained, settings = load(workdir)
    params, frozen, tokenizer_params = jax.device_put((trained.params, trained.frozen, tokenizer_params))
    if inputs is not None:
        inputs = jax.device_put(inputs[np.arange(num_images) % len(inputs)])

    def build() -> Program:
        traces, seeds = [], itertools.count(seed)

        @jax.jit
        def draw(params, frozen, tokenizer_params, keys, inputs):
            traces.append(None)
            prior, model, condition = trained.prior, trained.model, trained.condition
            tokens = draw_tokens(prior, model, condition, settings, params, frozen, keys, inputs)
            return decode_codes(tokenizer, tokenizer_params, split_levels(tokenizer, tokens))

        def run():
            # Others every time: a program that is compiled once draws them all.
            row_keys = jax.random.split(jax.random.key(next(seeds)), num_images)
            images = jax.block_until_ready(draw(params, frozen, tokenizer_params, row_keys, inputs))
            return {"images": images, "compiles": np.int32(len(traces))}

        return Program(run)

    return build


# Field of a row, and how the table shows it.
COLUMNS = {
    "prior": ("prior", str),
    "condition": ("condition", str),
    "param. M": ("parameters", lambda x: f"{x / 1e6:,.2f}"),
    "bits": ("bits_per_token", lambda x: f"{x:.3f}"),
    "nats": ("loss", lambda x: f"{x:.3f}"),
    "shuffled": ("loss_shuffled", lambda x: f"{x:.3f}"),
    "steps": ("train_steps", lambda x: f"{x:,}"),
    "trained s": ("train_seconds", lambda x: f"{x:,.0f}"),
    "sampler": ("sampler", str),
    "drawn ms": ("seconds", milliseconds),
    "least..most": ("all_seconds", spread),
    "RSS MiB": ("rss_bytes", mebibytes),
    "compiles": ("compiles", str),
    "n": ("repeats", str),
}


def make_row(run: Run, measured: Measurement) -> dict:
    """All figures of a run by field; those of drawing are left out where it failed."""
    row = run.row | {"failure": measured.failure}
    if measured.failure:
        return row
    return row | dict(
        seconds=measured.median,
        all_seconds=measured.seconds,
        repeats=len(measured.seconds),
        compiles=int(measured.result["compiles"]),
        rss_bytes=measured.peak_bytes,
    )


def describe(args: argparse.Namespace, runs: Sequence[Run], load: float) -> str:
    """What the columns are, and where they come from."""
    warning = ""
    if len({run.tokenizer_hash for run in runs}) > 1:
        warning = " THE RUNS HAVE DIFFERENT TOKENIZERS: bits and nats a token do not compare."
    return (
        "bits, nats: a held-out token's, of the last evaluation, exact for autoregressive and an upper bound "
        "for others; shuffled: nats with the conditions of other images; steps, trained s: of the training, "
        f"where it ran; drawn ms: for {args.images} images, decoded, of the checkpoint with the lowest loss, "
        f"the median of up to {args.repeats} repeats in turns after a first that compiles, seed {args.seed}; "
        "RSS: growth of the process, compiling included; compiles: of the sampler, in all; n: repeats. "
        f"JAX {jax.__version__} on {jax.devices()[0].device_kind}; {describe_machine()}, load {load:.1f} "
        f"before.{warning}"
    )


def main(argv: Sequence[str]) -> None:
    """Measures the runs that the arguments name, prints the table, and writes it where the flags say."""
    args = parse(make_parser(), argv, TINY)
    workdirs = dict.fromkeys(path.expanduser().absolute() for path in args.runs if not path.is_file())
    if not workdirs:
        raise UserError("No run to measure: name the workdirs of one or more.")
    common = os.path.commonpath([workdir.parent for workdir in workdirs])
    runs = {}
    for workdir in workdirs:
        name = str(workdir.relative_to(common))
        runs[name] = read_run(workdir, name)
    load = warn_if_busy()
    programs = {
        name: partial(sampling_program, run.workdir, run.inputs, args.images, args.seed)
        for name, run in runs.items()
    }
    measured = measure_in_turns(programs, make_limits(args))
    rows = [make_row(run, measured[name]) for name, run in runs.items()]
    publish(args, rows, COLUMNS, describe(args, list(runs.values()), load), CASE)


def make_parser() -> Parser:
    """The flags."""
    parser = Parser("regvq_jax.bench priors", __doc__)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="workdirs with a finished prior")
    add("--images", type=positive, default=64, help="drawn at once (default 64)")
    add_shared_flags(parser, repeats=3, has_rival=False)
    return parser
