"""VQModel directories against diffusers itself, both ways."""

import json

import jax
import numpy as np
import pytest

from regvq_jax.errors import UserError
from regvq_jax.interop.__main__ import main
from regvq_jax.interop.diffusers import export_directory, import_directory
from regvq_jax.interop.tokenizer_file import load_tokenizer_file, param_shapes, save_tokenizer
from regvq_jax.models.quantizer import Quantizer
from regvq_jax.models.tokenizer import ImageTokenizer

FIELDS = dict(
    channels=16,
    multipliers=(1, 2),
    num_res_blocks=1,
    attention_levels=(1,),
    latent_channels=8,
    norm_groups=8,
)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)


def make_model(quantizer=None, **fields):
    quantizer = dict(kind="nearest", codebook_size=64, code_dim=6) | (quantizer or {})
    return ImageTokenizer(Quantizer(**quantizer), **(FIELDS | fields))


def run_diffusers(torch, network, images):
    """(codes [B, h, w], images [B, H, W, 3]) of a VQModel, the second from the codes alone."""
    with torch.no_grad():
        latents = network.encode(torch.tensor(images).permute(0, 3, 1, 2)).latents
        codes = network.quantize(latents)[2][2].reshape(len(images), *latents.shape[2:])
        shape = (*codes.shape, latents.shape[1])
        network.register_to_config(lookup_from_codebook=True)
        decoded = network.decode(codes.flatten(), force_not_quantize=True, shape=shape).sample
        # As a user without codes in between gets them.
        np.testing.assert_allclose(decoded, network.decode(latents).sample, atol=1e-5)
    return codes.numpy(), decoded.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(
    "widths, layers, attention, groups",
    [((32, 64), 1, (False, False), 8), ((16, 16, 32), 2, (False, True, True), 16)],
)
def test_import_has_the_parity_of_diffusers(tmp_path, widths, layers, attention, groups, encode_and_decode):
    torch = pytest.importorskip("torch", reason="needs the extra [parity]")
    diffusers = pytest.importorskip("diffusers", reason="needs the extra [parity]")
    torch.manual_seed(0)
    network = diffusers.VQModel(
        down_block_types=[f"{'Attn' if x else ''}DownEncoderBlock2D" for x in attention],
        up_block_types=[f"{'Attn' if x else ''}UpDecoderBlock2D" for x in attention[::-1]],
        block_out_channels=widths,
        layers_per_block=layers,
        latent_channels=6,
        vq_embed_dim=5,
        num_vq_embeddings=32,
        norm_num_groups=groups,
    )
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape))
        latents = network.encode(torch.tensor(IMAGES).permute(0, 3, 1, 2)).latents
        features = latents.permute(0, 2, 3, 1).reshape(-1, 5)
        network.quantize.embedding.weight.copy_(features[torch.randperm(len(features))[:32]])
    codes, images = run_diffusers(torch, network, IMAGES)
    assert len(np.unique(codes)) > 8
    network.save_pretrained(tmp_path)

    model, params = import_directory(tmp_path)
    assert model.attention_levels == tuple(np.flatnonzero(attention))
    found, decoded = encode_and_decode(model, params, IMAGES)
    np.testing.assert_array_equal(found, codes)
    np.testing.assert_allclose(decoded, images, atol=1e-4)


@pytest.mark.parametrize(
    "quantizer",
    [dict(kind="nearest"), dict(kind="regularized", logits="projection")],
    ids=["nearest", "projection"],
)
def test_diffusers_runs_what_we_export(tmp_path, quantizer, lively_params, encode_and_decode):
    torch = pytest.importorskip("torch", reason="needs the extra [parity]")
    diffusers = pytest.importorskip("diffusers", reason="needs the extra [parity]")
    model = make_model(quantizer)
    params = lively_params(model, IMAGES)
    codes, images = encode_and_decode(model, params, IMAGES)
    assert len(np.unique(codes)) > 16

    export_directory(tmp_path / "vqmodel", model, params)
    network, info = diffusers.VQModel.from_pretrained(tmp_path / "vqmodel", output_loading_info=True)
    assert not any(info.values()), info
    found, decoded = run_diffusers(torch, network, IMAGES)
    np.testing.assert_array_equal(found, codes)
    np.testing.assert_allclose(decoded, images, atol=1e-4)


@pytest.mark.parametrize(
    "quantizer",
    [
        dict(kind="simvq"),
        dict(kind="lfq", codebook_size=64),
        dict(kind="deterministic", logits="distance"),
        dict(kind="gumbel", logits="projection"),
        dict(kind="ibq"),
    ],
    ids=lambda q: q["kind"],
)
def test_a_quantizer_that_has_no_counterpart_exports_with_the_same_codes(tmp_path, quantizer):
    model = make_model(quantizer)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), param_shapes(model))
    export_directory(tmp_path, model, params)
    exported, exported_params = import_directory(tmp_path)
    assert exported.quantizer.kind == "nearest"

    def codes_and_latents(model, params, latents):
        features = model.bind({"params": params}).quant_conv(latents)
        out = model.apply({"params": params}, features, method="quantize")
        return out.best_codes, model.bind({"params": params}).post_quant_conv(out.quantized)

    latents = rng.normal(size=(2, 8, 8, 8)).astype(np.float32)
    codes, vectors = codes_and_latents(model, params, latents)
    found, found_vectors = codes_and_latents(exported, exported_params, latents)
    np.testing.assert_array_equal(codes, found)
    np.testing.assert_allclose(vectors, found_vectors, rtol=1e-4, atol=1e-4)
    assert len(np.unique(codes)) > 8


def test_export_and_import_keep_every_bit(tmp_path, capsys):
    model = make_model(multipliers=(1, 2, 2), attention_levels=(0, 2))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), param_shapes(model))
    ours, theirs, again = (str(tmp_path / name) for name in ("a.safetensors", "vqmodel", "b.safetensors"))
    save_tokenizer(ours, model, params)
    main(["export", "--format=diffusers", f"--input={ours}", f"--output={theirs}"])
    main(["import", "--format=diffusers", f"--input={theirs}", f"--output={again}"])
    assert capsys.readouterr().out.split() == [theirs, again]
    loaded, loaded_params, _ = load_tokenizer_file(again)
    assert loaded == model
    jax.tree.map(np.testing.assert_array_equal, loaded_params, params)


@pytest.mark.parametrize(
    "field, value",
    [
        ("_class_name", "AutoencoderKL"),
        ("norm_type", "spatial"),
        ("mid_block_add_attention", False),
        ("act_fn", "gelu"),
    ],
)
def test_another_architecture_is_refused_by_its_field(tmp_path, field, value):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "VQModel", field: value}))
    with pytest.raises(UserError, match=f"{field} of .* is {value}"):
        import_directory(tmp_path)


@pytest.mark.parametrize(
    "quantizer, fields, says",
    [
        ({}, dict(norm_groups=0), "4, 8; train with config.model.norm_groups=4"),
        ({}, dict(architecture="maskgit", attention_levels=(), middle_attention=False), "maskgit"),
        ({}, dict(multipliers=(2, 2)), "begins with 2"),
        (dict(depth=3), {}, "3 codes a place"),
    ],
)
def test_what_cannot_be_exported_says_why_and_writes_nothing(tmp_path, quantizer, fields, says):
    with pytest.raises(UserError, match=says):
        export_directory(tmp_path / "vqmodel", make_model(quantizer, **fields), {})
    assert not (tmp_path / "vqmodel").exists()
