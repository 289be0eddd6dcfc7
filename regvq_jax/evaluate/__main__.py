"""Figures of images: python -m regvq_jax.evaluate [COMMAND] (see --help of each).

python -m regvq_jax.evaluate --real=DIR --fake=DIR --protocol=NAME    any two sets of images
python -m regvq_jax.evaluate reconstruction RUN_OR_FILE               a trained tokenizer
python -m regvq_jax.evaluate generation RUN                           a trained prior
python -m regvq_jax.evaluate sweep RUN                                a trained prior under many samplers
python -m regvq_jax.evaluate report RUN                               writes RUN/report.html anew
"""

from regvq_jax.huge_pages import start_anew_with_huge_pages

# Before the other imports, which take seconds and would be done twice.
if __name__ == "__main__":
    start_anew_with_huge_pages("regvq_jax.evaluate")

import importlib
from collections.abc import Sequence

from regvq_jax.command_line import Parser, keep_compiled, run_command

COMMANDS = {
    "reconstruction": "regvq_jax.evaluate.runs:reconstruction",
    "generation": "regvq_jax.evaluate.runs:generation",
    "sweep": "regvq_jax.evaluate.sweep:main",
    "report": "regvq_jax.evaluate.runs:report",
}


def main(argv: Sequence[str]) -> None:
    """Runs the command that the first argument names, or compares images where it names none."""
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        argv = argv or ["--help"]
    command = "regvq_jax.evaluate.compare_images:main"
    if argv[0][:1] != "-":
        parser = Parser("regvq_jax.evaluate", __doc__)
        parser.add_argument("command", choices=COMMANDS)
        command, argv = COMMANDS[parser.parse_args(argv[:1]).command], argv[1:]
    keep_compiled()
    module, function = command.split(":")
    getattr(importlib.import_module(module), function)(argv)


if __name__ == "__main__":
    run_command(main)
