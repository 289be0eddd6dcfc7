import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from regvq_jax.files import write_json_atomic
from regvq_jax.report import page as page_module
from regvq_jax.report.page import find_pictures, place, split_groups, write_html
from regvq_jax.report.tables import Figure, Group

HOSTILE = "<script>alert('x')</script>\"'&<img src=http://example.org/x onerror=alert(1)>"
VOID = {"meta", "link", "img", "br", "hr", "input"}
CONFIG = {
    "seed": 7,
    "tokenizer": "",
    "data": {"source": "folder:/data/photos", "image_size": 32},
    "quantizer": {"name": "regularized", "codebook_size": 16, "code_dim": 4},
    "loss": {"l1_weight": 1.0, "codebook_weight": 0.5},
    "prior": {"name": "masked", "condition": "auto"},
    "sample": {"captions": ["a red heart", HOSTILE], "guidance": 3.5},
}
TOKENIZER_ROWS = [
    {"step": 1, "time": 0.0, "train/loss": 2.0, "train/l1": 1.0, "codebook/train_usage": 0.5},
    {"step": 2, "time": 60.0, "train/loss": 1.0, "train/l1": 0.5, "codebook/train_usage": 0.75},
    {"step": 2, "time": 61.0, "eval/reconstruction/psnr": 20.5, "codebook/usage": 0.875},
]
TOKENIZER_RESULT = {"step": 2, "seconds": 5.0, "eval/reconstruction/psnr": 20.5, "codebook/usage": 0.875}
PRIOR_ROWS = [{"step": 1, "train/loss": 3.0}, {"step": 2, "eval/prior/loss": 2.5}]
PRIOR_RESULT = {"step": 2, "seconds": 5.0, "eval/prior/loss": 2.5, "eval/prior/bits_per_token": 3.607}


