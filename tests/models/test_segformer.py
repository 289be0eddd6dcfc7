"""SegFormer: its sizes out of a file, its head against plain numpy, and the same logits as transformers."""

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from regvq_jax.errors import UserError
from regvq_jax.interop.segmenter_weights import load_segformer
from regvq_jax.models.segformer import SegFormer, resize_bilinear

CLASSES, HEAD = 7, 12
WIDTHS, DEPTHS, HIDDEN, REDUCTIONS = (4, 6, 10, 16), (1, 2, 1, 1), (8, 12, 20, 16), (8, 4, 2, 1)


def make_weights():
    """Random weights of a small SegFormer, with the names and shapes of transformers."""
    rng = np.random.default_rng(0)
    weights = {}

    def add(name, *shape):
        kernel = rng.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)
        weights.update({f"{name}.weight": kernel, f"{name}.bias": rng.normal(0, 0.1, shape[0])})

    def add_norm(name, width):
        weights.update({f"{name}.weight": rng.uniform(0.5, 2, width), f"{name}.bias": rng.normal(size=width)})

    for stage, (width, hidden, reduction) in enumerate(zip(WIDTHS, HIDDEN, REDUCTIONS, strict=True)):
        inputs, patch = (3, 7) if stage == 0 else (WIDTHS[stage - 1], 3)
        add(f"segformer.encoder.patch_embeddings.{stage}.proj", width, inputs, patch, patch)
        add_norm(f"segformer.encoder.patch_embeddings.{stage}.layer_norm", width)
        for layer in range(DEPTHS[stage]):
            block = f"segformer.encoder.block.{stage}.{layer}"
            for name in ("self.query", "self.key", "self.value", "output.dense"):
                add(f"{block}.attention.{name}", width, width)
            if reduction > 1:
                add(f"{block}.attention.self.sr", width, width, reduction, reduction)
                add_norm(f"{block}.attention.self.layer_norm", width)
            add_norm(f"{block}.layer_norm_1", width)
            add_norm(f"{block}.layer_norm_2", width)
            add(f"{block}.mlp.dense1", hidden, width)
            add(f"{block}.mlp.dwconv.dwconv", hidden, 1, 3, 3)
            add(f"{block}.mlp.dense2", width, hidden)
        add_norm(f"segformer.encoder.layer_norm.{stage}", width)
        add(f"decode_head.linear_c.{stage}.proj", HEAD, width)
    weights["decode_head.linear_fuse.weight"] = rng.normal(0, 0.2, (HEAD, 4 * HEAD, 1, 1))
    add_norm("decode_head.batch_norm", HEAD)
    weights["decode_head.batch_norm.running_mean"] = rng.normal(size=HEAD)
    weights["decode_head.batch_norm.running_var"] = rng.uniform(0.5, 2, HEAD)
    weights["decode_head.batch_norm.num_batches_tracked"] = np.array(3)
    add("decode_head.classifier", CLASSES, HEAD, 1, 1)
    floats = {k: v.astype(np.float32) for k, v in weights.items() if v.dtype != np.int64}
    return {**weights, **floats}


@pytest.fixture(scope="module")
def weights():
    return make_weights()


@pytest.fixture(scope="module")
def loaded(weights, tmp_path_factory):
    """(module, params) from a file."""
    path = tmp_path_factory.mktemp("segmenter") / "model.safetensors"
    safetensors.numpy.save_file(weights, path)
    return load_segformer(path)


def test_sizes_are_those_of_the_file(loaded, weights):
    module, params = loaded
    assert module == SegFormer(CLASSES, WIDTHS, DEPTHS, (1, 2, 5, 8), REDUCTIONS, HIDDEN, HEAD)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), shapes
    )
    layers, block = params["stage_1"]["layers"], "segformer.encoder.block.1.1"
    # Of the second layer: head 1 of two, its channel 2 is row 1 * 3 + 2 there.
    assert layers["attention"]["query"]["kernel"][1, 4, 1, 2] == (
        weights[f"{block}.attention.self.query.weight"][5, 4]
    )
    assert layers["attention"]["out"]["kernel"][1, 1, 2, 4] == (
        weights[f"{block}.attention.output.dense.weight"][4, 5]
    )
    reduce, mix = weights[f"{block}.attention.self.sr.weight"], weights[f"{block}.mlp.dwconv.dwconv.weight"]
    assert layers["reduce"]["kernel"][1, 3, 1, 2, 5] == reduce[5, 2, 3, 1]
    assert layers["mlp_mix"]["kernel"][1, 0, 2, 0, 9] == mix[9, 0, 0, 2]


