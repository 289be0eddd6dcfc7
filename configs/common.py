"""Blocks that several configs share, and the argument after the colon of --config=FILE:ARGUMENT."""

import dataclasses

from ml_collections import ConfigDict

from regvq_jax.errors import UserError
from regvq_jax.settings import did_you_mean
from regvq_jax.trainers.tokenizer_settings import LossSettings, QuantizerSettings


def quantizer(**fields) -> ConfigDict:
    """A `quantizer` group: the defaults of `QuantizerSettings`, all visible, with `fields` over them."""
    return ConfigDict(dataclasses.asdict(QuantizerSettings()) | fields)


def loss(**fields) -> ConfigDict:
    """A `loss` group: the defaults of `LossSettings`, all visible, with `fields` over them."""
    return ConfigDict(dataclasses.asdict(LossSettings()) | fields)


def parse_arg(arg: str | None, **defaults):
    """Reads "tiny,size=64" into a ConfigDict, each value of the type of its default.

    Args:
        arg: what stood after the colon of --config, None if nothing did. A name alone means True.
        **defaults: the valid names; bool, int, float or str.

    Raises:
        UserError: an unknown name (the nearest valid one is named) or a value of the wrong type.
    """
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        name, equals, text = item.partition("=")
        if name not in defaults:
            raise UserError(f'The config has no choice "{name}".{did_you_mean(name, list(defaults))}')
        kind = type(defaults[name])
        if kind is bool:
            if text.lower() not in ("", "true", "false"):
                raise UserError(f'The choice "{name}" is true or false, not "{text}".')
            values[name] = text.lower() != "false"
            continue
        if not equals:
            raise UserError(f'The choice "{name}" needs a value: {name}={defaults[name]}.')
        try:
            values[name] = kind(text)
        except ValueError as error:
            raise UserError(f'The choice "{name}" needs a {kind.__name__}, not "{text}".') from error
    return ConfigDict(values)
