"""A sweep is checked before it draws, goes on where it was, and names the best."""

import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import common, quickstart
from regvq_jax import sharding
from regvq_jax.errors import UserError
from regvq_jax.evaluate import generation, protocols, resizing, sweep
from regvq_jax.evaluate.distances import Judge
from regvq_jax.evaluate.features import ImageSet
from regvq_jax.evaluate.generation import Generation
from regvq_jax.evaluate.runs import LoadedRun
from regvq_jax.evaluate.sweep_chart import pareto_front, quality_chart
from regvq_jax.evaluate.sweep_grid import config_flags, config_lines, default_grid, make_cells, parse_grid
from regvq_jax.files import read_json
from regvq_jax.trainers.build_sampling import make_prior, sample_settings
from regvq_jax.trainers.priors import PRIORS

NUM_IMAGES = 16
FIRST = ["--grid", "guidance=1,5", "--grid", "steps=2,3", "--protocol=means", f"--num_images={NUM_IMAGES}"]


class Means(nn.Module):
    """Means of a few blocks of pixels as features."""

    @nn.compact
    def __call__(self, x):
        return {"features": x.reshape(len(x), 2, 4, 2, 4, 3).mean((2, 4)).reshape(len(x), -1)}


class Palette:
    """In place of a tokenizer: a code is a grey."""

    quantizer = types.SimpleNamespace(depth=1)

    def apply(self, variables, codes, method):
        return method(self, codes)

    def lookup(self, codes):
        return codes / 100 - 1

    def decode(self, values):
        return jnp.repeat(values[..., None], 3, -1)


class FakeRun(LoadedRun):
    """Its prior draws too brightly, the more so the farther guidance is from 4 and the fewer the steps."""

    def __init__(self, workdir):
        self.config = quickstart.get_config("tiny")
        prior = make_prior(self.config)
        self.trained = types.SimpleNamespace(
            prior=prior, model=types.SimpleNamespace(codebook_size=32), step=8, params={"x": np.ones(2)},
            condition=types.SimpleNamespace(kind="text"),
        )  # fmt: skip
        self._frozen = {"tokenizer": {"x": np.ones(1)}}
        self._sent = {}
        self.drawn = []

    def make_evaluator(self, changes, batch_size, **fields):
        settings = sample_settings(self.config, **changes)

        def draw_fn(params, frozen, keys, condition):
            noise = jax.vmap(lambda key: jax.random.uniform(key, (8, 8)))(keys)
            return (156 * noise + 10 * abs(settings.guidance - 4) - settings.steps).astype(jnp.int32)

        def batches(count):
            for start in range(0, count, batch_size):
                index = np.arange(start, start + batch_size)
                yield {"index": np.minimum(index, count - 1), "valid": index < count}

        evaluator = Generation(
            draw_fn=draw_fn, tokenizer=Palette(), condition_batches=batches, num_conditions=40,
            reference_images=None, sampler={"sampling": sweep.sampler_of(settings)}, **fields,
        )  # fmt: skip
        draw = evaluator._draw

        def noted(*args):
            self.drawn.append((settings.guidance, settings.steps))
            return draw(*args)

        vars(evaluator)["_draw"] = noted
        return evaluator


@pytest.fixture
def loaded(monkeypatch):
    """What the sweeps of a test have loaded: `runs`, and `weights` of a protocol without a true network."""
    pixels = np.random.default_rng(0).integers(0, 200, (40, 8, 8, 1)).repeat(3, -1).astype(np.uint8)
    reference = ImageSet(
        "true", 40, lambda: iter([{"image": pixels, "valid": np.ones(40, bool), "index": np.arange(40)}])
    )
    loaded = types.SimpleNamespace(runs=[], weights=0)

    def load(workdir):
        loaded.runs.append(FakeRun(workdir))
        return loaded.runs[-1]

    def load_weights(weights):
        loaded.weights += 1
        return Means(), {}, "digest"

    grey = (0.0,) * 3, (255.0,) * 3
    protocol = protocols.Protocol(
        "means", load_weights, 8, resizing.half_pixel_bilinear, *grey, "as it is"
    )
    monkeypatch.setitem(protocols.PROTOCOLS, "means", protocol)
    monkeypatch.setattr(sweep, "LoadedRun", load)
    monkeypatch.setattr(sweep.build_prior, "reference_images", lambda *args: reference)
    quickly = functools.partialmethod(Generation.seconds_per_image, least_seconds=0)
    monkeypatch.setattr(Generation, "seconds_per_image", quickly)
    return loaded