def test_the_head_is_one_map_a_stage(loaded, weights):
    _, params = loaded
    get = lambda name: weights[f"decode_head.{name}"].astype(np.float64)
    # The head as it is trained, on one place that every stage has features of.
    rng = np.random.default_rng(1)
    features = [rng.normal(size=width) for width in WIDTHS]
    each = [
        get(f"linear_c.{i}.proj.weight") @ x + get(f"linear_c.{i}.proj.bias") for i, x in enumerate(features)
    ]
    fused = get("linear_fuse.weight")[:, :, 0, 0] @ np.concatenate(each[::-1])
    deviation = np.sqrt(get("batch_norm.running_var") + 1e-5)
    expected = (fused - get("batch_norm.running_mean")) / deviation * get("batch_norm.weight")
    expected += get("batch_norm.bias")
    found = sum(x @ params[f"head_{i}"]["kernel"] for i, x in enumerate(features)) + params["head_0"]["bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_images_are_not_too_small(loaded):
    module, params = loaded
    run = lambda side: jax.eval_shape(module.apply, {"params": params}, jnp.zeros((1, side, 40, 3)))
    assert module.smallest_image() == 29 and run(29).shape == (1, 8, 10, CLASSES)
    with pytest.raises(UserError, match="Images of 28x40 pixels .* at least 29x29"):
        run(28)


def without(name):
    return lambda weights: {key: value for key, value in weights.items() if key != name}


def with_zeros(name, *shape):
    return lambda weights: weights | {name: np.zeros(shape, np.float32)}


EMBEDDING = "segformer.encoder.patch_embeddings.1.proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: {"layer1.0.conv1.weight": np.zeros((1, 1))}, "patch_embeddings.0.proj.weight is missing"),
        # An encoder alone, as of nvidia/mit-b5.
        (without("decode_head.classifier.weight"), "decode_head.classifier.weight is missing"),
        (without("segformer.encoder.block.1.0.mlp.dense2.bias"), r"1.0.mlp.dense2.bias is missing, .*\(6,\)"),
        (without("decode_head.batch_norm.running_var"), r"running_var is missing, expected \(12,\)"),
        (with_zeros("decode_head.linear_c.2.proj.weight", 12, 9), r"is \(12, 9\), expected \(12, 10\)"),
        (with_zeros(EMBEDDING, 7, 4, 3, 3), "width 7, expected 2 heads"),
        (with_zeros(EMBEDDING, 6, 4), r"embeddings.1.proj.weight is \(6, 4\), expected 4 dimensions"),
    ],
)
def test_another_file(tmp_path, weights, change, message):
    safetensors.numpy.save_file(change(weights), tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=f"other.* is not of a SegFormer: .*{message}.*segformer-b5"):
        load_segformer(tmp_path / "other.safetensors")


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="Cannot read the weights in .*nowhere"):
        load_segformer(tmp_path / "nowhere.safetensors")


def import_parity():
    torch = pytest.importorskip("torch", reason="needs the extra [parity]")
    transformers = pytest.importorskip("transformers", reason="needs the extra [parity]")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return torch, transformers


def test_equals_transformers(tmp_path, monkeypatch):
    torch, transformers = import_parity()
    torch.manual_seed(0)
    config = transformers.SegformerConfig(
        hidden_sizes=WIDTHS,
        depths=DEPTHS,
        num_attention_heads=(1, 2, 5, 8),
        mlp_ratios=(2, 2, 2, 1),
        sr_ratios=REDUCTIONS,
        decoder_hidden_size=HEAD,
        num_labels=CLASSES,
    )
    model = transformers.SegformerForSemanticSegmentation(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        model.decode_head.batch_norm.running_mean.normal_()
        model.decode_head.batch_norm.running_var.uniform_(0.5, 2)
    model.save_pretrained(tmp_path)
    module, params = load_segformer(tmp_path / "model.safetensors")
    run = jax.jit(lambda params, images: module.apply({"params": params}, images))
    # The second has sides that nothing divides.
    for height, width in ((64, 96), (45, 34)):
        images = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
        with torch.no_grad():
            logits = model(torch.from_numpy(images).permute(0, 3, 1, 2)).logits
        expected = logits.permute(0, 2, 3, 1).numpy()
        # Logits that tell the places and the classes apart.
        assert expected.std((1, 2)).min() > 0.1 and expected.std(-1).min() > 0.1
        np.testing.assert_allclose(run(params, images), expected, atol=1e-4)

    # The same in torch's format, and from afar.
    monkeypatch.setenv("REGVQ_JAX_CACHE", str(tmp_path / "cache"))
    content = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    with fsspec.open("memory://segmenters/pytorch_model.bin", "wb") as file:
        torch.save({name: torch.from_numpy(array) for name, array in content.items()}, file)
    other, other_params = load_segformer("memory://segmenters/pytorch_model.bin")
    assert other == module
    jax.tree.map(np.testing.assert_array_equal, other_params, params)
    fsspec.filesystem("memory").rm("/segmenters", recursive=True)


def test_resizing_by_hand():
    x = jnp.array([0.0, 1.0, 4.0, 4.0]).reshape(1, 1, 4, 1)
    # New centres lie at a quarter and three quarters of the old; beyond the edge is the edge.
    np.testing.assert_allclose(
        resize_bilinear(x, 1, 8)[0, 0, :, 0], [0, 0.25, 0.75, 1.75, 3.25, 4, 4, 4], atol=1e-6
    )
    np.testing.assert_allclose(resize_bilinear(x, 1, 2)[0, 0, :, 0], [0.5, 4], atol=1e-6)
