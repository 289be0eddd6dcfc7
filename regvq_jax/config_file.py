"""A config file with its choices and changed fields, as --config=FILE:CHOICES gives it."""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from regvq_jax.errors import UserError


def check_config_file(spec: str) -> None:
    """Makes sure that there is a config file, and makes the file's neighbours importable.

    Args:
        spec: its path, with or without choices after a colon.

    Raises:
        UserError: there is no such file.
    """
    path = Path(spec.partition(":")[0])
    if not path.is_file():
        near = ", ".join(sorted(str(p) for p in Path("configs").glob("*.py"))) or "none in ./configs"
        raise UserError(f"The config file {path} does not exist; here there are: {near}.")
    # Configs import their shared blocks as `from configs import common`, wherever the call is made from.
    parent = str(path.resolve().parent.parent)
    if parent not in sys.path:
        sys.path.append(parent)


def find_spec(argv: Sequence[str]) -> str | None:
    """What --config is given, None where it is not."""
    values = [arg.partition("=")[2] for arg in argv if arg.startswith(("--config=", "-config="))]
    values += [value for flag, value in itertools.pairwise(argv) if flag in ("--config", "-config")]
    return values[-1] if values else None


def parse_flags(flag_values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """Parses absl's flags, with one sentence for each mistake.

    Args:
        flag_values: the flags.
        argv: the program's name and its arguments.

    Returns:
        `argv` without what was a flag.

    Raises:
        UserError: an unknown flag or field of the config, or a value of another type.
    """
    try:
        return flag_values(argv)
    except (IndexError, KeyError, TypeError):
        _check_fields(argv)
        raise
    except AttributeError as error:
        # ml_collections names the field and the nearest valid one.
        raise UserError("The config has no " + " ".join(str(error).strip("'\"").split())) from error
    except (flags.Error, ValueError) as error:
        raise UserError(" ".join(str(error).split())) from error


def _check_fields(argv: Sequence[str]) -> None:
    """Says which changed field there is not, where ml_collections speaks of types and indices."""
    spec = find_spec(argv)
    config = _read(spec)  # A config file that fails by itself shows its own error.
    for i, arg in enumerate(argv):
        if not arg.startswith(("--config.", "-config.")):
            continue
        try:
            _read(spec, argv[i : i + 1] if "=" in arg else argv[i : i + 2])
        except (IndexError, KeyError, TypeError) as error:
            name, *path = arg.lstrip("-").partition("=")[0].split(".")
            holder = config
            for field in path:
                if not isinstance(holder, ConfigDict):
                    raise UserError(f"{name} is {holder!r}, which has no field {field!r} ({arg}).") from error
                if "[" in field:
                    break
                if field not in holder:
                    words = f"{name} has no field {field!r} ({arg}); its fields: {', '.join(holder)}."
                    raise UserError(words) from error
                holder, name = holder[field], f"{name}.{field}"
            raise UserError(f"{arg} cannot be set: {error}.") from error


def _read(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    flag_values, argv = _define(spec, overrides)
    flag_values(argv)
    return flag_values.config


def _define(spec: str, overrides: Sequence[str]) -> tuple[flags.FlagValues, list[str]]:
    """Flags with nothing but --config, and arguments for them."""
    argv = ["config_file", f"--config={spec}", *overrides]
    flag_values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=flag_values, sys_argv=argv)
    return flag_values, argv


def load_config_file(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Reads a config file as `regvq_jax.main` does, for programs without absl's flags.

    Args:
        spec: its path, with or without choices after a colon.
        overrides: changed fields, "--config.FIELD=VALUE" each.

    Returns:
        The config, locked.

    Raises:
        UserError: there is no such file, or a choice, a field or a value is wrong.
    """
    check_config_file(spec)
    flag_values, argv = _define(spec, overrides)
    parse_flags(flag_values, argv)
    return flag_values.config
