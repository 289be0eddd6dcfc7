"""Checkpoints of taming-transformers against a small network of the same names in torch, both ways."""

import pickle

import jax
import numpy as np
import pytest

from regvq_jax.errors import UserError
from regvq_jax.interop import taming
from regvq_jax.interop.__main__ import main
from regvq_jax.interop.tokenizer_file import load_tokenizer_file, param_shapes, save_tokenizer
from regvq_jax.models.quantizer import Quantizer
from regvq_jax.models.tokenizer import ImageTokenizer

FIELDS = dict(
    channels=32,
    multipliers=(1, 2),
    num_res_blocks=1,
    attention_levels=(1,),
    latent_channels=8,
    norm_groups=32,
)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)


def make_model(kind="nearest", code_dim=6, **fields):
    return ImageTokenizer(Quantizer(kind=kind, codebook_size=64, code_dim=code_dim), **(FIELDS | fields))


def random_params(model):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), param_shapes(model))


def taming_network(torch, fields, quantizer, code_dim):
    """The encoder and decoder of CompVis as torch modules, with its names for all parameters."""
    nn, functional = torch.nn, torch.nn.functional
    norm = lambda channels: nn.GroupNorm(32, channels, eps=1e-6)

    class Residual(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.norm1, self.norm2 = norm(inputs), norm(outputs)
            self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
            self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
            if inputs != outputs:
                self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

        def forward(self, x):
            h = self.conv1(functional.silu(self.norm1(x)))
            h = self.conv2(functional.silu(self.norm2(h)))
            return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)

    class Attention(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.norm = norm(channels)
            self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

        def forward(self, x):
            h = self.norm(x)
            q, k, v = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))
            weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) * x.shape[1] ** -0.5, -1)
            return x + self.proj_out(torch.einsum("bij,bcj->bci", weights, v).reshape(x.shape))

    class Resample(nn.Module):
        def __init__(self, channels, stride):
            super().__init__()
            self.stride = stride
            self.conv = nn.Conv2d(channels, channels, 3, stride, padding=0 if stride == 2 else 1)

        def forward(self, x):
            if self.stride == 2:
                return self.conv(functional.pad(x, (0, 1, 0, 1)))
            return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))

    class Level(nn.Module):
        def __init__(self, inputs, outputs, count, attention):
            super().__init__()
            self.block = nn.ModuleList(Residual(outputs if i else inputs, outputs) for i in range(count))
            self.attn = nn.ModuleList(Attention(outputs) for _ in range(count if attention else 0))

        def forward(self, x):
            for i, block in enumerate(self.block):
                x = block(x)
                if self.attn:
                    x = self.attn[i](x)
            for resample in (getattr(self, "downsample", None), getattr(self, "upsample", None)):
                x = resample(x) if resample else x
            return x

    class Middle(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.block_1, self.attn_1 = Residual(channels, channels), Attention(channels)
            self.block_2 = Residual(channels, channels)

        def forward(self, x):
            return self.block_2(self.attn_1(self.block_1(x)))

    widths = [fields["channels"] * m for m in fields["multipliers"]]
    last, blocks = len(widths) - 1, fields["num_res_blocks"]

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv_in = nn.Conv2d(3, fields["channels"], 3, padding=1)
            self.down = nn.ModuleList()
            for i, (before, width) in enumerate(zip([fields["channels"], *widths], widths, strict=False)):
                self.down.append(Level(before, width, blocks, i in fields["attention_levels"]))
                if i < last:
                    self.down[i].downsample = Resample(width, 2)
            self.mid, self.norm_out = Middle(widths[-1]), norm(widths[-1])
            self.conv_out = nn.Conv2d(widths[-1], fields["latent_channels"], 3, padding=1)

        def forward(self, x):
            x = self.conv_in(x)
            for level in self.down:
                x = level(x)
            return self.conv_out(functional.silu(self.norm_out(self.mid(x))))

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv_in = nn.Conv2d(fields["latent_channels"], widths[-1], 3, padding=1)
            self.mid, self.norm_out = Middle(widths[-1]), norm(widths[0])
            before = [*widths[1:], widths[-1]]
            self.up = nn.ModuleList(
                Level(before[i], width, blocks + 1, i in fields["attention_levels"])
                for i, width in enumerate(widths)
            )
            for i in range(1, last + 1):
                self.up[i].upsample = Resample(widths[i], 1)
            self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

        def forward(self, x):
            x = self.mid(self.conv_in(x))
            for level in reversed(self.up):
                x = level(x)
            return self.conv_out(functional.silu(self.norm_out(x)))

    class VQModel(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder, self.quantize = Encoder(), Decoder(), nn.Module()
            self.quant_conv = nn.Conv2d(fields["latent_channels"], code_dim, 1)
            self.post_quant_conv = nn.Conv2d(code_dim, fields["latent_channels"], 1)
            if quantizer == "nearest":
                self.quantize.embedding = nn.Embedding(64, code_dim)
            else:
                self.quantize.proj = nn.Conv2d(code_dim, 64, 1)
                self.quantize.embed = nn.Embedding(64, code_dim)

        def forward(self, x):
            """(codes [B, h, w], images)."""
            features = self.quant_conv(self.encoder(x))
            if quantizer == "nearest":
                table = self.quantize.embedding.weight
                places = features.permute(0, 2, 3, 1)
                codes = ((places[..., None, :] - table) ** 2).sum(-1).argmin(-1)
            else:
                table = self.quantize.embed.weight
                codes = self.quantize.proj(features).argmax(1)
            return codes, self.decoder(self.post_quant_conv(table[codes].permute(0, 3, 1, 2)))

    return VQModel()


@pytest.mark.parametrize("kind, code_dim", [("nearest", 6), ("gumbel", 8)])
def test_parity_with_torch(kind, code_dim, lively_params, encode_and_decode):
    torch = pytest.importorskip("torch", reason="needs the extra [parity]")
    model = make_model(kind, code_dim)
    params = lively_params(model, IMAGES)
    codes, images = encode_and_decode(model, params, IMAGES)
    assert len(np.unique(codes)) > 16

    # Strictly: all its names and shapes, and no others.
    network = taming_network(torch, FIELDS, kind, code_dim)
    state = {name: torch.tensor(x) for name, x in taming.export_state(model, params).items()}
    network.load_state_dict(state, strict=True)
    with torch.no_grad():
        torch_codes, torch_images = network(torch.tensor(IMAGES).permute(0, 3, 1, 2))
    np.testing.assert_array_equal(codes, torch_codes.numpy())
    np.testing.assert_allclose(images, torch_images.permute(0, 2, 3, 1).numpy(), atol=1e-4)

    state = {name: value.numpy() for name, value in network.state_dict().items()}
    others = {"loss.logvar": np.zeros(()), "loss.discriminator.main.0.weight": np.zeros((1, 3, 4, 4))}
    imported, imported_params = taming.import_state(state | others)
    assert imported == model
    jax.tree.map(np.testing.assert_array_equal, imported_params, params)


@pytest.mark.parametrize("kind, code_dim", [("nearest", 6), ("gumbel", 8)])
def test_export_and_import_keep_every_bit(kind, code_dim):
    model = make_model(kind, code_dim, multipliers=(1, 2, 2), attention_levels=(0, 2))
    params = random_params(model)
    state = taming.export_state(model, params)
    again, back = taming.import_state({f"first_stage_model.{name}": x for name, x in state.items()})
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, back, params)


@pytest.mark.parametrize(
    "kind, logits", [("regularized", "dot"), ("ibq", "dot"), ("deterministic", "distance")]
)
def test_other_quantizers_export_as_the_one_with_the_same_codes(kind, logits):
    quantizer = Quantizer(kind=kind, codebook_size=64, code_dim=8, logits=logits)
    model = ImageTokenizer(quantizer, **FIELDS)
    params = random_params(model)
    exported, exported_params = taming.import_state(taming.export_state(model, params))
    assert exported.quantizer.kind == ("nearest" if logits == "distance" else "gumbel")
    features = np.random.default_rng(1).normal(size=(1, 4, 4, 8)).astype(np.float32)
    codes, exported_codes = (
        m.apply({"params": p}, features, method="quantize").best_codes
        for m, p in ((model, params), (exported, exported_params))
    )
    np.testing.assert_array_equal(codes, exported_codes)
    assert len(np.unique(codes)) > 4


@pytest.fixture(scope="module")
def exported_state():
    model = make_model()
    return taming.export_state(model, random_params(model))


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda s: s.pop("decoder.up.1.block.0.conv1.bias"), "decoder.up.1.block.0.conv1.bias is absent"),
        (
            lambda s: s.update({"encoder.down.1.block.0.norm2.weight": np.ones(7)}),
            r"norm2.weight is \[7\] in the checkpoint and \[64\]",
        ),
        (lambda s: s.update({"encoder.mid.attn_2.q.weight": np.ones(7)}), r"the first is encoder.mid.attn_2"),
        (lambda s: s.pop("quantize.embedding.weight"), "holds no codebook"),
        (lambda s: s.pop("encoder.conv_in.weight"), "has no tensor encoder.conv_in.weight"),
        (
            lambda s: s.pop("encoder.down.0.block.0.conv1.weight"),
            "has no tensor encoder.down.0.block.0.conv1",
        ),
        (lambda s: s.update({"encoder.down.1.block.0.conv1.weight": np.ones((40, 32, 3, 3))}), "40 channels"),
    ],
)
def test_what_does_not_fit_is_named(change, says, exported_state):
    state = dict(exported_state)
    change(state)
    with pytest.raises(UserError, match=says):
        taming.import_state(state)


