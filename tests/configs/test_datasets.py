"""From a small copy of each true download to samples: prepare, train both stages, draw, as users do."""

import importlib
import subprocess
import sys

import numpy as np
import pytest

from regvq_jax import Tokenizer, stages
from regvq_jax.data import prepare
from regvq_jax.errors import UserError
from regvq_jax.files import read_json
from regvq_jax.trainers import build_data
from regvq_jax.workdir import open_workdir
from tests import miniatures

CUB_LISTS = {"trainvalclasses.txt": b"001.Black_footed_Albatross", "testclasses.txt": b"150.Sage_Thrasher"}
ROADS = {
    "coco": ("coco_captions/2014", miniatures.coco()),
    "cub": ("cub_captions", miniatures.cub() | CUB_LISTS),
    "ade20k": ("ade20k", miniatures.ade20k()),
    "celebahq": ("celeba_hq_mask/official", miniatures.celeba_hq()),
}


@pytest.fixture(scope="module")
def tokenizer_file(tiny_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.safetensors"
    Tokenizer.load(tiny_run[0]).save(path)
    return str(path)


@pytest.mark.parametrize("name", ROADS)
def test_from_the_download_to_samples(name, tokenizer_file, tmp_path, one_device_mesh, capsys):
    dataset, files = ROADS[name]
    raw = miniatures.write_zip(files, tmp_path / "raw.zip")
    data_dir = str(tmp_path / "data")
    prepare.main([dataset, "--raw", raw, f"--data_dir={data_dir}", "--allow_count_mismatch"])
    shown = capsys.readouterr().out
    assert "contact_sheet.png" in shown and f"--config.data.source=tfds:{dataset}" in shown

    config = importlib.import_module(f"configs.{name}").get_config()
    source = config.data.source
    config = importlib.import_module(f"configs.{name}").get_config("tiny")
    config.data.update(source=source, data_dir=data_dir)
    assert source == f"tfds:{dataset}"
    if name != "coco":  # One of them trains stage one, too.
        config.tokenizer = tokenizer_file
    workdir = open_workdir(str(tmp_path / "run"), config)
    stages.run(config, workdir, one_device_mesh, tuple(config.stages))
    result = read_json(workdir / "prior" / "result.json")
    assert np.isfinite(result["eval/prior/bits_per_token"])
    assert (workdir / "samples.png").stat().st_size > 0
    heldout = build_data.open_source(config, "heldout")
    assert read_json(workdir / "tokens" / "heldout" / "meta.json")["num_examples"] == len(heldout)


def test_a_set_is_prepared_once(tmp_path, capsys):
    raw = miniatures.write(miniatures.ade20k(), tmp_path / "raw")
    args = ["ade20k", "--raw", raw, f"--data_dir={tmp_path / 'data'}", "--allow_count_mismatch"]
    prepare.main(args)
    prepare.main(args)
    assert "is prepared already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["ade20kk"], 'no data set "ade20kk". Did you mean "ade20k"'),
        (["coco_captions/2015"], "has 2014, 2017"),
        (["ade20k/big"], "has no configs"),
        (["ade20k"], "ADEChallengeData2016.zip"),
        (["ade20k", "--raw", "nowhere"], "nowhere does not exist"),
    ],
)
def test_bad_arguments(args, message, tmp_path):
    with pytest.raises(UserError, match=message):
        prepare.main([*args, f"--data_dir={tmp_path}"])


def test_what_is_not_prepared_says_how_to(tmp_path):
    config = importlib.import_module("configs.ade20k").get_config()
    config.data.data_dir = str(tmp_path)
    with pytest.raises(UserError, match="python -m regvq_jax.data prepare ade20k --raw=PATH"):
        build_data.open_source(config, "train")


def test_the_command_line(tmp_path):
    def run(*args):
        command = [sys.executable, "-m", "regvq_jax.data", *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    shown = run("prepare", "--help")
    assert shown.returncode == 0 and "stuffthingmaps_trainval2017.zip" in shown.stdout, shown.stderr
    refused = run("prepare", "ade20k", f"--data_dir={tmp_path}")
    assert refused.returncode == 2 and refused.stderr.startswith("error: ade20k is made from files")
    assert "Traceback" not in refused.stderr
