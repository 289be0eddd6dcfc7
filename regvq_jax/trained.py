"""Trained networks from a workdir or a file: the module, and its averaged parameters as numpy arrays."""

from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from regvq_jax.checkpoint import Checkpoints
from regvq_jax.conditioning.condition import Condition
from regvq_jax.errors import UserError
from regvq_jax.files import read_json
from regvq_jax.interop.tokenizer_file import load_tokenizer_file, param_shapes
from regvq_jax.models.prior import PriorNet
from regvq_jax.models.tokenizer import ImageTokenizer
from regvq_jax.trainers import build, build_condition, build_prior, build_sampling
from regvq_jax.trainers.build_condition import PriorFacts
from regvq_jax.trainers.prior import TokenPrior
from regvq_jax.workdir import PRIOR_GROUPS, check_groups, load_config

PyTree = Any
FACTS_NAME = "facts.json"


class TrainedPrior(NamedTuple):
    """A prior and all that it draws with.

    Attributes:
        prior: autoregressive, masked or diffusion, with its settings.
        model, params: the network.
        condition: what it is told.
        frozen: parameters that `condition` needs: "text", "map_tokenizer".
        facts: what it goes with.
        step: of the checkpoint.
    """

    prior: TokenPrior
    model: PriorNet
    params: PyTree
    condition: Condition
    frozen: dict[str, PyTree]
    facts: PriorFacts
    step: int


def open_tokenizer(path: Path) -> tuple[ImageTokenizer, PyTree]:
    """The tokenizer of a run's workdir or of a tokenizer file.

    Raises:
        UserError: there is no such path; the directory is not a workdir or holds no checkpoint; or the file
            is no tokenizer.
    """
    if path.is_dir():
        return load_tokenizer(load_config(path), path)
    return load_tokenizer_file(path)[:2]


def load_tokenizer(config: ConfigDict, workdir: Path) -> tuple[ImageTokenizer, PyTree]:
    """The tokenizer of a run: the file that `config.tokenizer` names, or stage one's newest checkpoint.

    Args:
        config: of the run.
        workdir: of the run.

    Raises:
        UserError: stage one has no checkpoint in this workdir; or the file is missing, is no tokenizer, or
            does not fit `config.data.image_size`.
    """
    if not config.tokenizer:
        model = build.make_image_tokenizer(config)
        return model, _load_params(param_shapes(model), workdir / "tokenizer", "tokenizer", None)[0]
    model, params, _ = load_tokenizer_file(Path(config.tokenizer).expanduser())
    if config.data.image_size % model.downsampling:
        raise UserError(
            f"config.data.image_size={config.data.image_size} is not a multiple of {model.downsampling}, by "
            f"which the tokenizer {config.tokenizer} shrinks images; choose a size that is."
        )
    return model, params


def load_map_tokenizer(
    config: ConfigDict, workdir: Path, num_label_classes: int
) -> tuple[ImageTokenizer, PyTree]:
    """The tokenizer of label maps of a run's workdir, its newest checkpoint.

    Raises:
        UserError: it was not trained in this workdir.
    """
    model = build.make_map_tokenizer(config, num_label_classes)
    return model, _load_params(param_shapes(model), workdir / "map_tokenizer", "tokenizer", None)[0]


def load_prior(
    config: ConfigDict, workdir: Path, tokenizer: ImageTokenizer, tokenizer_params: PyTree
) -> TrainedPrior:
    """The prior with the lowest held-out loss of stage two; the newest where none was evaluated.

    Priors on few images overfit: the last checkpoint is then not the best one.

    Args:
        config: of the run.
        workdir: of the run.
        tokenizer: whose tokens it draws.
        tokenizer_params: its parameters.

    Raises:
        UserError: stage two has no checkpoint in this workdir, or learned the tokens of another tokenizer.
    """
    check_groups(config, "The config", PRIOR_GROUPS)
    directory = workdir / "prior"
    if not (directory / FACTS_NAME).exists():
        raise UserError(
            f"{directory} holds no trained prior; run that stage first (--stage=prior, or no --stage at all)."
        )
    facts = read_facts(directory / FACTS_NAME)
    digest = build.hash_params(tokenizer_params)
    if facts.tokenizer_hash != digest:
        raise UserError(
            f"The prior in {directory} learned the tokens of another tokenizer ({facts.tokenizer_hash}) than "
            f"this run's ({digest}): its codes mean nothing here; train a "
            "prior of its own, in another workdir."
        )
    prior = build_sampling.make_prior(config)
    frozen, map_model = {}, None
    if facts.condition == "map_tokens":
        map_model, frozen["map_tokenizer"] = load_map_tokenizer(config, workdir, facts.num_label_classes)
        digest = build.hash_params(frozen["map_tokenizer"])
        if facts.map_tokenizer_hash != digest:
            raise UserError(
                f"The prior in {directory} learned the map tokens of another map tokenizer "
                f"({facts.map_tokenizer_hash}) than this run's ({digest}); train a prior of its own."
            )
    condition, text = build_condition.make_condition(config, facts, tokenizer, map_model)
    if text is not None:
        frozen["text"] = text.params
    model = build_prior.make_prior_net(config, prior, tokenizer, condition)
    shapes = build_prior.init_shapes(model, condition, frozen)
    params, step = _load_params(shapes, directory, "prior", "eval/prior/loss")
    return TrainedPrior(prior, model, params, condition, frozen, facts, step)


def read_facts(path: Path) -> PriorFacts:
    """What `stages` wrote of a prior."""
    record = read_json(path)
    return PriorFacts(**record | {"map_grid": tuple(record["map_grid"])})


def _load_params(
    shapes: PyTree, directory: Path, network: str, best_metric: str | None
) -> tuple[PyTree, int]:
    """(parameters, step): of the best checkpoint by a metric, else of the newest."""
    if not (directory / "checkpoints").exists():
        raise UserError(
            f"{directory} holds no trained {directory.name}; run that stage first "
            f"(--stage={directory.name}, or no --stage at all)."
        )
    with Checkpoints(
        directory / "checkpoints", best_metric=best_metric, best_mode="min", read_only=True
    ) as checkpoints:
        step = checkpoints.best_step() if best_metric else None
        params = checkpoints.restore_params(shapes, key=("ema", network), step=step)
        return params, checkpoints.latest_step() if step is None else step
