"""The stages of a run, each of which starts from what the one before left in the workdir."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from regvq_jax import loop, sharding
from regvq_jax.data.skipped import write_skipped
from regvq_jax.data.sources import SPLITS, Source
from regvq_jax.errors import UserError
from regvq_jax.files import write_json_atomic
from regvq_jax.models.quantizer import IMPLICIT_KINDS
from regvq_jax.models.tokenizer import ImageTokenizer, encode_maps
from regvq_jax.preemption import PreemptionSignal
from regvq_jax.settings import choose, from_config
from regvq_jax.token_stage import Encoder, TokenSettings, best_codes, cache_tokens
from regvq_jax.trained import FACTS_NAME, load_map_tokenizer, load_tokenizer, read_facts
from regvq_jax.trainers import build, build_condition, build_data, build_prior
from regvq_jax.workdir import PRIOR_GROUPS, check_groups

PyTree = Any
log = logging.getLogger("regvq_jax")


def run(
    config: ConfigDict,
    workdir: Path,
    mesh: jax.sharding.Mesh,
    chosen: tuple[str, ...],
    profile_steps: tuple[int, int] = (0, 0),
) -> None:
    """Runs the chosen stages in order; a finished one is not run again.

    Args:
        config: of the run.
        workdir: from `workdir.open_workdir`.
        mesh: of all devices.
        chosen: names in `STAGES`.
        profile_steps: see `loop.train`.

    Raises:
        UserError: an unknown stage, or one whose predecessor is missing.
    """
    stage_fns = [choose(STAGES, name, "stages") for name in chosen]
    if "prior" in chosen:
        # A mistake there shall not wait until stage one is trained.
        build_prior.check_prior_config(config)
    for stage_fn in stage_fns:
        stage_fn(config, workdir, mesh, profile_steps)


def run_tokenizer(config, workdir, mesh, profile_steps) -> None:
    """Stage one: images to a tokenizer in workdir/tokenizer, unless the config brings one."""
    if config.tokenizer:
        log.info("tokenizer is that of %s", config.tokenizer)
        return

    def make_trainer():
        keep_skipped(workdir, {split: build_data.open_source(config, split) for split in SPLITS})
        trainer = build.make_tokenizer_trainer(config)
        if trainer.model.quantizer.kind not in IMPLICIT_KINDS:
            sharding.check_codebook_size(trainer.model.quantizer.codebook_size, mesh)
        return trainer

    run_training(make_trainer, workdir / "tokenizer", mesh, profile_steps)


def run_map_tokenizer(config, workdir, mesh, profile_steps) -> None:
    """Label maps to a tokenizer of their own in workdir/map_tokenizer, for `prior.condition="map_tokens"`."""
    if config.prior.condition != "map_tokens":
        log.info('map_tokenizer: prior.condition="%s" does not read its tokens', config.prior.condition)
        return
    run_training(
        lambda: build.make_map_tokenizer_trainer(config), workdir / "map_tokenizer", mesh, profile_steps
    )


def run_tokens(config, workdir, mesh, profile_steps) -> None:
    """Encodes the train and held-out images once, with best-matching codes, into workdir/tokens."""
    del mesh, profile_steps
    check_groups(config, "The config", PRIOR_GROUPS)
    if config.prior.from_images:
        log.info("prior.from_images: there are no tokens to write, the prior's training encodes images")
        return
    require_tokenizer(config, workdir)
    settings = from_config(TokenSettings, config.tokens, "tokens")
    encoder = make_encoder(best_codes, *load_tokenizer(config, workdir))
    sources = {split: build_data.open_source(config, split) for split in SPLITS}
    map_encoder = None
    if config.prior.condition == "map_tokens":
        require_stage(workdir, "map_tokenizer")
        num_classes = sources["train"].num_label_classes
        map_encoder = make_encoder(encode_maps, *load_map_tokenizer(config, workdir, num_classes))
    with PreemptionSignal() as preemption:
        for split, source in sources.items():
            cache_tokens(
                workdir / "tokens" / split,
                source,
                split,
                encoder,
                settings,
                image_size=config.data.image_size,
                map_encoder=map_encoder,
                seed=config.seed,
                num_threads=config.data.num_threads,
                stop_requested=preemption.stop_requested,
            )
        preemption.align()
    keep_skipped(workdir, sources)


def keep_skipped(workdir: Path, sources: Mapping[str, Source]) -> None:
    """Lists in workdir/skipped.txt what the data have left out, if anything."""
    if jax.process_index() == 0 and (count := write_skipped(workdir / "skipped.txt", sources)):
        log.warning("%d things were left out of the data: %s", count, workdir / "skipped.txt")


def make_encoder(encode_fn: Callable, model: ImageTokenizer, params: PyTree) -> Encoder:
    """An `Encoder` of a trained tokenizer; `encode_fn` takes the network first."""
    return Encoder(
        partial(encode_fn, model),
        params,
        codebook_size=model.quantizer.codebook_size,
        tokenizer_hash=build.hash_params(params),
    )


def run_prior(config, workdir, mesh, profile_steps) -> None:
    """Stage two: tokens to a prior in workdir/prior."""
    check_groups(config, "The config", PRIOR_GROUPS)
    require_tokenizer(config, workdir)
    directory = workdir / "prior"

    def make_trainer():
        tokenizer, params = load_tokenizer(config, workdir)
        map_tokenizer = None
        if config.prior.condition == "map_tokens":
            require_stage(workdir, "map_tokenizer")
            num_classes = build_prior.open_source(config, workdir, "train").num_label_classes
            map_tokenizer = load_map_tokenizer(config, workdir, num_classes)
        trainer, facts = build_prior.make_prior_trainer(config, workdir, tokenizer, params, map_tokenizer)
        keep_facts(directory, facts)
        return trainer

    run_training(make_trainer, directory, mesh, profile_steps)


def run_report(config, workdir, mesh, profile_steps) -> None:
    """Gathers what the other stages made: pictures, the table of figures, and where everything lies."""
    del config, mesh, profile_steps
    # Imported here: it brings jinja2 and matplotlib, for which no training's first step should wait.
    from regvq_jax.report.closing import write_report

    if jax.process_index() == 0:
        write_report(workdir)


STAGES: dict[str, Callable] = {
    "tokenizer": run_tokenizer,
    "map_tokenizer": run_map_tokenizer,
    "tokens": run_tokens,
    "prior": run_prior,
    "report": run_report,
}


def run_training(make_trainer: Callable[[], Any], directory: Path, mesh, profile_steps) -> None:
    """Trains unless the directory holds a finished training."""
    if loop.read_result(directory) is not None:
        log.info("%s is done already", directory.name)
        return
    loop.train(make_trainer(), directory, mesh, profile_steps)
    # The next stage looks for the result, which the first process has written by now.
    multihost_utils.sync_global_devices(f"{directory.name} result")


def keep_facts(directory: Path, facts: build_condition.PriorFacts) -> None:
    """Writes what a prior owes to other networks and data; one that has begun must go on with the same.

    Raises:
        UserError: it began with other ones.
    """
    path = directory / FACTS_NAME
    if path.exists() and (directory / "checkpoints").exists():
        began, now = read_facts(path), dataclasses.asdict(facts)
        differing = [
            f"{name} ({value} then, {now[name]} now)"
            for name, value in dataclasses.asdict(began).items()
            if value != now[name]
        ]
        if differing:
            raise UserError(
                f"The prior in {directory} began with something else, {', '.join(differing)}: delete it to "
                "train it anew, or use another workdir."
            )
    if jax.process_index() == 0:
        directory.mkdir(exist_ok=True)
        write_json_atomic(path, dataclasses.asdict(facts))


def require_tokenizer(config: ConfigDict, workdir: Path) -> None:
    """Raises UserError unless stage one of this workdir is finished, or `config.tokenizer` replaces it."""
    if not config.tokenizer:
        require_stage(workdir, "tokenizer")


def require_stage(workdir: Path, name: str) -> None:
    """Raises UserError unless a stage of this workdir is finished."""
    if loop.read_result(workdir / name) is None:
        raise UserError(
            f'The stage "{name}" of {workdir} is not finished, and this stage starts from its result; '
            f"run it first (--stage={name}, or no --stage at all)."
        )
