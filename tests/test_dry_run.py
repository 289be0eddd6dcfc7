import gc
import io
import json

import jax
import pytest
from rich.console import Console

from regvq_jax import dry_run, step_costs
from regvq_jax.errors import UserError


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """(dry_run.json, what was printed, bytes that were left on devices) of a tiny prior on four devices."""
    from configs import quickstart

    config = quickstart.get_config("tiny")
    config.mesh.update(data=2, fsdp=-1)
    config.prior.model.update(dim=128)
    config.prior.condition = "none"
    config.prior.train.batch_size = 10
    workdir = tmp_path_factory.mktemp("dry") / "run"
    out, before = io.StringIO(), live_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_costs, "MAX_SEARCHES", 1)
        patch.setattr(dry_run, "Console", lambda: Console(file=out, width=200))
        assert dry_run.run(config, "4", 0.25, ("tokens", "prior", "report"), str(workdir)) == 0
    return json.loads((workdir / "dry_run.json").read_text()), out.getvalue(), live_bytes() - before


def live_bytes():
    gc.collect()
    return sum(x.nbytes for x in jax.live_arrays())


def test_the_report_adds_up(reports):
    (report,), _, _ = reports
    assert report["stage"] == "prior" and report["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1}
    # 10 rows do not go into four parts.
    assert (report["configured_batch_size"], report["batch_size"]) == (10, 8)
    memory = report["memory"]
    assert sum(memory.values()) == report["total_memory"] and memory["temporaries"] > 0
    assert memory["parameters"] < 4 * report["parameters"]["prior"] < 2.2 * memory["parameters"]
    # Each gradient is summed over all rows, each split parameter put together once.
    assert report["collectives"]["all-reduce"]["bytes"] >= 4 * report["parameters"]["prior"] / 2
    assert report["collectives"]["all-gather"]["bytes"] >= 4 * report["parameters"]["prior"] * 0.8
    assert report["largest_batch_size"] >= 8
    assert report["largest_batch_memory"] <= report["memory_limit"] == 2**28


def test_the_table_says_it(reports):
    (report,), shown, _ = reports
    assert "prior: 4 x cpu, data 2 x fsdp 2 x tensor 1" in shown
    assert "8 (10 asked for)" in shown and f"{report['parameters']['prior']:,}" in shown
    assert dry_run.gib(report["total_memory"]) in shown and f"{report['flops']:.4g}" in shown
    assert "all-gather a step" in shown and "largest batch for 0.25 GiB" in shown


def test_no_parameter_was_made(reports):
    assert reports[2] < 2**16


@pytest.mark.parametrize(
    "topology, message", [("v9z:3x3", "libtpu.* such as v5e:16x16"), ("0", "at least 1 device")]
)
def test_a_topology_that_cannot_be_is_refused(topology, message):
    with pytest.raises(UserError, match=message):
        dry_run.described_devices(topology)


def test_stages_that_train_nothing_are_named(tiny_config):
    with pytest.raises(UserError, match="none of the stages tokens, report trains.*tokenizer, map_tokenizer"):
        dry_run.run(tiny_config, "8", 80.0, ("tokens", "report"), None)


def test_the_process_starts_anew_with_more_devices(run_main):
    done = run_main(
        *("--config=configs/quickstart.py:tiny", "--stage=prior", "--dry_run=16", "--dry_run_memory=0.0001"),
        "--config.prior.condition=none",
    )
    assert done.returncode == 0, done.stderr
    assert "16 x cpu, data 16 x fsdp 1" in done.stdout and "none tried fits" in done.stdout