@pytest.mark.parametrize(
    "fields, quantizer, says",
    [
        (dict(norm_groups=16), {}, "norm_groups=32"),
        (dict(norm_groups=0), {}, "8, 16; train with config.model.norm_groups=32"),
        (dict(middle_attention=False), {}, "middle_attention=True"),
        ({}, dict(kind="gumbel"), "latent_channels"),
        ({}, dict(depth=2), "2 codes a place"),
        ({}, dict(kind="fsq", codebook_size=64, levels=(2,) * 6), "levels instead of a codebook"),
    ],
)
def test_what_cannot_be_exported_says_why(fields, quantizer, says):
    model = ImageTokenizer(
        Quantizer(**(dict(kind="nearest", codebook_size=64, code_dim=6) | quantizer)), **(FIELDS | fields)
    )
    with pytest.raises(UserError, match=says):
        taming.export_state(model, random_params(model))


def test_commands(tmp_path, capsys):
    model = make_model()
    params = random_params(model)
    ours, theirs, again = (str(tmp_path / f"{name}.safetensors") for name in ("ours", "theirs", "again"))
    save_tokenizer(ours, model, params)
    main(["export", "--format=taming", f"--input={ours}", f"--output={theirs}"])
    main(["import", "--format=taming", f"--input={theirs}", f"--output={again}"])
    assert capsys.readouterr().out.split() == [theirs, again]
    loaded, loaded_params, metadata = load_tokenizer_file(again)
    assert loaded == model and metadata["imported_from"] == {"format": "taming", "path": theirs}
    jax.tree.map(np.testing.assert_array_equal, loaded_params, params)


class Unwanted:
    def __reduce__(self):
        return (print, ("run by a pickle",))


def test_a_pickle_that_is_more_than_weights_is_refused(tmp_path, capsys):
    checkpoint = tmp_path / "last.ckpt"
    checkpoint.write_bytes(pickle.dumps({"state_dict": {"encoder.conv_in.weight": Unwanted()}}))
    output = tmp_path / "out.safetensors"
    with pytest.raises(UserError):
        main(["import", "--format=taming", f"--input={checkpoint}", f"--output={output}"])
    assert "run by a pickle" not in capsys.readouterr().out and not output.exists()


@pytest.mark.parametrize("argv", [[], ["import"], ["export", "--format=other", "--input=x", "--output=y"]])
def test_mistaken_flags_are_one_sentence(argv):
    with pytest.raises(UserError, match="--help"):
        main(argv)


def test_a_network_too_narrow_for_taming_is_told_so():
    narrow = ImageTokenizer(
        Quantizer(kind="nearest", codebook_size=4, code_dim=4), channels=16, multipliers=(1, 2)
    )
    with pytest.raises(UserError, match="cannot split the widths 16, 32 .* multiple of 32"):
        taming.export_state(narrow, {})
