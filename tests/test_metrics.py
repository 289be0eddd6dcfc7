import importlib.util
import json
import math
import os
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from regvq_jax.errors import UserError
from regvq_jax.metric_writers import JsonlWriter, flatten_hparams, read_jsonl, to_uint8_batch
from regvq_jax.metrics import Occasional, average, first_nonfinite, make_writer


def test_average_is_over_the_steps_that_have_the_metric():
    metrics = [
        {"loss": jnp.float32(1.0), "d": jnp.float32(5.0)},
        {"loss": jnp.float32(2.0)},
        {"loss": 6.0},
    ]
    means = average(metrics)
    assert means == {"loss": 3.0, "d": 5.0}
    assert all(type(value) is float for value in means.values())
    assert average([]) == {}
    assert math.isnan(average([{"loss": 1.0}, {"loss": jnp.nan}])["loss"])


def test_what_a_step_does_not_have_is_not_averaged():
    """Neither as 0, nor as a reason to stop; a window in which no step has it is without the metric."""
    absent, present = (Occasional(jnp.float32(x), jnp.float32(p)) for x, p in ((jnp.nan, 0), (3.0, 1)))
    assert average([{"a": 1.0, "d": absent}, {"a": 3.0, "d": present}]) == {"a": 2.0, "d": 3.0}
    assert average([{"a": 1.0, "d": absent}]) == {"a": 1.0}
    assert first_nonfinite([{"d": absent}, {"d": present}], 5) is None
    assert first_nonfinite([{"d": absent}, {"d": Occasional(jnp.inf, jnp.float32(1))}], 5) == (6, "d")


def test_first_nonfinite():
    metrics = [
        {"a": jnp.float32(1.0), "b": 2.0},
        {"a": jnp.float32(1.0), "b": jnp.inf},
        {"a": jnp.nan},
    ]
    assert first_nonfinite(metrics, 40) == (41, "b")
    assert first_nonfinite(metrics[:1], 40) is None
    assert first_nonfinite([], 0) is None


def test_jsonl_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = JsonlWriter(path)
    writer.write_scalars(
        1, {"train/loss": jnp.float32(0.5), "n": np.int64(3), "bad": math.nan, "big": -math.inf}
    )
    writer.write_texts(2, {"note": 'a "quoted"\nline'})
    lines = path.read_text().splitlines()  # before any flush

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    first = json.loads(lines[0], parse_constant=refuse)
    assert abs(first.pop("time") - path.stat().st_mtime) < 60
    assert first == {"step": 1, "train/loss": 0.5, "n": 3, "bad": "nan", "big": "-inf"}
    assert json.loads(lines[1])["note"] == 'a "quoted"\nline'
    writer.close()
    back = read_jsonl(path)
    assert math.isnan(back[0]["bad"]) and back[0]["big"] == -math.inf and len(back) == 2


def test_jsonl_resume_drops_what_is_written_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = JsonlWriter(path)
    for step in (10, 20, 30):
        writer.write_scalars(step, {"loss": step})
    writer.close()
    with path.open("a") as file:
        file.write('{"step": 15, "lo')  # a kill in mid-line

    writer = JsonlWriter(path, resume_step=20)
    writer.write_scalars(30, {"loss": 31})
    writer.close()
    steps_and_losses = [(line["step"], line["loss"]) for line in read_jsonl(path)]
    assert steps_and_losses == [(10, 10), (20, 20), (30, 31)]
    JsonlWriter(path).close()
    assert len(read_jsonl(path)) == 3
    JsonlWriter(path, resume_step=0).close()
    assert path.read_text() == ""
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk(tmp_path):
    writer = JsonlWriter(tmp_path / "metrics.jsonl")
    writer.close()
    writer._file = Path("/dev/full").open("a")
    with pytest.raises(UserError, match="Cannot write .*metrics.jsonl: No space left on device"):
        writer.write_scalars(1, {"loss": 1.0})


def test_disabled_writer_writes_nothing(tmp_path):
    writer = make_writer(tmp_path / "run", enabled=False)
    writer.write_scalars(1, {"loss": 1.0})
    writer.write_images(1, {"x": np.zeros((1, 2, 2, 3))})
    writer.write_hparams({"a": 1})
    writer.flush()
    writer.close()
    assert not (tmp_path / "run").exists()


def test_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write .*file/run: Not a directory"):
        make_writer(tmp_path / "file" / "run")


def test_to_uint8_batch():
    floats = np.array([-0.5, 0.0, 0.5, 1.0, 1.5, 0.1]).reshape(1, 2, 3)
    out = to_uint8_batch(floats)
    assert out.shape == (1, 1, 2, 3) and out.dtype == np.uint8
    assert out.ravel().tolist() == [0, 0, 128, 255, 255, 26]
    images = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    np.testing.assert_array_equal(to_uint8_batch(images), images)


