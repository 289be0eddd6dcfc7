"""Which figures there are of what, under which names; and that they grow as images get worse."""


import numpy as np
import pytest
import scipy.ndimage

from regvq_jax import sharding
from regvq_jax.data.sources import make_source
from regvq_jax.errors import UserError
from regvq_jax.evaluate import distances, protocols
from regvq_jax.evaluate.distances import MIN_IMAGES, Judge, check_count, compare
from regvq_jax.evaluate.feature_statistics import FeatureStatistics
from regvq_jax.evaluate.features import Features, features_of
from regvq_jax.evaluate.frechet import frechet_distance
from regvq_jax.evaluate.inception_score import add, empty_sums, inception_score, split_of_images
from regvq_jax.evaluate.kernel_distance import cmmd, kernel_distance
from regvq_jax.evaluate.manifold import manifold_scores
from regvq_jax.evaluate.protocols import make_extractor
from tests.evaluate.toy_extractor import Images, draw_images, expected_outputs, make_toy

MANIFOLD = ("precision", "recall", "density", "coverage")


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch):
    """Nothing of other runs."""
    monkeypatch.setenv("REGVQ_JAX_CACHE", str(tmp_path / "cache"))


def statistics_of(rows, count=None):
    centred = rows - rows.mean(0)
    return FeatureStatistics(len(rows) if count is None else count, rows.mean(0), centred.T @ centred)


def make_features(count, seed, shift=0.0, logits=True):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, 6)) + shift
    sums = add(empty_sums(10, 4), rng.standard_normal((count, 4)), split_of_images(count)) if logits else None
    return Features(statistics_of(rows), rows.astype(np.float32), np.arange(count), sums)


def test_figures_of_fids_own_network():
    real, fake = make_features(60, 0), make_features(50, 1, 0.5)
    found = compare(real, fake, make_toy("clean-fid", "inception"))
    kid, kid_std = kernel_distance(real.kept, fake.kept, subsets=100, subset_size=25)
    score, score_std = inception_score(fake.class_sums)
    expected = {
        "fid_clean_fid": frechet_distance(real.statistics, fake.statistics),
        "kid_clean_fid": kid,
        "kid_clean_fid_std": kid_std,
        "inception_score_clean_fid": score,
        "inception_score_clean_fid_std": score_std,
    }
    scores = manifold_scores(real.kept, fake.kept, k=3, k_density=5)
    assert found.metrics == expected | {f"{name}_clean_fid": scores[name] for name in MANIFOLD}
    # Real and fake are not the same to all of them.
    assert scores["precision"] != scores["recall"]
    assert found.about == {
        **{"real_images": 60, "fake_images": 50, "real_features": 60, "fake_features": 50},
        **{"kid_subsets": 100, "kid_subset_size": 25, "manifold_k": 3, "density_k": 5},
    }
    (warning,) = found.warnings
    assert "fid_clean_fid of 50 images is biased" in warning and "below 10,000" in warning


def test_other_networks_have_no_fid_and_no_inception_score():
    real, fake = make_features(40, 0), make_features(40, 1)
    names = {"fd", "kid", *MANIFOLD}
    expected = {f"{name}_dinov2_vitb14" for name in names} | {"kid_dinov2_vitb14_std"}
    assert set(compare(real, fake, make_toy("dinov2_vitb14", "dinov2_vitb14")).metrics) == expected
    metrics = compare(real, fake, make_toy("clip_vitl14_336", "clip_vitl14_336")).metrics
    (own,) = [name for name in metrics if "cmmd" in name]
    assert metrics[own] == cmmd(real.kept, fake.kept)
    assert not [name for name in metrics if "fid" in name or "inception" in name]


def test_statistics_of_elsewhere():
    """What needs features is left out, and unknown counts are not warned of."""
    fake = make_features(40, 1)
    real = Features(statistics_of(make_features(99, 0).kept, 0), np.zeros((0, 6)), np.zeros(0, int))
    found = compare(real, fake, make_toy("adm", "inception"))
    assert set(found.metrics) == {"fid_adm", "inception_score_adm", "inception_score_adm_std"}
    assert found.about == {"real_images": 0, "fake_images": 40}
    assert len(found.warnings) == 1
    many = fake._replace(statistics=fake.statistics._replace(count=10_000))
    assert compare(real, many, make_toy("adm", "inception")).warnings == ()
    assert "fid_adm of 9,999" in compare(
        real._replace(statistics=real.statistics._replace(count=9_999)), many, make_toy("adm", "inception")
    ).warnings[0]


@pytest.mark.parametrize(("count", "subset"), [(10, 5), (999, 499), (1000, 1000), (1200, 1000)])
def test_subsets_of_kid(monkeypatch, count, subset):
    monkeypatch.setattr(distances, "manifold_scores", lambda *args, **kwargs: {})
    monkeypatch.setattr(distances, "KID_SUBSETS", 2)
    found = compare(make_features(count, 0), make_features(1200, 1), make_toy())
    assert found.about["kid_subset_size"] == subset and np.isfinite(found.metrics["kid_toy"])


def test_too_few_images():
    check_count(MIN_IMAGES, "enough")
    with pytest.raises(UserError, match=r"photographs: 9 image\(s\) are too few.* at least 10.*below 10,000"):
        check_count(9, "photographs")
    enough, few = make_features(10, 0), make_features(9, 1)
    assert np.isfinite(list(compare(enough, enough, make_toy()).metrics.values())).all()
    with pytest.raises(UserError, match="the real side: 9 image"):
        compare(few, enough, make_toy())
    with pytest.raises(UserError, match="the other side: 9 image"):
        compare(enough, few, make_toy())


