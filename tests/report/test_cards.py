from regvq_jax.report.cards import Card, summarize

TOKENIZER = {"eval/reconstruction/psnr": 20.123, "codebook/usage": 0.5, "codebook/perplexity": 7.0}


def labels(metrics):
    return [card.label for card in summarize(metrics, 16)]


def test_what_people_look_for_comes_first():
    metrics = {"eval/prior/bits_per_token": 3.5, "eval/reconstruction/l1": 0.1, **TOKENIZER}
    assert summarize(metrics, 16) == [
        Card("PSNR", "20.12", "dB"),
        Card("Codebook usage", "50.0 %", "of 16 codes"),
        Card("Perplexity", "7.0", "of 16 codes"),
        Card("Bits a token", "3.500", "of the prior"),
    ]
    assert summarize(TOKENIZER, None)[1].note == ""


def test_few_figures_are_joined_by_others():
    assert labels({**TOKENIZER, "eval/reconstruction/l1": 0.1, "eval/prior/loss": 2.0}) == [
        "PSNR", "Codebook usage", "Perplexity", "L1",
    ]  # fmt: skip
    assert labels({"eval/map_reconstruction/miou": 0.5}) == ["Mean IoU of maps"]
    assert labels({}) == []


def test_distances_are_called_what_they_are():
    distances = {
        "eval/reconstruction/fd_lite0_std": 1.0,
        "eval/reconstruction/fd_lite0": 5.0,
        "eval/generation/fd_lite0": 6.0,
        "eval/generation/fid_torch_fidelity": "nan",
    }
    cards = summarize(TOKENIZER | distances | {"eval/prior/bits_per_token": 1.0}, 16)
    assert [card.label for card in cards] == [
        "PSNR", "Codebook usage", "Perplexity", "rFD", "gFID", "Bits a token",
    ]  # fmt: skip
    assert cards[3] == Card("rFD", "5.00", "lite0") and cards[4] == Card("gFID", "nan", "torch fidelity")
