import numpy as np
import pytest

from regvq_jax.data.transforms import resize_and_crop
from regvq_jax.data.views import Views
from regvq_jax.errors import UserError


def picture(height, width, **more):
    """Pixels that say where they are, and a label map of their columns."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return {"image": np.stack([rows, columns, rows], -1), "labels": columns, **more}


def cut_all(views, element, size, image=0):
    return [views.cut(element, image, view, size) for view in range(views.count)]


@pytest.mark.parametrize(
    ("settings", "count", "recipe"),
    [
        ({}, 1, ""),
        ({"flip": True}, 2, "centre crop, each mirrored too"),
        ({"random_crops": 2}, 3, "centre crop, 2 random (scale to 1.1, seed 0)"),
        (
            {"random_crops": 1, "flip": True, "max_scale": 1.25, "seed": 4},
            4,
            "centre crop, 1 random (scale to 1.25, seed 4), each mirrored too",
        ),
    ],
)
def test_count_and_recipe(settings, count, recipe):
    views = Views(**settings)
    assert views.count == count
    assert views.recipe == recipe


def test_view_0_is_the_centre_crop_and_its_mirror_image_follows():
    element = picture(6, 11, text="x")
    plain, mirrored = cut_all(Views(flip=True), element, 6)
    expected = resize_and_crop(element, size=6)
    for key in ("image", "labels"):
        np.testing.assert_array_equal(plain[key], expected[key])
        np.testing.assert_array_equal(mirrored[key], expected[key][:, ::-1])
    assert mirrored["text"] == "x"


def test_random_crops_are_their_own_and_go_with_their_maps():
    views = Views(random_crops=20, flip=True)
    results = cut_all(views, picture(8, 60), 8)
    lefts = []
    for view, result in enumerate(results):
        np.testing.assert_array_equal(result["labels"], result["image"][..., 1])
        step = -1 if view % 2 else 1
        assert (np.diff(result["labels"].astype(int), axis=1) == step).all()
        lefts.append(int(result["labels"].min()))
    assert lefts[:2] == [26, 26]  # (60 - 8) // 2
    assert len(set(lefts[2:])) > 25 and min(lefts) < 10 and max(lefts) > 42
    scaled = cut_all(Views(random_crops=20), picture(40, 40), 20)
    assert len({int(np.ptp(result["labels"])) for result in scaled[1:]}) > 1


def test_views_depend_on_seed_image_and_number_alone():
    views, element = Views(random_crops=3), picture(8, 60)
    maps = [result["labels"].tobytes() for result in cut_all(views, element, 8, image=5)]
    assert maps == [result["labels"].tobytes() for result in cut_all(views, element, 8, image=5)]
    assert maps[2] == Views(random_crops=7).cut(element, 5, 2, 8)["labels"].tobytes()
    for other in (Views(random_crops=3, seed=1).cut(element, 5, 2, 8), views.cut(element, 6, 2, 8)):
        assert other["labels"].tobytes() != maps[2]


def test_nothing_is_mirrored_that_names_a_side():
    views = Views(random_crops=10, flip=True)
    results = cut_all(views, picture(8, 60, text="a cat", texts=("a cat", "the left paw")), 8)
    assert all((np.diff(result["labels"].astype(int), axis=1) == 1).all() for result in results)
    np.testing.assert_array_equal(results[0]["labels"], results[1]["labels"])
    assert len({result["labels"].tobytes() for result in results[2:]}) > 12  # Crops of their own.


@pytest.mark.parametrize("settings", [{"random_crops": -1}, {"max_scale": 0.9}, {"seed": -1}])
def test_bad_settings(settings):
    with pytest.raises(UserError, match="must be at least"):
        Views(**settings)
