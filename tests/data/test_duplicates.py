"""Near-duplicates are found, pictures that only look a little alike are not."""

import io

import numpy as np
import pytest
from PIL import Image

from regvq_jax.data import duplicates
from regvq_jax.data.duplicates import distances, find_duplicates, sign


class Pictures:
    """A source of given pictures."""

    name = "pictures"

    def __init__(self, *images):
        self._images = [np.asarray(image, np.uint8) for image in images]

    def __len__(self):
        return len(self._images)

    def __getitem__(self, index):
        return {"image": self._images[index]}


def photo(seed, size=(150, 120)):
    """Soft colours with some grain: what hashes of photographs see."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8))
    soft = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.float64)
    return (soft + rng.normal(0, 4, soft.shape)).clip(0, 255).astype(np.uint8)


def disc(radius, colour, ground=(255, 255, 255), mouth=0):
    """An icon, with a dark mouth this wide."""
    y, x = np.mgrid[-32:32, -32:32] + 0.5
    image = np.full((64, 64, 3), ground, np.uint8)
    image[x**2 + y**2 < radius**2] = colour
    image[(np.abs(x) < mouth) & (np.abs(y - 10) < 3)] = (40, 20, 20)
    return image


def as_jpeg(image, quality):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def found(train, heldout, **options):
    return find_duplicates(Pictures(*train), Pictures(*heldout), enabled=False, **options)


def test_hashes_of_ramps():
    ramp = np.repeat(np.arange(0, 216, 3, dtype=np.uint8)[None], 72, 0)  # 72 x 72, lighter to the right
    right = np.repeat(ramp[..., None], 3, -1)
    signed = sign([right, right[:, ::-1], right.swapaxes(0, 1), np.full_like(right, 90)])
    ones = np.uint64(2**64 - 1)
    assert signed.hashes.tolist() == [[ones, 0], [0, 0], [0, ones], [0, 0]]
    assert signed.differences.tolist() == [64, 64, 64, 0]
    assert signed.blank.tolist() == [False, False, False, True]
    # The first of 8 equal parts of the ramp has the levels 0, 3, ... 24.
    assert signed.colours[0, :3].tolist() == [12, 12, 12]


def test_distance_counts_the_bits_of_both_hashes():
    first = np.array([[0b1011, 0], [0, 0]], np.uint64)
    second = np.array([[0b0010, 1], [2**64 - 1, 2**64 - 1], [0, 0]], np.uint64)
    assert distances(first, second).tolist() == [[3, 125, 3], [2, 128, 0]]


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image,
        lambda image: as_jpeg(image, 50),
        lambda image: np.asarray(Image.fromarray(image).resize((80, 64), Image.Resampling.LANCZOS)),
        lambda image: image[2:-2, 2:-2],
        lambda image: (image * 0.95).astype(np.uint8),
    ],
    ids=["same", "jpeg", "small", "cut", "darker"],
)
def test_a_changed_copy_is_found_and_nothing_else(change):
    train = [photo(seed) for seed in range(40)]
    heldout = [photo(100), change(train[17]), photo(101)]
    result = found(train, heldout)
    assert [(match.heldout, match.train, match.mirrored) for match in result.matches] == [(1, 17, False)]
    assert result.num_pairs == 1


def test_a_mirrored_copy_is_found_and_named_so():
    train = [photo(seed) for seed in range(5)]
    (match,) = found(train, [train[3][:, ::-1]]).matches
    assert (match.train, match.mirrored, match.distance, match.unlikeness) == (3, True, 0, 0.0)


def test_unrelated_pictures_are_not_found():
    result = found([photo(seed) for seed in range(100)], [photo(seed) for seed in range(100, 160)])
    assert result.matches == [] and result.num_pairs == 0


def test_icons_of_one_outline_and_other_colours_are_no_duplicates():
    red, blue = disc(24, (220, 40, 40)), disc(24, (40, 40, 220))
    assert found([red], [blue]).matches == []
    # All places with a difference are on the outline, and a tenth of few is few.
    assert found([disc(24, (220, 40, 40), mouth=14)], [disc(18, (220, 40, 40))]).matches == []
    assert len(found([red], [disc(24, (212, 44, 40))]).matches) == 1


def test_pictures_of_one_colour_are_counted_and_never_found():
    white = np.full((40, 40, 3), 255, np.uint8)
    grain = np.random.default_rng(0).normal(250, 1, (60, 50, 3))
    nearly = as_jpeg(grain.clip(0, 255).astype(np.uint8), 60)
    result = found([white, photo(0), white, nearly], [white, nearly, photo(0)])
    assert [(match.heldout, match.train) for match in result.matches] == [(2, 1)]
    assert (result.train_blank, result.heldout_blank) == (3, 2)


def test_the_most_alike_is_named_and_all_are_counted():
    copy = photo(3)
    train = [as_jpeg(copy, 20), photo(4), copy, as_jpeg(copy, 60), photo(9)]
    result = found(train, [photo(50), copy, as_jpeg(photo(9), 40)])
    first, second = result.matches
    assert (first.heldout, first.train, first.pairs, first.unlikeness) == (1, 2, 3, 0.0)
    assert (second.heldout, second.train, second.pairs) == (2, 4, 1)
    assert 0 < second.unlikeness < 1 and result.num_pairs == 4


def test_a_symmetrical_picture_is_one_pair():
    half = photo(0)
    image = np.concatenate([half, half[:, ::-1]], axis=1)
    (match,) = found([image], [image]).matches
    assert match.pairs == 1 and not match.mirrored


def test_parts_make_no_difference(monkeypatch):
    train = [photo(seed % 11) for seed in range(31)]
    heldout = [as_jpeg(photo(seed), 70) for seed in range(8, 14)]
    whole = found(train, heldout)
    assert [match.pairs for match in sorted(whole.matches)] == [3, 2, 2]
    monkeypatch.setattr(duplicates, "_CHUNK", 7)
    monkeypatch.setattr(duplicates, "_MAX_TABLE", 14)
    monkeypatch.setattr(duplicates, "_MAX_PAIRS", 2)
    parts = found(train, heldout, num_threads=3)
    assert parts.matches == whole.matches


def test_a_limit_looks_at_that_many_of_each_split():
    pictures = [photo(seed) for seed in range(10)]
    result = found(pictures, pictures, limit=4)
    assert len(result.train_compared) == len(result.heldout_compared) == 4
    assert {match.heldout for match in result.matches} == set(result.heldout_compared.tolist())
