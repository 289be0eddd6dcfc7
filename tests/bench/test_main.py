"""The list of benchmarks, and the flags that they share."""

import argparse
import json

import pytest

from regvq_jax.bench import __main__ as bench
from regvq_jax.bench import flags, table
from regvq_jax.command_line import Parser
from regvq_jax.errors import UserError

COLUMNS = {"ms": ("seconds", lambda x: f"{x * 1e3:.0f}")}


def test_list_names_all(capsys):
    bench.main(["list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(bench.BENCHMARKS)


def test_a_missing_module_is_one_sentence(monkeypatch):
    monkeypatch.setitem(bench.BENCHMARKS, "data", ("not_there", ""))
    with pytest.raises(UserError, match="data is not part of this installation"):
        bench.main(["data"])


def test_both_files_hold_the_rows(tmp_path, capsys):
    parser = Parser("x")
    flags.add_shared_flags(parser, repeats=3)
    args = parser.parse_args([f"--json={tmp_path}/a", f"--output={tmp_path}/b.md"])
    assert (args.repeats, args.against) == (3, "torch")
    rows = [dict(n=1, name="x", failure="", seconds=0.25)]
    table.publish(args, rows, COLUMNS, "caption", ("n", "name"))
    assert json.loads((tmp_path / "a").read_text()) == {"about": "caption", "rows": rows}
    assert "| 1 | x | 250 |" in (tmp_path / "b.md").read_text()
    assert "250" in capsys.readouterr().out


def test_torch_is_left_out_where_it_is_not(capsys):
    args = argparse.Namespace(tiny=False, against="none")
    assert not flags.wants_torch(args)
    args.against = "torch"
    assert not flags.wants_torch(args, "no_such_module")
    assert "no no_such_module here" in capsys.readouterr().out
    args.tiny = True
    assert not flags.wants_torch(args)


def test_spread_in_milliseconds():
    assert table.spread([0.5, 0.25, 1.5]) == "250..1,500"