def test_a_sweep(loaded, tmp_path, capsys):
    sweep.main([str(tmp_path), *FIRST])
    record = read_json(tmp_path / "results" / "sweep.json")
    cells = [(cell["settings"]["guidance"], cell["settings"]["steps"]) for cell in record["cells"]]
    assert cells == [(5, 3), (5, 2), (1, 3), (1, 2)]
    tag = "eval/generation/kid_means"
    values = [cell["metrics"][tag] for cell in record["cells"]]
    assert values == sorted(values) and record["ranked_by"] == tag
    assert record["metrics"] == record["cells"][0]["metrics"] and record["best"]["temperature"] == 0.7
    assert record["settings"]["images"] == record["protocols"]["means"]["fake_images"] == NUM_IMAGES
    assert record["step"] == 8 and "jax" in record["versions"]
    assert all(cell["seconds_per_image"] > 0 for cell in record["cells"])
    # Once to compile, thrice to measure, and the images themselves; all cells share the judge.
    assert loaded.weights == 1
    assert len(loaded.runs[0].drawn) == 4 * (4 + NUM_IMAGES // 16)
    for cell in record["cells"]:
        assert len(list((tmp_path / "results" / "sweep" / cell["drawn"]).glob("*.png"))) == NUM_IMAGES
    output = capsys.readouterr().out
    assert "config.sample.guidance = 5.0\n    config.sample.steps = 3\n" in output
    assert "--config.sample.guidance=5.0 --config.sample.steps=3\n" in output
    assert "--protocol=means --seed=1 --set guidance=5.0,steps=3\n" in output
    for name in ("sweep.png", "sweep_samples.png"):
        assert Image.open(tmp_path / "results" / name).width > 500
        assert str(tmp_path / "results" / name) in output


def test_it_goes_on_where_it_was(loaded, tmp_path, monkeypatch, capsys):
    path = tmp_path / "results" / "sweep.json"
    add, told = sweep.Results.add, []

    def add_twice(*args):
        told.append(args)
        if len(told) == 3:
            raise KeyboardInterrupt
        add(*args)

    monkeypatch.setattr(sweep.Results, "add", add_twice)
    with pytest.raises(KeyboardInterrupt):
        sweep.main([str(tmp_path), *FIRST])
    known = {cell["drawn"]: cell for cell in read_json(path)["cells"]}
    assert len(known) == 2
    monkeypatch.setattr(sweep.Results, "add", add)
    sweep.main([str(tmp_path), *FIRST])
    # The third was drawn, but not judged: it is timed again; only the fourth is drawn.
    assert len(loaded.runs[1].drawn) == 4 + (4 + NUM_IMAGES // 16)
    cells = {cell["drawn"]: cell for cell in read_json(path)["cells"]}
    assert len(cells) == 4 and {name: cells[name] for name in known} == known

    # Nothing is left to draw; another figure ranks, and all it needs is there.
    sweep.main([str(tmp_path), *FIRST, "--metric=fd"])
    assert not loaded.runs[2].drawn
    assert read_json(path)["ranked_by"] == "eval/generation/fd_means"
    # More cells join the first ones, the run's own settings among them.
    sweep.main([str(tmp_path), *FIRST[4:], "--grid=guidance=4"])
    assert {guidance for guidance, _ in loaded.runs[3].drawn} == {4}
    record = read_json(path)
    assert len(record["cells"]) == 5 and record["best"]["guidance"] == 4
    assert len(record["warnings"]) == len(set(record["warnings"])) == 2
    assert "own" in capsys.readouterr().out
    # Images that are gone are drawn again.
    gone = next(cell for cell in record["cells"] if cell["settings"]["guidance"] == 1)
    (tmp_path / "results" / "sweep" / gone["drawn"] / "0000003.png").unlink()
    sweep.main([str(tmp_path), *FIRST])
    assert set(loaded.runs[4].drawn) == {(1, gone["settings"]["steps"])}
    # With another seed nothing is known.
    sweep.main([str(tmp_path), *FIRST[4:], "--grid=guidance=4", "--seed=3"])
    assert len(read_json(path)["cells"]) == 1


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--grid=temprature=1", 'Did you mean "temperature"?'),
        ("--grid=captions=a", "no such setting"),
        ("--grid=truncation=0.9", 'prior.name="masked"'),
        ("--grid=temperature=1,-1", "temperature=-1.0 must be at least 0"),
        ("--grid=temperature=1,warm", "must be a number"),
        ("--grid=steps=8,0", "steps=0 must be at least 1"),
        ("--grid=steps=8.5", "whole number"),
        ("--grid=top_k=4,33", "more than the 32 codes"),
        ("--grid=order=halton,odd", "order"),
        ("--grid=steps=8,,9", "lacks a value"),
        ("--grid=steps", "lacks a value"),
        (f"--grid=steps={','.join(str(n) for n in range(1, 202))}", "201 cells"),
        ("--num_images=9", "too few"),
        ("--metric=fid", "take --metric=fd"),
    ],
)
def test_mistakes_are_found_before_anything_is_drawn(loaded, tmp_path, argument, message):
    with pytest.raises(UserError) as caught:
        sweep.main([str(tmp_path), "--protocol=means", argument])
    assert message in str(caught.value)
    assert not any(run.drawn for run in loaded.runs) and not list(tmp_path.iterdir())


