"""The benchmark of trained priors, on a tiny run."""

import json
import shutil

import numpy as np
import pytest

from regvq_jax.bench import __main__ as bench
from regvq_jax.bench import priors
from regvq_jax.bench.measure import Measurement
from regvq_jax.errors import UserError


def test_a_run_and_its_figures(tiny_run, tmp_path, capsys):
    workdir, output = tiny_run[0], tmp_path / "priors.json"
    bench.main(["priors", str(workdir), "--images=18", "--repeats=2", "--seed=7", f"--json={output}"])
    printed = capsys.readouterr().out
    assert workdir.name in printed and "for 18 images" in printed and "seed 7" in printed
    [row] = json.loads(output.read_text())["rows"]
    result = json.loads((workdir / "prior" / "result.json").read_text())
    for field in ("bits_per_token", "loss", "loss_shuffled"):
        assert row[field] == result[f"eval/prior/{field}"]
    assert (row["prior"], row["condition"], row["tokens"]) == ("masked", "text", 64)
    assert row["train_steps"] == result["step"] and row["train_seconds"] == result["seconds"]
    assert row["compiles"] == 1 and row["repeats"] == 2 and row["seconds"] > 0
    assert row["rss_bytes"] > 2**20 and row["seconds"] == pytest.approx(np.mean(row["all_seconds"]))


def test_seeds_are_of_the_draws(tiny_run):
    workdir = tiny_run[0]
    inputs = priors.read_run(workdir, "a").inputs
    programs = [priors.sampling_program(workdir, inputs, 1, seed)() for seed in (0, 1, 0)]
    first, second, again = (program.run()["images"] for program in programs)
    np.testing.assert_array_equal(first, again)
    assert np.any(first != second)
    # The next draw has the next seed.
    np.testing.assert_array_equal(programs[0].run()["images"], second)


def test_tiny_draws_two_pictures_twice(tiny_run, monkeypatch):
    seen = []

    def measure(programs, limits):
        [program] = programs.values()
        seen.append((program.args[2:], limits.repeats))
        return {name: Measurement(failure="not drawn") for name in programs}

    monkeypatch.setattr(priors, "measure_in_turns", measure)
    bench.main(["priors", str(tiny_run[0]), "--tiny", "--against=none", "--seed=3"])
    assert seen == [((2, 3), 2)]


def test_other_tokenizers_are_pointed_out(tiny_run):
    run = priors.read_run(tiny_run[0], "a")
    # The first held-out captions, as ids.
    assert run.inputs.ndim == 2 and run.inputs.dtype == np.int32
    args = priors.make_parser().parse_args(["a", "b"])
    assert "DIFFERENT" not in priors.describe(args, [run, run], 0.0)
    assert "DIFFERENT TOKENIZERS" in priors.describe(args, [run, run._replace(tokenizer_hash="x")], 0.0)
    failed = priors.make_row(run, Measurement(failure="does not fit in 1 GiB"))
    assert failed["failure"] == "does not fit in 1 GiB" and "seconds" not in failed and failed["loss"] > 0


def test_mistakes(tiny_run, tmp_path):
    with pytest.raises(UserError, match="no config.json"):
        bench.main(["priors", str(tmp_path)])
    shutil.copy(tiny_run[0] / "config.json", tmp_path)
    with pytest.raises(UserError, match="has no finished prior"):
        bench.main(["priors", str(tmp_path)])
    with pytest.raises(UserError, match="No run to measure"):
        bench.main(["priors", str(tmp_path / "config.json")])
