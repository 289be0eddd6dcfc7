from rich.console import Console

from regvq_jax.evaluate.report import write_report
from regvq_jax.files import write_json_atomic


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
    # The picture of the last evaluation.
    assert (tmp_path / "run" / "codebook.png").read_bytes() == bytes([12])
    assert tmp_path / "run" / "codebook.png" in paths and str(stage) in text
