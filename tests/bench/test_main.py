"""The list of benchmarks, and the flags that they share."""

import argparse
import importlib
import json

import pytest

from regvq_jax.bench import __main__ as bench
from regvq_jax.bench import flags, table
from regvq_jax.bench.measure import Limits
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
    assert flags.make_limits(args) == Limits(repeats=3, seconds=300, memory_bytes=16 * 2**30)
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
    assert "no_such_module here" in capsys.readouterr().out
    args.tiny = True
    assert not flags.wants_torch(args)


def test_what_brings_a_missing_rival(monkeypatch, capsys):
    missing = {"torch", "torch_fidelity"}
    monkeypatch.setattr(flags.importlib.util, "find_spec", lambda name: None if name in missing else name)
    args = argparse.Namespace(tiny=False, against="torch")
    assert not flags.wants_torch(args, "torch_fidelity")
    assert capsys.readouterr().out == (
        "The rival is left out: no torch, torch_fidelity here; pip install -e '.[parity]' && "
        "pip install --no-deps torch-fidelity==0.4.0 brings it.\n"
    )
    missing.clear()
    assert flags.wants_torch(args, "torch_fidelity") and capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["compile", "priors"])
def test_what_has_no_rival_cannot_be_asked_for_one(name):
    with pytest.raises(UserError, match="--against: invalid choice: 'torch'"):
        bench.main([name, "--against=torch"])


@pytest.mark.parametrize("name", bench.BENCHMARKS)
def test_flags_and_columns_of_all(name):
    module = importlib.import_module(f"regvq_jax.bench.{bench.BENCHMARKS[name][0]}")
    shared = ["--against=none", "--repeats=2", "--seed=3", "--time-limit=4", "--memory-limit=5", "--tiny"]
    shared += ["--json=a", "--output=b.md"]
    args = module.make_parser().parse_args(shared + (["run"] if name == "priors" else []))
    assert (args.against, args.seed, args.tiny, args.output.name) == ("none", 3, True, "b.md")
    assert flags.make_limits(args) == Limits(2, 4, 5 * 2**30)
    assert module.COLUMNS["RSS MiB"][0] == "rss_bytes" and module.COLUMNS["least..most"][0] == "all_seconds"


@pytest.mark.parametrize(
    "seconds, text",
    [(0.0, "0.00"), (0.00184, "1.84"), (0.01, "10.0"), (0.0156, "15.6"), (0.1, "100"), (1.5, "1,500")],
)
def test_short_times_have_decimals(seconds, text):
    assert table.milliseconds(seconds) == text


def test_forms_of_figures():
    assert table.spread([0.5, 0.25, 1.5]) == "250..1,500"
    assert table.spread([0.0104, 0.0094]) == "9.40..10.4"
    assert table.mebibytes(1234.4 * 2**20) == "1,234"


@pytest.mark.parametrize("name", [name for name in bench.BENCHMARKS if name != "compile"])
def test_medians_have_the_form_of_their_spread(name):
    columns = importlib.import_module(f"regvq_jax.bench.{bench.BENCHMARKS[name][0]}").COLUMNS
    assert columns["drawn ms" if name == "priors" else "ms"] == ("seconds", table.milliseconds)
