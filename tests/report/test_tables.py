import math

from regvq_jax.report.tables import (
    Figure,
    Group,
    describe,
    duration,
    evaluation_table,
    list_values,
    protocol_of,
    show,
    stage_table,
    styled,
)


def test_values_as_people_write_them():
    shown = {
        1570: "1,570", 30.0: "30", 0.0123456: "0.01235", 1234.56: "1,234.6", -0.5: "-0.5", "nan": "nan",
        math.inf: "inf", None: "–", "a": "a", ("x", 1): '["x", 1]',
    }  # fmt: skip
    assert {value: show(value) for value in shown} == shown
    assert show(True) == "yes" and show(math.nan) == "nan"


def test_figures_in_a_format():
    assert styled(0.5, "{:.1f}", 100.0) == "50.0"
    assert styled("nan", "{:.1f}", 100.0) == "nan"
    assert styled("none", "{:.1f}") == "none" and styled(None, "{:.1f}") == "–"


def test_durations():
    assert [duration(x) for x in (3.25, 119, 600, 9000, "?")] == ["3.25 s", "119 s", "10.0 min", "2.5 h", "?"]


def test_a_trainings_figures():
    result = {"step": 1200, "seconds": 60.0, "codebook/usage": 0.5, "codebook/perplexity": 8.0, "x": 1.0}
    table = stage_table("tokenizer", "Tokenizer", result, elsewhere={"codebook/perplexity"})
    figures = [figure for group in table.groups for figure in group.figures]
    assert figures == [
        Figure("steps", "1,200", "step"),
        Figure("codebook usage, %", "50.0", "codebook/usage"),
    ]
    assert table.groups[1].about and "held-out" in table.about
    assert stage_table("prior", "Prior", {"x": 1.0}) is None


def test_an_evaluations_figures_are_grouped_by_protocol():
    table = evaluation_table(
        "generation",
        {
            "metrics": {
                "eval/generation/fd_lite0": 12.5,
                "eval/generation/fid_torch_fidelity": 30.0,
                "eval/generation/kid_lite0": 0.125,
                "eval/generation/kid_lite0_std": 0.0123,
                "eval/generation/images": 100,
                "eval/generation/guidance=2/strange_lite0": "nan",
                "codebook/usage": 0.25,
                "lonely_std": 1.0,
            },
            "protocols": {"lite0": {"name": "lite0", "size": 224}, "torch-fidelity": {}},
            "step": 1000,
            "warnings": "One line.",
        },
    )
    assert table.title == "Generation" and table.about == "After 1,000 steps."
    assert table.warnings == ["One line."]
    assert table.groups[0] == Group(
        "lite0",
        "size 224",
        [
            Figure("Fréchet distance (FD)", "12.5", "eval/generation/fd_lite0"),
            Figure("KID", "0.125 ± 0.012", "eval/generation/kid_lite0"),
            Figure("guidance=2, strange", "nan", "eval/generation/guidance=2/strange_lite0"),
        ],
    )
    assert table.groups[1] == Group(
        "torch-fidelity", "", [Figure("FID", "30", "eval/generation/fid_torch_fidelity")]
    )
    rest = [figure for group in table.groups[2:] for figure in group.figures]
    assert [(figure.label, figure.value) for figure in rest] == [
        ("images", "100"),
        ("lonely std", "1"),
        ("codebook usage, %", "25.0"),
    ]
    # Every figure is there once.
    assert sum(len(group.figures) for group in table.groups) == 7


def test_an_evaluation_without_anything():
    table = evaluation_table("x_y", {})
    assert (table.title, table.about, table.warnings, table.groups, table.details) == ("X y", "", [], [], {})


def test_the_protocol_that_a_tag_names():
    names = ["torch-fidelity", "fidelity", "adm"]
    assert protocol_of("eval/generation/fid_torch_fidelity", names) == "torch-fidelity"
    assert protocol_of("eval/generation/fd_efficientnet_lite0", ["lite0", "efficientnet_lite0"]) != "lite0"
    assert protocol_of("eval/generation/kid_adm_std", names) == "adm"
    assert protocol_of("eval/adm/psnr", names) == protocol_of("eval/generation/fid_admiral", names) == ""


def test_a_protocol_in_a_line():
    protocol = {"name": "x", "weights_sha256": 64 * "0", "crop": {"size": 32}, "about": 200 * "y"}
    assert describe(protocol) == f"weights sha256 {12 * '0'}…; crop.size 32; about {119 * 'y'}…"


def test_leaves_of_nested_values():
    tree = {"a": {"b": 1, "c": [1, 2]}, "d": "x"}
    assert list_values(tree) == [("a.b", "1"), ("a.c", "[1, 2]"), ("d", "x")]
    assert list_values(None) == list_values({}) == []
