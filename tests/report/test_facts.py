import shutil
import subprocess
from pathlib import Path

import jax
import pytest

import regvq_jax
from regvq_jax.files import write_json_atomic
from regvq_jax.report.facts import (
    Stage,
    codebook_size,
    describe_environment,
    describe_stage,
    group_config,
    read_commit,
    read_condition,
    read_stages,
)

CONFIG = {
    "seed": 0,
    "data.source": "emoji",
    "data.image_size": 64,
    "quantizer.name": "fsq",
    "quantizer.codebook_size": 1024,
    "quantizer.code_dim": 32,
    "loss.l1_weight": 1.0,
    "loss.l2_weight": 0.0,
    "loss.commitment_weight": 0.25,
    "loss.adversarial_weight": 0.1,
    "loss.adversarial_start_step": 100,
    "map_tokenizer.loss.name": "cross_entropy",
    "map_tokenizer.loss.prior_kl_weight": 0.05,
    "train.total_steps": 400,
    "train.batch_size": 16,
    "optim.lr": 1e-4,
    "optim.schedule": "cosine",
    "optim.warmup_steps": 0,
    "prior.name": "masked",
    "prior.model.depth": 2,
    "prior.model.dim": 32,
    "prior.model.num_heads": 4,
}
OVERVIEW = """+---+
| Name                    | Shape       | Dtype   | Size  |
+---+
| discriminator/Conv_0/b  | (16,)       | float32 | 16    |
| tokenizer/conv_out/bias | (3,)        | float32 | 3     |
| tokenizer/conv_out/k    | (3, 3, 16)  | float32 | 1,440 |
+---+
Total: 1,459 -- 5,836 bytes
"""


def test_what_a_tokenizer_is(tmp_path):
    (tmp_path / "parameters.txt").write_text(OVERVIEW)
    # Counted when it was judged: grids of codes do not read the config's number.
    write_json_atomic(tmp_path / "codebook.json", {"codebook_size": 1000})
    rows = [{"step": 1, "time": 86390.0, "train/l1": 1.0, "train/adversarial": 1.0}]
    rows += [{"step": 2, "time": 86400.0}]
    stage = Stage("tokenizer", "Tokenizer", tmp_path, {"seconds": 90.0, "perf/images_per_sec": 12.34}, rows)
    assert codebook_size(stage, CONFIG) == 1000
    assert dict(describe_stage(stage, CONFIG)) == {
        "data": "emoji at 64 px",
        "quantizer": "fsq, 1,000 codes",
        "loss weights": "l1 1, adversarial 0.1 from step 100",
        "parameters": "tokenizer 1,443, discriminator 16",
        "training": "400 steps of 16 images, 90 s, 12.34 images/s",
        "optimizer": "learning rate 0.0001, cosine",
        "seed": "0",
        "when": "1970-01-01 23:59 to 1970-01-02 00:00 UTC",
    }


def test_what_a_map_tokenizer_is(tmp_path):
    stage = Stage("map_tokenizer", "", tmp_path, {}, [{"step": 3, "train/prior_kl": 1.0}])
    described = dict(describe_stage(stage, CONFIG))
    assert described["loss weights"] == "cross entropy, prior kl 0.05"
    assert described["training"] == "not finished, at step 3" and codebook_size(stage, CONFIG) is None


def test_what_a_prior_is(tmp_path):
    (tmp_path / "tokens" / "train").mkdir(parents=True)
    meta = {"num_examples": 1000, "grid": [8, 4], "codebook_size": 16}
    write_json_atomic(tmp_path / "tokens" / "train" / "meta.json", meta)
    described = dict(describe_stage(Stage("prior", "", tmp_path / "prior", {}, []), CONFIG, "map_tokens"))
    assert described == {
        "data": "emoji at 64 px",
        "tokens": "1,000 images of 8x4 tokens, 16 codes",
        "prior": "masked",
        "told": "label maps, as tokens of their own",
        "network": "2 layers of width 32, 4 heads",
        "seed": "0",
    }


def test_a_config_of_nothing_is_described_by_nothing(tmp_path):
    for name in ("tokenizer", "map_tokenizer", "prior"):
        assert describe_stage(Stage(name, "", tmp_path, {}, []), {}) == []


def test_stages_and_conditions_are_read(tmp_path):
    assert read_stages(tmp_path) == [] and read_condition(tmp_path, {}) == ""
    (tmp_path / "prior").mkdir()
    (tmp_path / "prior" / "metrics.jsonl").write_text('{"step": 1, "x": "nan"}\n{"step":')
    (stage,) = read_stages(tmp_path)
    assert stage.result == {} and [row["step"] for row in stage.rows] == [1]
    assert read_condition(tmp_path, {"prior.condition": "class"}) == "class"
    assert read_condition(tmp_path, {"prior.condition": "auto"}) == ""
    write_json_atomic(tmp_path / "prior" / "facts.json", {"condition": "text"})
    assert read_condition(tmp_path, {"prior.condition": "auto"}) == "text"


def test_a_config_by_groups_as_one_would_write_it():
    config = {"seed": 0, "data.source": "emoji", "data.flip": False, "stages": ["a"], "x.y.z": "", "n": 16384}
    assert group_config(config) == [
        ("", [("seed", "0"), ("stages", "['a']"), ("n", "16384")]),
        ("data", [("source", "emoji"), ("flip", "False")]),
        ("x", [("y.z", "''")]),
    ]


def test_the_environment_names_versions_and_devices(monkeypatch):
    monkeypatch.setenv("REGVQ_JAX_SECRET", "do not tell")
    environment = dict(describe_environment())
    assert environment["regvq_jax"] == regvq_jax.__version__ and environment["jax"] == jax.__version__
    assert environment["devices"] == f"{jax.device_count()} x cpu"
    assert "do not tell" not in str(environment)


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_the_commit_of_this_package_and_of_no_other(tmp_path, monkeypatch):
    def git(*args):
        author = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", "-C", str(tmp_path), *author, *args], check=True, capture_output=True)
        return done.stdout.decode().strip()

    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (tmp_path / "other.txt").write_text("")
    monkeypatch.setattr(regvq_jax, "__file__", str(package / "__init__.py"))
    git("init", "--quiet")
    git("add", "other.txt")
    git("commit", "--quiet", "-m", "other")
    assert read_commit() == ""  # As in an environment inside of somebody's checkout.
    git("add", "package")
    git("commit", "--quiet", "-m", "package")
    commit = git("rev-parse", "HEAD")
    assert read_commit() == commit[:12]
    Path(package / "__init__.py").write_text("changed = 1")
    assert read_commit() == f"{commit[:12]}-dirty"
