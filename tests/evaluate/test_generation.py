"""The generation evaluator with a prior that draws codes at random, and a network that costs nothing."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax import sharding
from regvq_jax.errors import UserError
from regvq_jax.evaluate import generation
from regvq_jax.evaluate.features import ImageSet
from regvq_jax.evaluate.generation import Generation
from regvq_jax.models.quantizer import Quantizer
from regvq_jax.models.tokenizer import ImageTokenizer
from tests.evaluate.toy_protocol import LOADED, toy  # noqa: F401

TOKENIZER = ImageTokenizer(
    quantizer=Quantizer(codebook_size=16, code_dim=4),
    channels=8,
    multipliers=(1, 1),
    num_res_blocks=1,
    attention_levels=(),
    middle_attention=False,
    latent_channels=8,
)


def padded(images, size):
    """Batches of "image", "valid" and "index", as `data.pipeline.evaluation_batches` makes them."""
    for start in range(0, len(images), size):
        index = np.minimum(np.arange(start, start + size), len(images) - 1)
        yield {"image": images[index], "valid": np.arange(start, start + size) < len(images), "index": index}


def image_set(name, images):
    return ImageSet(name, len(images), lambda: padded(images, 8), image_at=images.__getitem__)


def draw_tokens(params, frozen, keys, inputs):
    codes = jax.vmap(lambda key: jax.random.randint(key, (4, 4), 0, 16))(keys)
    return (codes + params["shift"]) % 16 if inputs is None else codes * 0 + inputs[:, None, None]


def condition_batches(size, conditions=None, labels=None):
    def batches(count):
        for start in range(0, count, size):
            index = np.minimum(np.arange(start, start + size), count - 1).astype(np.int32)
            batch = {"valid": np.arange(start, start + size) < count, "index": index}
            for name, values in (("condition", conditions), ("labels", labels)):
                if values is not None:
                    batch[name] = values[index % len(values)]
            yield batch

    return batches


@pytest.fixture(scope="module")
def frozen():
    return {"tokenizer": TOKENIZER.init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))["params"]}


@pytest.fixture
def make(toy, tmp_path):  # noqa: F811
    rng = np.random.default_rng(0)
    splits = {name: rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8) for name in ("heldout", "train")}

    def make(size=8, conditions=None, labels=None, **fields):
        return Generation(
            draw_tokens,
            TOKENIZER,
            condition_batches(size, conditions, labels),
            num_conditions=20,
            **{
                "reference_images": lambda split, limit: image_set(split, splits[split][: limit or None]),
                "directory": tmp_path / "drawn",
                "protocols": ("toy",),
                **fields,
            },
        )

    return make


EMA = {"prior": {"shift": np.int32(0)}}


def test_batch_size_and_devices_change_nothing(make, frozen, one_device_mesh, tmp_path):
    results = [
        make(size, directory=tmp_path / str(i))(EMA, frozen, mesh).metrics
        for i, (size, mesh) in enumerate(
            ((8, one_device_mesh), (16, one_device_mesh), (8, sharding.make_mesh(2, 2, 2)))
        )
    ]
    assert results[0]["eval/generation/images"] == 20 and results[0]["eval/generation/fd_toy"] > 0
    for other in results[1:]:
        # Images may differ by a grey level.
        assert other == pytest.approx(results[0], rel=1e-2, abs=1e-3)


def test_what_was_drawn_is_kept_until_something_changes(make, frozen, one_device_mesh, tmp_path):
    evaluator = make(num_images=12)
    first = evaluator(EMA, frozen, one_device_mesh)
    [folder] = (tmp_path / "drawn").iterdir()
    assert len(list(folder.iterdir())) == 12
    again = make(num_images=12)
    again.__dict__["_draw"] = None  # It would be called.
    assert again(EMA, frozen, one_device_mesh).metrics == first.metrics
    # Other parameters, another seed: other images, in the place of the first.
    others = [
        evaluator({"prior": {"shift": np.int32(1)}}, frozen, one_device_mesh),
        make(num_images=12, seed=1)(EMA, frozen, one_device_mesh),
    ]
    for other in others:
        assert other.metrics != first.metrics
    assert folder not in (tmp_path / "drawn").iterdir() and len(list((tmp_path / "drawn").iterdir())) == 1
    make(num_images=12, keep_others=True)(EMA, frozen, one_device_mesh)
    assert len(list((tmp_path / "drawn").iterdir())) == 2


def test_the_result_says_how_to_make_it_again(make, frozen, one_device_mesh):
    evaluator = make(reference="train", sampler={"prior": "Toy", "sampling": {"steps": 8}})
    about = evaluator(EMA, frozen, one_device_mesh).about
    assert about["settings"]["sampler"]["sampling"] == {"steps": 8} and about["settings"]["seed"] == 0
    assert about["settings"]["reference"]["images"] == "train" and about["settings"]["images"] == 20
    assert about["protocols"]["toy"]["real_images"] == 20


def test_copies_are_found(make, frozen, one_device_mesh, tmp_path):
    evaluator = make()
    evaluator(EMA, frozen, one_device_mesh)
    [folder] = (tmp_path / "drawn").iterdir()
    drawn = np.stack([generation.read_image(path) for path in sorted(folder.iterdir())])
    sets = {"train": drawn[::-1], "heldout": np.random.default_rng(1).integers(0, 256, drawn.shape, np.uint8)}
    copier = dataclasses.replace(
        evaluator, reference_images=lambda split, limit: image_set(split, sets[split]), memorisation=20
    )
    evaluation = copier(EMA, frozen, one_device_mesh)
    assert evaluation.metrics["eval/generation/closer_to_train_toy"] == 1.0
    assert evaluation.metrics["eval/generation/train_distance_toy"] == pytest.approx(0, abs=1e-3)
    assert evaluation.images["memorisation"].dtype == np.uint8
    assert evaluation.about["settings"]["memorisation"]["images"] == "train"
    assert len(LOADED) == 2, "one network a judge, however many sets it looks at"


class Segmenter(nn.Module):
    """Sees class 1 where an image is lighter than grey."""

    num_classes: int = 2

    def __call__(self, images):
        light = images.mean(-1, keepdims=True)
        return jnp.concatenate([-light, light], -1)


def test_a_segmenter_reads_what_was_drawn(make, frozen, one_device_mesh, monkeypatch):
    monkeypatch.setattr(generation, "load_segformer", lambda path: (Segmenter(), {}))
    labels = np.arange(20, dtype=np.uint8)[:, None, None] % 3 + np.zeros((1, 8, 8), np.uint8)
    fields = dict(segmenter="file", label_classes=3, segmenter_size=8)
    metrics = make(labels=labels, **fields)(EMA, frozen, one_device_mesh).metrics
    assert 0 < metrics["eval/generation/pixel_accuracy"] < 1 and 0 < metrics["eval/generation/miou"] < 1
    with pytest.raises(UserError, match="label maps of 5 classes do not fit a segmenter of 2"):
        make(labels=labels, segmenter="file", label_classes=5)
    with pytest.raises(UserError, match="this prior is not told any"):
        make(segmenter="file")


def test_bad_settings_are_found_before_the_training(make):
    for words, fields in (
        ('reference="tain" must be "heldout" or "train"', dict(reference="tain")),
        ("name a protocol", dict(protocols=(), memorisation=5)),
        ('no protocol "toi". Did you mean "toy"', dict(protocols=("toi",))),
        (r"dinov2_vitl14 needs a file of weights", dict(protocols=("dinov2_vitl14",))),
    ):
        with pytest.raises(UserError, match=words):
            make(**fields)
    few = lambda split, limit: image_set(split, np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"heldout: 4 image\(s\) are too few"):
        make(reference_images=few)
    gone = lambda split, limit: pytest.fail("there are no images any more")
    assert make(protocols=(), reference_images=gone).count == 20