def test_figures_that_are_not_finite():
    real, fake = make_features(20, 0), make_features(20, 1)
    broken = fake._replace(class_sums=fake.class_sums._replace(probabilities=np.full((10, 4), np.nan)))
    with pytest.raises(UserError, match="inception_score_adm, inception_score_adm_std is not finite"):
        compare(real, broken, make_toy("adm", "inception"))


@pytest.fixture
def toys(monkeypatch):
    """Two protocols of the toy network: FID's, and another; both know their weights."""
    made = [make_toy("toy-fid", "inception"), make_toy("toy-fd", "toy", logits=False)]
    monkeypatch.setattr(protocols, "PROTOCOLS", {toy.name: toy.protocol for toy in made})
    return made


def test_a_judge(toys, one_device_mesh):
    real, fakes = draw_images(40), [draw_images(30, seed) // 2 for seed in (1, 2)]
    reference = Images(real, 8, name="true images")
    judge = Judge(("toy-fid", "toy-fd"), reference.set)
    for fake in fakes:
        judging = judge.start(one_device_mesh, 30)
        for batch in Images(fake, 8).set.batches():
            device = sharding.put_batch({"image": batch["image"]}, one_device_mesh)
            judging.add(device["image"], batch["valid"], batch["index"])
        verdict = judging.finish()
        for toy in toys:
            ours, theirs = verdict.features[toy.name].kept, expected_outputs(toy, real)["features"]
            np.testing.assert_allclose(ours, expected_outputs(toy, fake)["features"], atol=1e-6)
            name = "fid_toy_fid" if toy.is_inception else "fd_toy_fd"
            expected = frechet_distance(statistics_of(theirs), statistics_of(ours))
            assert verdict.metrics[name] == pytest.approx(expected, rel=1e-4)
        assert {"kid_toy_fid", "kid_toy_fd", "inception_score_toy_fid"} < set(verdict.metrics)
        about = verdict.about({"crop": 8}, ("A first warning.",))
        assert about["settings"] == {"crop": 8} and set(about["protocols"]) == {"toy-fid", "toy-fd"}
        assert about["protocols"]["toy-fid"]["network"] == "inception"
        assert about["protocols"]["toy-fd"]["real_images"] == 40
        assert about["warnings"][0] == "A first warning." and len(about["warnings"]) == 3
    # The true images were looked at once under each protocol.
    assert reference.passes == 2


def test_a_judge_of_nothing(one_device_mesh):
    """No protocol asks for no images, and reads none."""
    reference = Images(draw_images(3), 8)
    judging = Judge((), reference.set).start(one_device_mesh, 3)
    judging.add(draw_images(8), np.ones(8, bool), np.arange(8))
    verdict = judging.finish()
    assert verdict.metrics == {} and verdict.about({"crop": 8}) == {} and reference.passes == 0


def test_a_judge_misses_what_is_missing_at_once(toys, one_device_mesh):
    with pytest.raises(UserError, match="true images: 9 image"):
        Judge(("toy-fid",), Images(draw_images(9), 8, name="true images").set)
    judge = Judge(("toy-fid",), Images(draw_images(10), 8).set)
    with pytest.raises(UserError, match="the images to judge: 9 image"):
        judge.start(one_device_mesh, 9)
    with pytest.raises(UserError, match='no protocol "toy-fids". Did you mean "toy-fid"'):
        Judge(("toy-fids",), Images(draw_images(10), 8).set)


def blur(images, strength):
    return scipy.ndimage.gaussian_filter(images, (0, strength, strength, 0))


def noise(images, strength):
    return images + strength * np.random.default_rng(1).standard_normal(images.shape)


def grey(images, strength):
    brightness = images @ np.array([0.299, 0.587, 0.114])
    return (1 - strength) * images + strength * brightness[..., None]


def test_figures_grow_as_images_get_worse(one_device_mesh):
    """The packaged network on 32 emoji, against 32 others."""
    extractor = make_extractor("efficientnet_lite0")
    source = make_source("emoji-grounds", split="heldout", image_size=32)
    places = np.random.default_rng(0).permutation(len(source))[:64]
    images = np.stack([source[int(place)]["image"] for place in places])

    def look_at(images):
        images = np.clip(np.round(images), 0, 255).astype(np.uint8)
        return features_of(Images(images, 16).set, extractor, one_device_mesh)

    def judge(images):
        metrics = compare(real, look_at(images), extractor).metrics
        return [metrics[f"{name}_efficientnet_lite0"] for name in ("fd", "kid")]

    real, others = look_at(images[:32]), images[32:].astype(np.float64)
    clean = judge(others)
    assert abs(clean[1]) < 0.02
    for worsen, strengths in ((blur, (0.6, 1.2, 2.4)), (noise, (12, 36, 108)), (grey, (0.4, 0.7, 1.0))):
        figures = np.array([clean, *(judge(worsen(others, strength)) for strength in strengths)])
        assert (np.diff(figures, axis=0) > 0).all(), (worsen.__name__, figures)
        # Not by a hair: the worst are told from the clean ones.
        assert figures[-1, 0] > 1.3 * clean[0] and figures[-1, 1] > 0.1
