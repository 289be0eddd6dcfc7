import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from regvq_jax.errors import UserError
from regvq_jax.interop.tokenizer_file import load_tokenizer_file, param_shapes, save_tokenizer
from regvq_jax.models.quantizer import Quantizer
from regvq_jax.models.tokenizer import ImageTokenizer
from regvq_jax.trainers.build import hash_params

SMALL = dict(channels=4, multipliers=(1, 2), num_res_blocks=1, attention_levels=(), latent_channels=6)
MODELS = {
    "regularized": ImageTokenizer(Quantizer("regularized", codebook_size=8, code_dim=4), **SMALL),
    "simvq in bfloat16": ImageTokenizer(
        Quantizer("simvq", codebook_size=8, code_dim=4), **SMALL, dtype=jnp.bfloat16
    ),
    "label maps": ImageTokenizer(
        Quantizer("regularized", codebook_size=8, code_dim=4), **SMALL, out_channels=25
    ),
    "fsq": ImageTokenizer(Quantizer("fsq", codebook_size=15, code_dim=2, levels=(3, 5)), **SMALL),
}


def random_params(model):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), param_shapes(model))


@pytest.fixture(scope="module")
def tokenizer():
    model = MODELS["regularized"]
    return model, random_params(model)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_saved_is_loaded(name, tmp_path):
    model = MODELS[name]
    params = random_params(model)
    save_tokenizer(tmp_path / "x.safetensors", model, params, {"from": "a test", "kept": np.arange(3)})
    loaded, loaded_params, metadata = load_tokenizer_file(tmp_path / "x.safetensors")
    assert loaded == model
    assert hash_params(loaded_params) == hash_params(params)
    assert metadata == {"from": "a test", "kept": [0, 1, 2]}


def test_a_file_from_before_label_maps_is_of_images(tokenizer, tmp_path):
    model, params = tokenizer
    path = tmp_path / "x.safetensors"
    save_tokenizer(path, model, params)
    with safetensors.safe_open(path, "numpy") as file:
        content = json.loads(file.metadata()["regvq_jax"])
    assert content["model"].pop("out_channels") == 3
    safetensors.numpy.save_file(safetensors.numpy.load_file(path), path, {"regvq_jax": json.dumps(content)})
    assert load_tokenizer_file(path)[0] == model


def test_the_file_is_what_other_programs_expect(tokenizer, tmp_path):
    model, params = tokenizer
    path = tmp_path / "x.safetensors"
    # An array whose memory does not lie row by row, as converters make them.
    transposed = {**params, "conv_out": {**params["conv_out"]}}
    kernel = params["conv_out"]["kernel"]
    transposed["conv_out"]["kernel"] = np.ascontiguousarray(kernel.T).T
    save_tokenizer(path, model, transposed)
    tensors = safetensors.numpy.load_file(path)
    np.testing.assert_array_equal(tensors["conv_out/kernel"], kernel)
    assert tensors["quantizer/codebook"].shape == (8, 4) and "encoder/conv_in/kernel" in tensors
    with safetensors.safe_open(path, "numpy") as file:
        content = json.loads(file.metadata()["regvq_jax"])
    assert content["model"]["multipliers"] == [1, 2] and content["model"]["dtype"] == "float32"
    assert content["quantizer"]["kind"] == "regularized" and content["metadata"] == {}


def test_nothing_is_left_of_a_write_that_failed(tokenizer, tmp_path):
    (tmp_path / "x.safetensors").mkdir()
    with pytest.raises(UserError, match="Cannot write .*x.safetensors"):
        save_tokenizer(tmp_path / "x.safetensors", *tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
    with pytest.raises(UserError, match="Cannot write"):
        save_tokenizer(tmp_path / "missing" / "x.safetensors", *tokenizer)


def rewrite(path, change):
    """Applies `change(tensors, content)` to a file."""
    tensors = safetensors.numpy.load_file(path)
    with safetensors.safe_open(path, "numpy") as file:
        content = json.loads(file.metadata()["regvq_jax"])
    change(tensors, content)
    safetensors.numpy.save_file(tensors, path, {"regvq_jax": json.dumps(content)})


def reshape(tensors, content):
    tensors["conv_out/bias"] = np.zeros(4, np.float32)
    tensors["quantizer/codebook"] = np.zeros((9, 4), np.float32)


DAMAGES = {
    "the first of two wrong shapes": (
        reshape,
        r"tensor conv_out/bias is float32\[4\] in the file and float32\[3\] in the network",
    ),
    "another dtype": (
        lambda tensors, content: tensors.update({"conv_out/bias": np.zeros(3, np.float16)}),
        r"conv_out/bias is float16\[3\]",
    ),
    "a missing tensor": (
        lambda tensors, content: tensors.pop("quantizer/codebook"),
        r"quantizer/codebook is absent in the file",
    ),
    "a tensor too many": (
        lambda tensors, content: tensors.update(extra=np.zeros(1)),
        r"extra is float64\[1\] in the file and absent in the network",
    ),
    "another format": (lambda tensors, content: content.update(format_version=2), "has format 2"),
    "an unknown field": (
        lambda tensors, content: content["model"].update(depth_wise=True),
        "fields .* does not know .*depth_wise",
    ),
    "an unknown dtype": (
        lambda tensors, content: content["model"].update(dtype="int4"),
        "fields .* does not know .*int4",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_file_that_does_not_fit_is_refused(name, tokenizer, tmp_path):
    change, words = DAMAGES[name]
    path = tmp_path / "x.safetensors"
    save_tokenizer(path, *tokenizer)
    rewrite(path, change)
    with pytest.raises(UserError, match=words) as error:
        load_tokenizer_file(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_tokenizer_file_is_refused(tokenizer, tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(UserError, match="Cannot read the tokenizer file .*x.safetensors: .*No such file"):
        load_tokenizer_file(path)
    path.write_text("hello")
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_tokenizer_file(path)
    save_tokenizer(path, *tokenizer)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_tokenizer_file(path)
    safetensors.numpy.save_file({"weight": np.zeros(3)}, path)
    with pytest.raises(UserError, match="not one that Tokenizer.save wrote"):
        load_tokenizer_file(path)
