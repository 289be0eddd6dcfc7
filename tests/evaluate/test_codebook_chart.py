"""Charts of codebooks show what was counted, and where the codes lie."""

import numpy as np
import pytest
from matplotlib.axes import Axes

from regvq_jax.evaluate import codebook_chart as charts
from regvq_jax.evaluate.codebook_chart import codebook_chart, codebook_comparison


@pytest.fixture
def drawn(monkeypatch):
    """The matplotlib figures of the charts that a test makes."""
    figures = []
    render = charts._render
    monkeypatch.setattr(charts, "_render", lambda figure: figures.append(figure) or render(figure))
    return figures


def panels_with(figure, label):
    return [axes for axes in figure.findobj(Axes) if label in (axes.get_ylabel(), axes.get_xlabel())]


def test_codebook_chart(drawn):
    counts = np.array([0, 2500, 5000, 2500])
    # Along the first axis, with a little of the second: 94 % and 6 % of the variance.
    codebook = np.array([[-2.0, 0.0, 1.0], [0.0, 0.5, 1.0], [0.0, -0.5, 1.0], [2.0, 0.0, 1.0]])
    chart = codebook_chart(counts, codebook, title="a run")
    assert np.asarray(chart).shape[-1] == 3
    title = drawn[0]._suptitle.get_text()
    assert title == "a run\n3 of 4 codes used (75.0 %)\nperplexity 2.8, 10,000 tokens counted"
    (usage,) = panels_with(drawn[0], "codes, most frequent first")
    assert usage.get_yscale() == "log"
    np.testing.assert_array_equal(usage.patches[0].get_data().values, [5000, 2500, 2500, 0])
    (plane,) = panels_with(drawn[0], "component 1 (94 % of variance)")
    unused, used = (np.asarray(points.get_offsets()) for points in plane.collections)
    np.testing.assert_allclose(np.abs(unused), [[2, 0]], atol=1e-12)
    np.testing.assert_allclose(np.sort(np.abs(used), 0), [[0, 0], [0, 0.5], [2, 0.5]], atol=1e-12)
    # The most frequent code is drawn last.
    np.testing.assert_array_equal(plane.collections[1].get_array(), [2500, 2500, 5000])


def test_codebook_chart_of_what_has_no_plane(drawn):
    codebook_chart(np.array([1, 2]))
    codebook_chart(np.zeros(4, np.int64), np.zeros((4, 1)))  # nothing counted yet
    assert not any(panels_with(figure, "times used")[1:] for figure in drawn)
    codebook_chart(np.zeros(4, np.int64), np.zeros((4, 3)))  # and all codes alike
    assert panels_with(drawn[-1], "component 1 (0 % of variance)")


def test_rivals_are_drawn_on_one_scale(drawn):
    codebook = np.random.default_rng(0).normal(size=(4, 3))
    rivals = [("few", np.array([9, 1, 0, 0]), codebook), ("many", np.array([1, 2, 3, 4]), codebook)]
    codebook_comparison([*rivals, ("grid", np.array([1, 1]), None)], columns=2)
    titles = [part._suptitle.get_text().split("\n")[:2] for part in drawn[0].subfigs[:3]]
    assert titles == [
        ["few", "2 of 4 codes used (50.0 %)"],
        ["many", "4 of 4 codes used (100.0 %)"],
        ["grid", "2 of 2 codes used (100.0 %)"],
    ]
    usages = panels_with(drawn[0], "codes, most frequent first")
    assert {axes.get_ylim() for axes in usages} == {(0.5, 27.0)}
    planes = [axes for axes in drawn[0].findobj(Axes) if axes.get_title()]
    assert len(usages) == 3 and len(planes) == 2
    assert {axes.collections[1].norm.vmax for axes in planes} == {9}