def test_a_name_twice():
    assert parse_grid(["steps=8, 9", " order=halton"]) == {"steps": ["8", "9"], "order": ["halton"]}
    with pytest.raises(UserError, match="given twice"):
        parse_grid(["steps=8", "steps=9"])


def test_equal_cells_are_swept_once(tiny_config):
    cells = make_cells(tiny_config, make_prior(tiny_config), 32, {"temperature": ["1", "1.0", "0.5"]}, True)
    assert [cell["temperature"] for cell in cells] == [1.0, 0.5]
    assert cells[0]["steps"] == 3 and "captions" not in cells[0]


def test_guidance_needs_something_to_be_guided_away_from(tiny_config):
    with pytest.raises(UserError, match="--grid guidance does nothing"):
        make_cells(tiny_config, make_prior(tiny_config), 32, {"guidance": ["2"]}, False)


@pytest.mark.parametrize(
    ("name", "settings", "sampling", "names"),
    [
        ("autoregressive", {}, {}, {"temperature", "top_p"}),
        ("autoregressive", {}, {"temperature": 0.0, "top_p": 0.5, "guidance": 3.0}, {"temperature", "top_p"}),
        ("masked", {}, {}, {"steps", "choice_temperature"}),
        ("masked", {}, {"order": "halton", "steps": 1}, {"temperature"}),
        ("masked", {}, {"choice_temperature": 0.0}, {"steps", "choice_temperature"}),
        ("diffusion", {}, {"truncation": 0.86}, {"steps", "truncation"}),
        ("diffusion", {"process": "absorbing", "schedule": "linear"}, {}, {"steps", "temperature"}),
    ],
)
def test_default_grids(tiny_config, name, settings, sampling, names):
    common.set_prior(tiny_config, name, settings=settings, sampling=sampling)
    prior, own = make_prior(tiny_config), sample_settings(tiny_config)
    for guided in (True, False):
        grid = default_grid(own, prior, guided)
        cells = make_cells(tiny_config, prior, 32, grid, guided)
        assert 1 < len(cells) <= 12 and sweep.sampler_of(own) in cells
        assert {field for field in cells[0] if len({cell[field] for cell in cells}) > 1} == (
            names | ({"guidance"} if guided else set())
        )


