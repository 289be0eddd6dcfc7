import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from regvq_jax.report import curves
from regvq_jax.report.curves import Panel, collect, draw_chart, draw_charts, thin, to_float

TRAINING = [{"step": s, "time": 1.0, "train/loss": 10.0 / s, "optim/grad_norm": 1.0} for s in range(1, 21)]


def texts(chart):
    """All that is written in a chart."""
    return [node.text for node in ET.fromstring(chart.svg).iter("{http://www.w3.org/2000/svg}text")]


def titles(charts):
    return [chart.title for chart in charts]


def test_numbers_and_what_is_none():
    assert to_float("2.5") == 2.5 and to_float(3) == 3.0
    for value in ("nan", "inf", -math.inf, None, "a text", [1]):
        assert math.isnan(to_float(value))


def test_columns_of_the_wanted_tags():
    rows = [
        {"step": 1, "a/x": 1.0, "b": 7.0, "a/x_std": 9.0},
        {"step": 2, "a/x": "nan", "a/y": 4.0},
        {"step": 3, "a/x": 3.0, "a/z": "nan"},
    ]
    columns = collect(rows, ["a/*"])
    assert list(columns) == ["a/x", "a/y"]  # No deviation, nothing without a number.
    np.testing.assert_array_equal(columns["a/x"], [[1, 2, 3], [1.0, math.nan, 3.0]])
    np.testing.assert_array_equal(columns["a/y"], [[2], [4.0]])


def test_many_values_become_means_of_neighbours(monkeypatch):
    monkeypatch.setattr(curves, "MAX_POINTS", 3)
    steps, values = thin(np.arange(6.0), np.array([1.0, 3.0, math.nan, 5.0, math.nan, math.nan]))
    np.testing.assert_array_equal(steps, [0.5, 2.5, 4.5])
    np.testing.assert_array_equal(values, [2.0, 5.0, math.nan])
    steps, values = thin(np.arange(3.0), np.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(values, [1.0, 2.0, 3.0])


def test_only_panels_with_something_to_show_are_drawn():
    assert titles(draw_charts("prior", TRAINING)) == ["Training loss", "Gradient norm"]
    rows = [*TRAINING, {"step": 20, "eval/prior/loss": 2.0}, {"step": 20, "eval/prior/loss_shuffled": "nan"}]
    heldout = draw_charts("prior", rows)[1]
    assert heldout.title == "Held-out loss, nats a token"
    (line,) = heldout.lines
    assert (line.label, line.last, line.dotted) == ("right conditions", 2.0, True)
    assert draw_charts("prior", []) == draw_charts("unknown", TRAINING) == []


def test_hundreds_of_metrics_do_not_become_hundreds_of_charts():
    noise = {f"debug/layer_{i}": 1.0 for i in range(300)}
    assert titles(draw_charts("tokenizer", [row | noise for row in TRAINING])) == [
        "Loss, weighted sum",
        "Gradient norm",
    ]


def test_a_chart_says_what_it_shows():
    rows = [{"step": s, "codebook/train_usage": s / 100, "codebook/usage": 0.5} for s in (10, 20)]
    (chart,) = draw_charts("tokenizer", rows)
    assert [(line.label, line.last) for line in chart.lines] == [("training", 20.0), ("held-out", 50.0)]
    assert len({line.colour for line in chart.lines}) == 2
    assert "training from 10 to 20" in chart.description and "step 20" in chart.description
    assert "step" in texts(chart) and "100" in texts(chart)  # Percent, from 0 to 100.
    # Equal rows, equal bytes; and nothing to be fetched.
    assert chart == draw_charts("tokenizer", rows)[0]
    attributes = [pair for node in ET.fromstring(chart.svg).iter() for pair in node.attrib.items()]
    hrefs = [value for name, value in attributes if name.endswith("href")]
    assert hrefs and all(href.startswith("#") for href in hrefs)


@pytest.mark.parametrize(
    "values, logarithmic",
    [((0.01, 1.0), True), ((1.0, 5.0), False), ((-1.0, 100.0), False), ((math.nan, 3.0), False)],
)
def test_wide_positive_ranges_are_logarithmic(values, logarithmic):
    panel = Panel("x", (("x", "x"),), logarithmic=True)
    chart = draw_chart(panel, {"x": (np.array([1.0, 2.0]), np.array(values))}, 2)
    assert ({"0.01", "0.1", "1"} <= set(texts(chart))) == logarithmic


def test_distances_are_named_after_their_protocol():
    row = {"eval/reconstruction/fid_torch_fidelity": 8.0, "eval/reconstruction/fd_lite0_std": 1.0}
    (chart,) = draw_charts("tokenizer", [{"step": 5, **row}])
    assert [line.label for line in chart.lines] == ["fid torch fidelity"]


def test_a_number_that_is_not_finite_is_a_gap():
    panel = Panel("x", (("x", "x"),))
    broken = draw_chart(panel, {"x": (np.arange(4.0), np.array([1.0, math.nan, 2.0, 3.0]))}, 3)
    whole = draw_chart(panel, {"x": (np.arange(4.0), np.array([1.0, 1.5, 2.0, 3.0]))}, 3)
    assert b"nan" not in broken.svg and broken.svg != whole.svg
    assert "from 1 to 3" in broken.description
