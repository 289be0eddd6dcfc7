"""Runs one benchmark: python -m regvq_jax.bench NAME (see --help of each).

python -m regvq_jax.bench quantizer         quantizers at 1,024 to 65,536 codes: time and peak memory
python -m regvq_jax.bench autoregressive    tokens a second with and without cached keys, and in torch
python -m regvq_jax.bench priors RUN ...    trained priors: held-out bits a token, and seconds to draw
python -m regvq_jax.bench data              images a second from JPEG files, against Pillow and torch
python -m regvq_jax.bench evaluate          what FID costs: features a second, statistics, peak memory
"""

from collections.abc import Sequence

from regvq_jax.bench import autoregressive, data, evaluate, priors, quantizer
from regvq_jax.command_line import Parser, run_command

BENCHMARKS = {
    "quantizer": quantizer.main,
    "autoregressive": autoregressive.main,
    "priors": priors.main,
    "data": data.main,
    "evaluate": evaluate.main,
}


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark that the first argument names with the rest of them."""
    parser = Parser("regvq_jax.bench", __doc__)
    parser.add_argument("name", choices=BENCHMARKS)
    BENCHMARKS[parser.parse_args(argv[:1]).name](argv[1:])


if __name__ == "__main__":
    run_command(main)
