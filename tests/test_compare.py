"""The ladder's table, and what must not stand in one table."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from regvq_jax import compare
from regvq_jax.errors import UserError
from regvq_jax.files import read_json, write_json_atomic

FIGURES = {
    "eval/reconstruction/images": 100.0,
    "eval/reconstruction/psnr": 20.0,
    "eval/reconstruction/l1": 0.25,
    "codebook/usage": 0.5,
    "codebook/perplexity": 1.0,
    "codebook/tokens": 2500.0,
    "step": 8,
    "perf/images_per_sec": 30.0,
}


def make_run(config, name, **figures):
    return compare.Run(name, name, config, FIGURES | {"codebook_size": 4} | figures, np.array([5, 5, 0, 0]))


@pytest.fixture
def runs(tiny_config):
    better = {
        "eval/reconstruction/psnr": 21.0,
        "eval/reconstruction/l1": 0.2,
        "eval/reconstruction/lpips_vgg16": 0.3,
        "codebook/usage": 0.50001,
        "step": 9,
    }
    return [make_run(tiny_config, "plain"), make_run(tiny_config, "better", **better)]


def test_the_best_of_each_column_is_marked(runs):
    cells = compare.table_cells(runs)
    assert cells["codes"] == [("4", False), ("4", False)]
    assert cells["PSNR, dB"] == [("20.00", False), ("21.00", True)]
    assert cells["L1"] == [("0.2500", False), ("0.2000", True)]
    assert cells["LPIPS (VGG)"] == [("-", False), ("0.3000", True)]
    assert cells["usage, %"] == [("50.0", True), ("50.0", True)]  # what reads the same is the same
    assert cells["tokens"] == [("2,500", False), ("2,500", False)]
    assert cells["steps"] == [("8", False), ("9", False)]
    assert "LPIPS (Alex)" not in cells
    assert not any(best for column in compare.table_cells(runs[:1]).values() for _, best in column)


def test_distances_of_sets_have_columns_named_by_their_protocol(tiny_config):
    figures = {"eval/reconstruction/ssim": 0.5, "eval/reconstruction/kid_toy": 0.02}
    others = {"eval/reconstruction/kid_toy_std": 0.001, "eval/generation/fid_toy": 9.0}
    runs = [
        make_run(tiny_config, "a", **figures, **others),
        make_run(tiny_config, "b", **figures, **{"eval/reconstruction/fid_torch_fidelity": 12.5}),
    ]
    cells = compare.table_cells(runs)
    assert cells["rKID (toy)"] == [("0.0200", True), ("0.0200", True)]
    assert cells["rFID (torch_fidelity)"] == [("-", False), ("12.50", True)]
    assert [label for label in cells if label.startswith("r")] == ["rKID (toy)", "rFID (torch_fidelity)"]


def test_the_table_reads_the_same_everywhere(runs):
    console = Console(record=True, width=compare.MIN_WIDTH, file=io.StringIO())
    console.print(compare.rich_table(runs))
    text, page = console.export_text(), compare.markdown(runs)
    for words in ("100 held-out images of emoji-grounds at 32 px", "plain", "better", "perplexity"):
        assert words in text and words in page
    assert "21.00*" in text and "20.00*" not in text
    assert "| better | 4 | **21.00** | **0.2000** |" in page


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("image_size", 64, "config.data.image_size is 32 in the first and 64 in the second"),
        ("source", "emoji", "config.data.source is emoji-grounds in the first and emoji in the second"),
    ],
)
def test_runs_of_other_data_are_refused(runs, field, value, words):
    other = runs[1].config.copy_and_resolve_references()
    other.data[field] = value
    with pytest.raises(UserError, match=f"plain and better cannot be compared: {words}"):
        compare.check_comparable([runs[0], make_run(other, "better")])


def test_runs_judged_on_other_images_are_refused_and_speed_settings_are_not(runs):
    other = runs[1].config.copy_and_resolve_references()
    other.data.num_threads = 7
    compare.check_comparable([runs[0], make_run(other, "better")])
    fewer = make_run(other, "fewer", **{"eval/reconstruction/images": 50.0})
    with pytest.raises(UserError, match="number of held-out images is 100.0 in the first and 50.0"):
        compare.check_comparable([runs[0], fewer])


def test_two_runs_side_by_side(tiny_run, tmp_path, capsys):
    first = tmp_path / "first"
    shutil.copytree(tiny_run[0], first, ignore=shutil.ignore_patterns("prior", "tokens"))
    second = tmp_path / "deeper" / "second"
    shutil.copytree(first, second)
    result = second / "tokenizer" / "result.json"
    write_json_atomic(result, read_json(result) | {"eval/reconstruction/psnr": 99.0})
    output = tmp_path / "out"
    arguments = [str(first), str(second), f"--output={output}", "--num-images=3"]
    compare.main(arguments)
    printed = capsys.readouterr().out
    assert "99.00*" in printed and "first" in printed and "deeper/second" in printed
    for name in (compare.TABLE, compare.RECONSTRUCTIONS, compare.CODEBOOKS):
        assert str(output / name) in printed and (output / name).stat().st_size > 500
        assert name == compare.TABLE or name in (output / compare.TABLE).read_text()
    with Image.open(output / compare.RECONSTRUCTIONS) as sheet:
        rows = np.asarray(sheet).astype(int)
    # Three lines of 3 images; the two runs are copies, so that the second and the third are equal.
    scale, gap = 3 * 32, 4
    top, left = 12, rows.shape[1] - 12 - (3 * scale + 2 * gap)
    original, once, again = (
        rows[top + line * (scale + gap) :][:scale, left : left + scale] for line in range(3)
    )
    np.testing.assert_array_equal(once, again)
    assert np.any(original != once)

    # A glob finds the comparison, too.
    compare.main([*arguments[:2], str(output / compare.TABLE), *arguments[2:]])


def test_an_unfinished_run_is_refused(tiny_config, tmp_path):
    write_json_atomic(tmp_path / "config.json", json.loads(tiny_config.to_json_best_effort()))
    with pytest.raises(UserError, match="has no finished tokenizer"):
        compare.main([str(tmp_path), f"--output={tmp_path / 'out'}"])
    with pytest.raises(UserError, match="No run to compare"):
        compare.main([str(tmp_path / "config.json"), f"--output={tmp_path / 'out'}"])
