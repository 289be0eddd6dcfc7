"""Runs one benchmark: python -m regvq_jax.bench NAME (see --help of each).

python -m regvq_jax.bench list              what there is, a line each
"""

from regvq_jax.huge_pages import start_anew_with_huge_pages

# Before the other imports, which take seconds and would be done twice.
if __name__ == "__main__":
    start_anew_with_huge_pages("regvq_jax.bench")

import importlib
import os
from collections.abc import Sequence

from regvq_jax.command_line import Parser, run_command
from regvq_jax.errors import UserError

# Module, imported when it is asked for, and what it measures.
BENCHMARKS = {
    "tokenizer": ("tokenizer", "training step of a tokenizer: time, memory, share of the machine's peak"),
    "quantizer": ("quantizer", "quantizers at 1,024 to 65,536 codes: time and peak memory"),
    "prior": ("prior_step", "training step of each kind of prior against torch: time, memory, share of peak"),
    "decode": ("decode", "drawing tokens: tokens and images a second, cached keys, share of the bandwidth"),
    "data": ("data", "images a second from JPEG files, against Pillow and torch"),
    "evaluate": ("evaluate", "what FID costs: features a second, statistics, peak memory"),
    "compile": ("compile", "seconds until the first training step, without and with a compilation cache"),
    "priors": ("priors", "trained priors side by side: held-out bits a token, and seconds to draw"),
}


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark that the first argument names with the rest of them, or lists all."""
    parser = Parser("regvq_jax.bench", __doc__)
    parser.add_argument("name", choices=("list", *BENCHMARKS))
    name = parser.parse_args(argv[:1]).name
    if name == "list":
        for name, (_, about) in BENCHMARKS.items():
            print(f"{name:<12}{about}")
        return
    # Programs share an accelerator, each in a process: none may take all of its memory beforehand.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    path = f"regvq_jax.bench.{BENCHMARKS[name][0]}"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name != path:
            raise
        raise UserError(f"{name} is not part of this installation: there is no {path}.") from None
    module.main(argv[1:])


if __name__ == "__main__":
    run_command(main)
