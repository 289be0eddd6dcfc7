"""The list of benchmarks, and the flags that they share."""

import argparse
import importlib
import json
import sys
from types import SimpleNamespace

import pytest

from regvq_jax.bench import __main__ as bench
from regvq_jax.bench import flags, table
from regvq_jax.bench.measure import Limits, Measurement
from regvq_jax.command_line import Parser
from regvq_jax.errors import UserError

COLUMNS = {"ms": ("seconds", lambda x: f"{x * 1e3:.0f}")}
RIVALLED = ("tokenizer", "quantizer", "prior", "decode", "data", "evaluate")
NO_CUDA = "JAX runs on a GPU here, and torch finds no CUDA; a torch with CUDA (pytorch.org) brings it"


@pytest.fixture
def pretend(monkeypatch):
    """Makes the flags see a backend of JAX, and a torch with or without CUDA, whatever is here."""

    def put(backend, has_cuda=False, missing=()):
        torch = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: has_cuda))
        monkeypatch.setitem(sys.modules, "torch", torch)
        monkeypatch.setattr(flags, "jax", SimpleNamespace(default_backend=lambda: backend))
        find_spec = lambda name: None if name in missing else name
        monkeypatch.setattr(flags, "importlib", SimpleNamespace(util=SimpleNamespace(find_spec=find_spec)))

    return put


@pytest.fixture
def run_unmeasured(monkeypatch, tmp_path, capsys):
    """Runs a benchmark without measuring: (its programs, what it printed, its JSON)."""

    def run(name, *arguments):
        module = importlib.import_module(f"regvq_jax.bench.{bench.BENCHMARKS[name][0]}")
        programs = {}

        def measure(new, limits):
            programs.update(new)
            return {name: Measurement(failure="not measured") for name in new}

        monkeypatch.setattr(module, "measure_in_turns", measure)
        peaks = dict(matmul_peak=lambda dtype: 1.0, memory_bandwidth=lambda: 1.0)
        for name_of_peak, peak in (peaks | dict(check_equal=lambda *_: 1)).items():
            monkeypatch.setattr(module, name_of_peak, peak, raising=False)
        monkeypatch.setattr("importlib.metadata.version", lambda package: "1.0")
        module.main([*arguments, f"--json={tmp_path}/a.json"])
        printed = " ".join(capsys.readouterr().out.split())
        return programs, printed, json.loads((tmp_path / "a.json").read_text())

    return run


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


def test_the_rival_runs_where_jax_does(pretend, capsys):
    args = argparse.Namespace(against="torch")
    for backend, device in (("cpu", "cpu"), ("gpu", "cuda")):
        pretend(backend, has_cuda=True)
        assert flags.find_rival(args) == (device, f"torch on {device}")
    assert flags.find_rival(args, backend="cpu").device == "cpu"
    assert flags.find_rival(argparse.Namespace(against="none")) == (
        None,
        "the rival is left out: not asked for",
    )
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "backend, missing, reason",
    [
        ("cpu", {"torch"}, "no torch here; pip install -e '.[parity]' brings it"),
        (
            "gpu",
            {"torch", "torch_fidelity"},
            "no torch, torch_fidelity here; pip install -e '.[parity]' && "
            "pip install --no-deps torch-fidelity==0.4.0 brings it",
        ),
        ("gpu", (), NO_CUDA),
        ("tpu", (), "JAX runs on a TPU here, and torch does not"),
    ],
)
def test_why_the_rival_is_left_out(backend, missing, reason, pretend, capsys):
    pretend(backend, missing=missing)
    rival = flags.find_rival(argparse.Namespace(against="torch"), "torch_fidelity")
    assert rival == (None, f"the rival is left out: {reason}")
    assert capsys.readouterr().out == f"The rival is left out: {reason}.\n"


@pytest.mark.parametrize("name", RIVALLED)
def test_every_rival_runs_on_the_gpu_of_jax_or_says_why_not(name, pretend, run_unmeasured):
    on_gpu = name != "data"  # Which everybody reads on a CPU.
    devices = lambda programs: {x for p in programs.values() for x in p.args if x in ("cpu", "cuda")}
    pretend("gpu", has_cuda=True)
    programs, printed, figures = run_unmeasured(name, "--tiny", "--against=torch")
    assert devices(programs) == ({"cuda"} if on_gpu else set())
    place = "torch on cuda" if on_gpu else "torch on cpu"
    assert place in figures["about"] and place in printed
    pretend("gpu")
    fewer, printed, figures = run_unmeasured(name, "--tiny", "--against=torch")
    if on_gpu:
        assert programs.keys() > fewer.keys() and not devices(fewer)
        assert f"the rival is left out: {NO_CUDA}" in figures["about"]
        # At once, and below the table.
        assert printed.startswith(f"The rival is left out: {NO_CUDA}.") and printed.count(NO_CUDA) == 2
    else:
        assert programs.keys() == fewer.keys() and place in printed


def test_tiny_is_for_what_is_not_given(pretend):
    pretend("cpu")
    parser = Parser("x")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512])
    parser.add_argument("--batch", type=int, default=8)
    flags.add_shared_flags(parser, repeats=5)
    tiny = dict(sizes=[4], batch=2, repeats=1, hidden=3)
    parsed = lambda *argv: flags.parse(parser, argv, tiny)
    args = parsed()
    assert (args.sizes, args.batch, args.repeats, args.against) == ([512], 8, 5, "torch")
    args = parsed("--tiny", "--batch=8", "--repeats", "5")
    assert (args.sizes, args.batch, args.repeats, args.hidden, args.against) == ([4], 8, 5, 3, "none")
    assert flags.find_rival(args).device is None
    assert flags.find_rival(parsed("--tiny", "--against=torch")).device == "cpu"


@pytest.mark.parametrize(
    "name, given, caption",
    [
        ("tokenizer", ["--size=32", "--repeats=3"], "2 images of 32x32 px; 8 channels"),
        ("quantizer", ["--codes", "16", "--batch=3"], "48 positions [3, 4, 4] of 8 dimensions"),
        ("prior", ["--dim=48"], "2 sequences of 16 tokens of 64 codes; dim 48, depth 2"),
        ("decode", ["--dim=48"], "sequences of 64 codes; dim 48, depth 2"),
        ("data", ["--sizes", "640 x 480"], "medians of up to 2 repeats"),
        ("evaluate", ["--statistics=1200"], "2 sets of 1,200 features of 64 dimensions"),
    ],
)
def test_given_sizes_win_over_tiny_ones(name, given, caption, run_unmeasured):
    _, printed, figures = run_unmeasured(name, "--tiny", *given)
    assert caption in figures["about"] and caption in printed
    assert f"median of up to {3 if name == 'tokenizer' else 2}" in printed.replace("edians", "edian").lower()
    if name == "data":
        assert {row["size"] for row in figures["rows"]} == {"640 x 480"}


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