def test_flatten_hparams():
    nested = {"optim": {"lr": 0.1, "betas": (0.9, 0.99)}, "seed": 3, "ema": None, "fast": True}
    assert flatten_hparams(nested) == {
        "optim.lr": 0.1, "optim.betas": "(0.9, 0.99)", "seed": 3, "ema": "None", "fast": True,
    }  # fmt: skip


# Writes one of everything, then resumes at step 10; "without" hides tensorflow.
WRITE = """
    import logging, sys, time
    if sys.argv[2] == "without":
        sys.modules["tensorflow"] = None
    import jax.numpy as jnp, numpy as np
    from regvq_jax.metrics import make_writer

    logging.basicConfig(level=logging.DEBUG, stream=sys.stdout, format="%(message)s")
    logging.getLogger("jax").setLevel(logging.WARNING)
    writer = make_writer(sys.argv[1], resume_step=0)
    if sys.argv[2] == "with":
        from clu import metric_writers
        assert isinstance(writer, metric_writers.MetricWriter)
    writer.write_hparams({"optim": {"lr": 0.5}, "name": "tiny"})
    for step in (10, 20):
        writer.write_scalars(step, {"train/loss": jnp.float32(step / 8), "perf/images_per_sec": 3})
    images = np.zeros((3, 4, 4, 3), np.uint8)
    writer.write_images(10, {"eval/samples": images, "eval/chart": jnp.ones((6, 5, 3))})
    writer.write_texts(10, {"overview/params": "| a | b |"})
    writer.write_histograms(10, {"codebook/counts": jnp.arange(9.0)})
    writer.flush()
    writer.close()
    time.sleep(1.1)  # event files are ordered by the second
    writer = make_writer(sys.argv[1], resume_step=10)
    writer.write_scalars(20, {"train/loss": 7.5})
    writer.close()
"""
TAGS = {
    "_hparams_/session_start_info", "train/loss", "perf/images_per_sec", "eval/samples",
    "eval/chart", "overview/params", "codebook/counts",
}  # fmt: skip


@pytest.fixture(scope="module", params=["without", "with"])
def written(request, tmp_path_factory):
    """(with or without tensorflow, directory, what was logged)."""
    if request.param == "with":
        pytest.importorskip("tensorboard")
        if importlib.util.find_spec("tensorflow") is None:
            pytest.skip("tensorflow is not installed")
    directory = tmp_path_factory.mktemp(request.param)
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WRITE), str(directory), request.param],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return request.param, directory, result.stdout


def read_events(directory):
    """All events of a directory, in TensorBoard's order."""
    events = []
    for path in sorted(directory.glob("*tfevents*")):
        data, at = path.read_bytes(), 0
        while at < len(data):  # length, its checksum, the event, its checksum
            (length,) = struct.unpack_from("<Q", data, at)
            events.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += 12 + length + 4
    return events


def test_jsonl_of_a_resumed_run(written):
    _, directory, _ = written
    lines = read_jsonl(directory / "metrics.jsonl")
    steps_and_losses = [(line["step"], line.get("train/loss")) for line in lines]
    assert steps_and_losses == [(10, 1.25), (10, None), (20, 7.5)]
    assert lines[0]["perf/images_per_sec"] == 3
    assert lines[1]["overview/params"] == "| a | b |"


def test_log_lines(written):
    _, _, logged = written
    assert "[10] train/loss=1.25, perf/images_per_sec=3\n" in logged


def test_same_tags_from_both_backends(written):
    _, directory, _ = written
    events = read_events(directory)
    assert {value.tag for event in events for value in event.summary.value} == TAGS
    assert [event.step for event in events if event.session_log.status] == [11, 11]


def test_content_without_tensorflow(written):
    mode, directory, _ = written
    if mode == "with":
        pytest.skip("tensorflow stores the same in other protos")
    values = {(v.tag, e.step): v for e in read_events(directory) for v in e.summary.value}
    assert values["train/loss", 10].simple_value == 1.25
    assert values["train/loss", 20].simple_value == 7.5  # of the later file
    image = values["eval/samples", 10].image
    assert (image.height, image.width) == (4, 12)  # a grid of three
    assert values["overview/params", 10].tensor.string_val == [b"| a | b |"]
    assert values["codebook/counts", 10].histo.num == 9


def test_tensorboard_reads_one_curve(written):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.plugin_event_accumulator")
    from tensorboard.util import tensor_util

    events = accumulator.EventAccumulator(str(written[1]))
    events.Reload()
    curve = [
        (event.step, float(tensor_util.make_ndarray(event.tensor_proto)))
        for event in events.Tensors("train/loss")
    ]
    assert curve == [(10, 1.25), (20, 7.5)]
