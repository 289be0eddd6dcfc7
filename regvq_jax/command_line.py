"""What the small programs of the package share: `python -m regvq_jax.prune` and its like."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from regvq_jax.errors import UserError
from regvq_jax.progress import setup_logging

USER_ERROR = 2
DEFAULT_COMPILATION_CACHE = os.environ.get("JAX_COMPILATION_CACHE_DIR", "~/.cache/regvq_jax/compilation")


class Parser(argparse.ArgumentParser):
    """argparse that shows a module's docstring as its help, and has one sentence for a mistake."""

    def __init__(self, prog: str, description: str | None = None, **options):
        """Args as of argparse; `description` is shown as it is."""
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(prog, description=description, **options)

    def error(self, message: str):
        """Raises UserError."""
        raise UserError(f"{message} (see python -m {self.prog} --help).")


def positive(text: str) -> int:
    """A whole number of at least 1, as the type of an argument."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)


def keep_compiled(directory: str = DEFAULT_COMPILATION_CACHE) -> None:
    """Keeps compiled programs for the next process, in `directory`; "" keeps none."""
    if directory:
        jax.config.update("jax_compilation_cache_dir", str(Path(directory).expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def run_command(main: Callable[[Sequence[str]], None]) -> None:
    """Calls `main` with the arguments; mistakes of the user end in one sentence and exit code 2."""
    setup_logging()
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
