"""From a config to a prior's settings, to how it is sampled, and to what its sample sheet shows."""

import dataclasses
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from regvq_jax.conditioning.condition import Condition
from regvq_jax.data.labels import label_colours
from regvq_jax.data.sources import Source
from regvq_jax.data.tokens import TokenSource
from regvq_jax.data.transforms import resize_and_crop
from regvq_jax.errors import UserError
from regvq_jax.evaluate.samples import Prompts, SampleSettings
from regvq_jax.settings import choose, from_config
from regvq_jax.trainers.prior import TokenPrior
from regvq_jax.trainers.priors import PRIORS
from regvq_jax.workdir import PRIOR_GROUPS, check_groups

NUM_SHOWN = 16


def make_prior(config: ConfigDict) -> TokenPrior:
    """The prior that `config.prior.name` chooses, with the settings of the group of that name.

    Raises:
        UserError: the config is of another version, or the prior or a setting is unknown.
    """
    check_groups(config, "The config", PRIOR_GROUPS)
    name = config.prior.name
    cls = choose(PRIORS, name, "prior.name")
    return from_config(cls, config.prior.get(name, {}), f"prior.{name}")


def sample_settings(config: ConfigDict, **changes: Any) -> SampleSettings:
    """How to draw: the config's `sample` group, some of it changed, checked against the prior.

    Raises:
        UserError: an unknown field, a value out of range, or guidance for a prior without a null condition.
    """
    cls = choose(PRIORS, config.prior.name, "prior.name").sampling
    known = {field.name: field.default for field in dataclasses.fields(cls)}
    foreign = sorted(config.sample.keys() - known.keys())
    if foreign:
        raise UserError(
            f'config.sample.{foreign[0]} is no setting of prior.name="{config.prior.name}", which has '
            f"{', '.join(known)}: prior and sample group go together, choose both in a config file "
            "(configs/emoji.py:text-ar, text-masked, text-diffusion)."
        )
    values = dict(config.sample) | changes
    for name in values.keys() & known.keys():
        values[name] = _like(known[name], values[name], name)
    settings = from_config(cls, values, "sample")
    if settings.guidance != 1 and config.prior.condition != "none" and not config.prior.condition_drop:
        raise UserError(
            f"config.sample.guidance={settings.guidance} needs a prior that was trained without its "
            "condition at times: set config.prior.condition_drop, such as 0.1, and train it, or guidance=1."
        )
    return settings


def _like(default: Any, value: Any, name: str) -> Any:
    """A value in the type of its default: numpy's and jax's numbers, too, become Python's."""
    if isinstance(default, str | tuple):
        return tuple(value) if isinstance(value, list) else value
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}={value!r} must be a number.") from error
    if isinstance(default, int) and number != int(number):
        raise UserError(f"{name}={value!r} must be a whole number.")
    return type(default)(number)


def check_sampling(settings: SampleSettings, prior: TokenPrior, num_codes: int) -> None:
    """Raises UserError where the settings do not go with the prior, or ask for more codes than there are."""
    top_k = getattr(settings, "top_k", 0)
    if top_k > num_codes:
        raise UserError(
            f"config.sample.top_k={top_k} is more than the {num_codes} codes there are; 0 keeps all."
        )
    prior.check_sampling(settings)


def make_prompts(
    config: ConfigDict, settings: SampleSettings, condition: Condition, heldout: Source | TokenSource
) -> Prompts:
    """What the sample sheet shows: the config's captions, or the first held-out conditions."""
    elements = [heldout[i] for i in range(min(NUM_SHOWN, len(heldout)))]
    if config.prior.from_images:
        elements = [resize_and_crop(element, size=config.data.image_size) for element in elements]
    nothing = ("",) * len(elements)
    if condition.kind == "none":
        return Prompts(None, nothing)
    if condition.kind == "text":
        captions = tuple(settings.captions) or tuple(element["text"] for element in elements)
        return Prompts(condition.inputs(text=captions), captions)
    if condition.kind == "class":
        classes = [int(element["class"]) for element in elements]
        names = heldout.class_names or tuple(f"class {c}" for c in range(condition.size))
        return Prompts(condition.inputs(classes=classes), tuple(names[c] for c in classes))
    labels = np.stack([element["labels"] for element in elements])
    maps = label_colours(condition.size)[labels]
    if "map_tokens" in elements[0]:
        return Prompts(np.stack([element["map_tokens"] for element in elements]), nothing, maps)
    return Prompts(condition.inputs(labels=labels), nothing, maps)
