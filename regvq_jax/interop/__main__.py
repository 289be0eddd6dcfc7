"""Takes tokenizers in from other projects and gives them out.

    python -m regvq_jax.interop import --format=taming --input=last.ckpt --output=vqgan.safetensors
    python -m regvq_jax.interop import --format=diffusers --input=DIRECTORY --output=vqgan.safetensors
    python -m regvq_jax.interop export --format=diffusers --input=runs/quickstart --output=DIRECTORY
    python -m regvq_jax.interop export --format=taming --input=vqgan.safetensors --output=FILE.safetensors
    python -m regvq_jax.interop export --format=safetensors --input=runs/quickstart --output=FILE.safetensors

What import writes is for Tokenizer.load or a config's `tokenizer` field. taming is CompVis
taming-transformers (VQModel, GumbelVQ), diffusers a VQModel directory, safetensors our own file. Both
projects have one number of groups in all normalisations: train what is to be exported to them with
config.model.norm_groups=32.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regvq_jax.command_line import Parser, run_command
from regvq_jax.interop import diffusers, taming
from regvq_jax.interop.tokenizer_file import save_tokenizer
from regvq_jax.interop.torch_file import read_torch_file
from regvq_jax.interop.torch_layout import write_state
from regvq_jax.models.tokenizer import ImageTokenizer
from regvq_jax.trained import open_tokenizer

PyTree = Any


def main(argv: Sequence[str]) -> None:
    """Runs one command and prints the path of what it wrote."""
    args = make_parser().parse_args(argv)
    source, output = args.input.expanduser(), args.output.expanduser()
    if args.command == "import":
        model, params = import_tokenizer(args.format, source)
        save_tokenizer(output, model, params, {"imported_from": {"format": args.format, "path": str(source)}})
    else:
        export_tokenizer(args.format, output, *open_tokenizer(source))
    print(output)


def make_parser() -> Parser:
    """The commands and their flags."""
    parser = Parser("regvq_jax.interop", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{import,export}")
    importing = commands.add_parser("import", help="from another project to a tokenizer file")
    importing.add_argument("--format", required=True, choices=("taming", "diffusers"))
    importing.add_argument(
        "--input",
        required=True,
        type=Path,
        help="taming: a checkpoint (.ckpt, .pth, .safetensors); diffusers: a VQModel directory",
    )
    importing.add_argument("--output", required=True, type=Path, help="the .safetensors file to write")
    exporting = commands.add_parser("export", help="from a run or a tokenizer file to a file of a format")
    exporting.add_argument("--format", required=True, choices=("taming", "diffusers", "safetensors"))
    exporting.add_argument(
        "--input", required=True, type=Path, help="the workdir of a run, or a tokenizer file"
    )
    exporting.add_argument(
        "--output",
        required=True,
        type=Path,
        help="taming, safetensors: the .safetensors file to write; diffusers: the directory",
    )
    return parser


def import_tokenizer(format_name: str, source: Path) -> tuple[ImageTokenizer, PyTree]:
    """(model, params) of another project's tokenizer.

    Raises:
        UserError: it cannot be read, or our network cannot be it.
    """
    if format_name == "diffusers":
        return diffusers.import_directory(source)
    return taming.import_state(read_torch_file(source))


def export_tokenizer(format_name: str, output: Path, model: ImageTokenizer, params: PyTree) -> None:
    """Writes a tokenizer in a format of `make_parser`.

    Raises:
        UserError: the project cannot build this network, or `output` cannot be written.
    """
    if format_name == "diffusers":
        diffusers.export_directory(output, model, params)
    elif format_name == "taming":
        write_state(output, taming.export_state(model, params))
    else:
        save_tokenizer(output, model, params)


if __name__ == "__main__":
    run_command(main)
