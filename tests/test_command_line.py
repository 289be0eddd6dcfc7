import sys

import pytest

from regvq_jax.command_line import Parser, positive, run_command
from regvq_jax.errors import UserError


def main(argv):
    """A program."""
    parser = Parser("a.program", main.__doc__)
    parser.add_argument("--count", type=positive, required=True)
    print(parser.parse_args(argv).count)


def test_a_program_runs_with_its_arguments(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["program", "--count=3"])
    run_command(main)
    assert capsys.readouterr().out == "3\n"


@pytest.mark.parametrize(
    "argument, words",
    [("--count=0", "0 is not a whole number of at least 1"), ("--number=1", "--count")],
)
def test_a_mistake_ends_in_one_sentence_and_code_2(argument, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["program", argument])
    with pytest.raises(SystemExit) as end:
        run_command(main)
    assert end.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and words in lines[0]
    with pytest.raises(UserError, match="see python -m a.program --help"):
        main([argument])