@pytest.mark.parametrize("name", PRIORS)
def test_what_is_printed_can_be_pasted(name):
    config = quickstart.get_config("tiny")
    common.set_prior(config, name, sampling={"guidance": 2.0})
    grid = {"temperature": ["0.1234567891"], "guidance_ramp": ["linear"], "guidance": ["3"]}
    (cell,) = make_cells(config, make_prior(config), 32, grid, True)
    config.lock()
    exec("\n".join(config_lines(cell, cell)), {"config": config})
    assert sweep.sampler_of(sample_settings(config)) == cell
    flags = [flag.removeprefix("--config.sample.").split("=") for flag in config_flags(cell, grid).split()]
    assert dict(flags) == {"temperature": "0.1234567891", "guidance_ramp": "linear", "guidance": "3.0"}


def test_the_front_by_hand():
    #           worse, best,  fast, as fast and worse, a hair faster and worse, slower and equal
    seconds = [3.0, 2.0, 1.0, 1.0, 1.96, 2.5]
    values = [0.5, 0.1, 0.4, 0.6, 0.3, 0.1]
    assert pareto_front(seconds, values) == [2, 1]
    assert pareto_front([1.0], [0.5]) == [0]
    assert pareto_front([1.0, 1.0], [0.5, 0.5]) == [0]
    assert pareto_front([4.0, 2.0, 1.0], [1.0, 2.0, 3.0]) == [2, 1, 0]


def test_seconds_are_those_of_a_compiled_batch(loaded, tmp_path, monkeypatch):
    clock = types.SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(generation, "time", clock)
    fields = dict(directory=tmp_path, judge=Judge((), None), num_images=8)
    evaluator = FakeRun(tmp_path).make_evaluator({}, 8, **fields)
    spans = iter([60.0, 1.0, 7.0, 2.0])

    def draw(params, frozen, batch):
        clock.now += next(spans)
        return jnp.zeros((8, 1, 1, 3))

    vars(evaluator)["_draw"] = draw
    mesh = sharding.make_mesh()
    assert evaluator.seconds_per_image({"prior": {}}, {}, mesh) == 2 / 8
    # Short ones are repeated for a second.
    spans = iter([60.0, *[0.125] * 8])
    assert evaluator.seconds_per_image({"prior": {}}, {}, mesh, least_seconds=1.0) == 0.125 / 8
    assert not list(spans)


def test_a_chart_of_any_cells():
    def draw(settings, values, own):
        names = list(settings[0])
        seconds, bars = np.linspace(2, 1, len(values)), [0.01] * len(values)
        chart = quality_chart(
            settings, seconds, values, bars, names=names, own=own, metric="KID", machine="here"
        )  # fmt: skip
        pixels = np.asarray(chart)
        return (pixels == np.array([0xD1, 0x49, 0x5B], np.uint8)).all(-1).sum()

    one = draw([{"steps": 8}], [-0.002], None)
    many = draw([{"order": str(i % 13), "steps": i} for i in range(40)], np.geomspace(0.01, 0.9, 40), 39)
    # The line and the rims of the points on the front.
    assert 10 < one < many


def test_metrics():
    inception = types.SimpleNamespace(is_inception=True, tag="torch_fidelity", name="torch-fidelity")
    for metric, tag in (("kid", "kid"), ("fd", "fid"), ("fid", "fid")):
        assert sweep.metric_tag(metric, inception) == f"eval/generation/{tag}_torch_fidelity"
