import json

from rich.console import Console

from regvq_jax.files import write_json_atomic
from regvq_jax.report.closing import MAX_HISTORY_ROWS, codebook_history, write_report


def test_the_report_of_a_tokenizer_alone(tmp_path):
    stage = tmp_path / "run" / "tokenizer"
    (stage / "images").mkdir(parents=True)
    for step in (4, 12):
        (stage / "images" / f"codebook_{step:07d}.png").write_bytes(bytes([step]))
    write_json_atomic(stage / "result.json", {"step": 12, "codebook/usage": 0.75, "seconds": 1.0})
    console = Console(record=True, width=200)
    paths = write_report(tmp_path / "run", console)
    text = console.export_text()
    assert "75.0" in text and "prior" not in text
    assert paths[0] == tmp_path / "run" / "report.html" and paths[0].exists()
    # The picture of the last evaluation.
    assert (tmp_path / "run" / "codebook.png").read_bytes() == bytes([12])
    assert tmp_path / "run" / "codebook.png" in paths and str(stage) in text


def test_figures_that_are_not_finite_are_shown_as_such(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    figures = {"codebook/usage": float("nan"), "eval/reconstruction/psnr": float("inf")}
    write_json_atomic(tmp_path / "tokenizer" / "result.json", figures)
    console = Console(record=True, width=200)
    write_report(tmp_path, console)
    text = console.export_text()
    assert "nan" in text and "inf" in text


def test_the_history_runs_from_the_first_evaluation_to_the_last(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    lines = [{"step": 5, "train/loss": 1.0}]
    lines += [
        {"step": step, "codebook/usage": step / 1000, "codebook/perplexity": 7.25}
        for step in range(10, 210, 10)
    ]
    metrics.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    table = codebook_history(metrics)
    steps, usages, perplexities = (list(column.cells) for column in table.columns)
    assert len(steps) == MAX_HISTORY_ROWS and (steps[0], steps[-1]) == ("10", "200")
    assert (usages[0], usages[-1]) == ("1.0", "20.0") and perplexities[0] == "7.2"
    metrics.write_text(json.dumps(lines[1]) + "\n")
    assert list(codebook_history(metrics).columns[0].cells) == ["10"]
    metrics.write_text("")
    assert codebook_history(metrics).row_count == 0
