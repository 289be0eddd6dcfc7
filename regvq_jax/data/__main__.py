"""Data sets: python -m regvq_jax.data COMMAND (see --help of each).

python -m regvq_jax.data prepare NAME --raw PATH ...    what was downloaded, to shards that train
python -m regvq_jax.data inspect CONFIG                 what a config would feed, in figures and pictures
"""

import importlib
from collections.abc import Sequence

from regvq_jax.command_line import Parser, run_command

COMMANDS = {"prepare": "regvq_jax.data.prepare", "inspect": "regvq_jax.data.inspect"}


def main(argv: Sequence[str]) -> None:
    """Runs the command that the first argument names with the rest of them."""
    parser = Parser("regvq_jax.data", __doc__)
    parser.add_argument("command", choices=COMMANDS)
    importlib.import_module(COMMANDS[parser.parse_args(argv[:1]).command]).main(argv[1:])


if __name__ == "__main__":
    run_command(main)