class Page(HTMLParser):
    """What a page holds; refuses tags that are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.links, self.images, self.attributes = [], [], [], [], []
        self.words, self._open = [], []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        self.attributes += attributes
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values["href"]] if "href" in values else []
        self.images += [values] if tag == "img" else []
        self._open += [tag] if tag not in VOID else []

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] != "style" and data.strip():
            self.words.append(" ".join(data.split()))

    @property
    def text(self):
        return "\n".join(self.words)


def save_picture(path, size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path)


def save_stage(workdir, name, rows, result):
    (workdir / name).mkdir(parents=True)
    lines = (json.dumps(row) for row in rows)
    (workdir / name / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    if result is not None:
        write_json_atomic(workdir / name / "result.json", result)


def save_evaluation(workdir, name, **record):
    (workdir / "results").mkdir(exist_ok=True)
    write_json_atomic(workdir / "results" / f"{name}.json", record)


def read(workdir):
    text = write_html(workdir).read_text()
    page = Page(text)
    # What holds for every page, whatever the run has left.
    assert page.tags.count("script") == 0 and not any(name.startswith("on") for name, _ in page.attributes)
    assert len(set(page.ids)) == len(page.ids)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    sources = page.links + [image["src"] for image in page.images]
    sources += re.findall(r"url\(([^)]*)\)", text)
    assert all(source.startswith(("#", "data:")) for source in sources)
    for image in page.images:
        kind, content = re.fullmatch(r"data:image/([a-z+]+);base64,(.+)", image["src"]).groups()
        assert kind in ("png", "webp", "svg+xml") and base64.b64decode(content, validate=True)
        assert image["alt"].strip() and int(image["width"]) > 0 and int(image["height"]) > 0
    assert str(workdir.parent) not in text
    return page


@pytest.fixture
def run(tmp_path):
    """The workdir of a run with both trainings and their pictures."""
    workdir = tmp_path / "run"
    save_stage(workdir, "tokenizer", TOKENIZER_ROWS, TOKENIZER_RESULT)
    save_stage(workdir, "prior", PRIOR_ROWS, PRIOR_RESULT)
    write_json_atomic(workdir / "config.json", CONFIG)
    write_json_atomic(workdir / "prior" / "facts.json", {"condition": "text"})
    save_picture(workdir / "tokenizer" / "images" / "reconstructions_0000002.png")
    save_picture(workdir / "prior" / "images" / "samples_0000002.png")
    return workdir


def test_a_whole_run_has_every_section(run):
    page = read(run)
    sections = ["trained", "figures", "pictures", "curves", "environment", "config"]
    assert [name for name in page.ids if name in sections] == sections
    for part in ("figures-tokenizer", "pictures-tokenizer-reconstructions", "pictures-prior-samples"):
        assert f"#{part}" in page.links
    words = page.words
    # The strip, the table, the curves' legend.
    assert "20.55" not in words and words.count("20.50") == 2 and "87.5 %" in words and "87.5" in words
    assert "of 16 codes" in words and "held-out" in words
    # What was trained; a weight that no loss term of the training had is not among its weights.
    assert "l1 1" in words and "folder:/data/photos at 32 px" in words
    assert "regularized, 16 codes of 4 dimensions" in page.text
    assert "a red heart" in words and "guidance 3.5" in page.text


def test_other_peoples_texts_are_only_texts(run):
    save_picture(run / "prior" / "images" / "<b>&'odd'_0000003.png")
    save_evaluation(
        run,
        HOSTILE.replace("/", "-"),
        metrics={HOSTILE: 1.5},
        protocols={HOSTILE: {HOSTILE: HOSTILE}},
        settings={HOSTILE: HOSTILE},
        warnings=[HOSTILE],
    )
    config = {**CONFIG, "data": {"source": HOSTILE}, HOSTILE: {HOSTILE: HOSTILE}}
    write_json_atomic(run / "config.json", config)
    page = read(run)
    assert len(page.images) == 3 + 6  # Pictures, charts; none of HOSTILE's.
    assert page.text.count(HOSTILE) >= 6
    assert "<b>&'odd'" in page.words


def test_nothing_at_all_gives_no_empty_sections(tmp_path):
    (tmp_path / "run").mkdir()
    page = read(tmp_path / "run")
    assert page.ids == ["environment"] and not page.images


def test_a_tokenizer_alone(tmp_path):
    save_stage(tmp_path / "run", "tokenizer", TOKENIZER_ROWS, TOKENIZER_RESULT)
    page = read(tmp_path / "run")
    assert "pictures" not in page.ids and "config" not in page.ids
    assert "figures-tokenizer" in page.ids and "prior" not in page.text.lower()


def test_a_prior_over_a_tokenizer_from_a_file(tmp_path):
    save_stage(tmp_path / "run", "prior", PRIOR_ROWS, PRIOR_RESULT)
    config = {**CONFIG, "tokenizer": "/models/emoji.safetensors"}
    write_json_atomic(tmp_path / "run" / "config.json", config)
    page = read(tmp_path / "run")
    assert "emoji.safetensors" in page.words
    assert [name for name in page.ids if name.startswith("curves")] == ["curves", "curves-prior"]
    assert "3.607" in page.words


def test_a_training_that_goes_on(tmp_path):
    config = {**CONFIG, "train": {"total_steps": 1000, "batch_size": 4}}
    save_stage(tmp_path / "run", "tokenizer", TOKENIZER_ROWS, None)
    write_json_atomic(tmp_path / "run" / "config.json", config)
    page = read(tmp_path / "run")
    assert "1,000 steps of 4 images, not finished, at step 2" in page.words
    assert "figures" not in page.ids and "curves" in page.ids


def test_evaluations_stand_with_their_protocols_and_warnings(run):
    save_evaluation(
        run,
        "reconstruction",
        metrics={
            "eval/reconstruction/psnr": 21.125,
            "eval/reconstruction/kid_lite0": 0.0125,
            "eval/reconstruction/kid_lite0_std": 0.0005,
        },
        protocols={"lite0": {"network": "lite", "weights_sha256": 64 * "a"}},
        settings={"split": "heldout", "crop": {"size": 32}, "drawn": [str(run / "prior" / "drawn")]},
        versions={"jax": "0.10"},
        warnings=["Too few images."],
        step=2,
        seconds=3.0,
    )
    page = read(run)
    words = page.words
    assert "0.0125 ± 0.0005" in words and "eval/reconstruction/kid_lite0_std" not in words
    assert "lite0" in words and f"network lite; weights sha256 {12 * 'a'}…" in words
    assert "Too few images." in words and "After 2 steps, took 3 s." in words
    assert '["prior/drawn"]' in words and "crop.size" in words and 64 * "a" in words  # Unfolded, all of it.
    # Its PSNR is shown in the place of the training's own, also in the strip.
    assert words.count("21.12") == 2 and words.count("eval/reconstruction/psnr") == 1


def test_files_that_are_broken_or_hold_no_numbers(run):
    (run / "results").mkdir()
    (run / "results" / "cut.json").write_text('{"metrics": {')
    (run / "results" / "list.json").write_text("[1]")
    save_evaluation(run, "nan", metrics={"eval/nan/fid_x": float("nan"), "eval/nan/y": None}, seconds=None)
    rows = [{"step": 1, "train/loss": "nan"}, {"step": 2, "train/loss": 1.0}]
    rows += [{"step": 2, "eval/reconstruction/psnr": "inf"}]
    (run / "tokenizer" / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    write_json_atomic(run / "tokenizer" / "result.json", {**TOKENIZER_RESULT, "codebook/usage": float("nan")})
    page = read(run)
    assert "results/cut.json is not valid JSON" in page.text and "list.json holds no figures." in page.words
    assert "nan %" in page.words and "nan" in page.words
    assert "PSNR of held-out images, dB" not in page.words  # There is no value to draw.


def test_the_newest_readable_picture_of_every_name(tmp_path):
    images = tmp_path / "prior" / "images"
    for step in (9, 10):
        save_picture(images / f"samples_{step}.png", (step, 5))
    save_picture(images / "without_a_step.png")
    save_picture(tmp_path / "results" / "sweep_0000003.png")
    whole = (images / "samples_10.png").read_bytes()
    (images / "samples_0000011.png").write_bytes(whole[: len(whole) // 2])  # Cut off by a kill.
    pictures = find_pictures(tmp_path, "map")
    assert [(x.name, x.title, x.file) for x in pictures] == [
        ("prior-samples", "Samples", "prior/images/samples_10.png"),
        ("prior-without_a_step", "Without a step", "prior/images/without_a_step.png"),
        ("results-sweep", "Sweep", "results/sweep_0000003.png"),
    ]
    assert pictures[0].caption == f"{page_module.SAMPLES['map']}. Step 10."
    assert (pictures[0].width, pictures[0].height) == (10, 5)
    assert pictures[0].uri == page_module.data_uri("png", whole)
    assert pictures[1].caption.endswith(".") and "Step" not in pictures[1].caption


def test_large_pictures_are_compressed(tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "MAX_PICTURE_BYTES", 1000)
    monkeypatch.setattr(page_module, "MAX_PICTURE_WIDTH", 50)
    noise = np.random.default_rng(0).integers(0, 256, (40, 100, 3), dtype=np.uint8)
    (tmp_path / "prior" / "images").mkdir(parents=True)
    Image.fromarray(noise).save(tmp_path / "prior" / "images" / "samples_1.png")
    (picture,) = find_pictures(tmp_path)
    kind, content = re.fullmatch(r"data:image/(\w+);base64,(.*)", picture.uri).groups()
    assert kind == "webp" and (picture.width, picture.height) == (50, 20)
    assert Image.open(io.BytesIO(base64.b64decode(content))).size == (50, 20)


def test_long_tables_are_split_within_groups():
    figures = [Figure(str(i), "0", str(i)) for i in range(5)]
    groups = [Group("a", "", figures[:2]), Group("b", "", figures[2:])]
    first, others = split_groups(groups, 3)
    assert [(g.protocol, len(g.figures)) for g in first] == [("a", 2), ("b", 1)]
    assert [(g.protocol, len(g.figures)) for g in others] == [("b", 2)]
    assert split_groups(groups, 5) == (groups, [])


def test_places_are_different_for_different_names():
    assert place("figures", "a-b_C9") == "figures-a-b_C9"
    names = ["a b", "a.b", "a.20.b", "ä", "a"]
    assert len({place("x", name) for name in names}) == len(names)
    assert all(re.fullmatch(r"[\w.-]+", place("x", name), re.ASCII) for name in names)
