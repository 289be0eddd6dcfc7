"""The few figures of a run that people look for first."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from regvq_jax.report.tables import styled

# What people look for first, in this order: label, pattern of its tag, factor, format, note.
_CARDS = (
    ("PSNR", r"eval/reconstruction/psnr", 1, "{:.2f}", "dB"),
    ("Codebook usage", r"codebook/usage", 100, "{:.1f} %", ""),
    ("Perplexity", r"codebook/perplexity", 1, "{:,.1f}", ""),
    ("rFID", r"eval/reconstruction/fid_(.+)", 1, "{:.2f}", ""),
    ("rFD", r"eval/reconstruction/fd_(.+)", 1, "{:,.2f}", ""),
    ("gFID", r"eval/(?:generation|samples)/fid_(.+)", 1, "{:.2f}", ""),
    ("gFD", r"eval/(?:generation|samples)/fd_(.+)", 1, "{:,.2f}", ""),
    ("Bits a token", r"eval/prior/bits_per_token", 1, "{:.3f}", "of the prior"),
)
# What fills the strip where there are few of those.
_SPARE_CARDS = (
    ("Mean IoU of maps", r"eval/map_reconstruction/miou", 1, "{:.3f}", "rebuilt"),
    ("Right map pixels", r"eval/map_reconstruction/accuracy", 100, "{:.1f} %", "rebuilt"),
    ("LPIPS", r"eval/reconstruction/lpips_(.+)", 1, "{:.4f}", ""),
    ("L1", r"eval/reconstruction/l1", 1, "{:.4f}", "images in [-1, 1]"),
    ("Nats a token", r"eval/prior/loss", 1, "{:.3f}", "of the prior"),
    ("Shuffled conditions", r"eval/prior/loss_shuffled", 1, "{:.3f}", "nats a token"),
)
_FEWEST, _MOST = 4, 6


class Card(NamedTuple):
    """A figure of the strip at the top: what it is, its value, and a word on it."""

    label: str
    value: str
    note: str


def summarize(metrics: Mapping[str, Any], codebook_size: int | None) -> list[Card]:
    """The strip at the top: four to six figures, where there are as many.

    Args:
        metrics: all figures of the run by tag, in order of preference.
        codebook_size: K, None where it is not known.
    """
    cards = _find_cards(_CARDS, metrics, codebook_size)
    labels = {card.label for card in cards}
    # FID says more to more people than a distance in other features.
    cards = [x for x in cards if not (x.label.endswith("FD") and f"{x.label[0]}FID" in labels)][:_MOST]
    return cards + _find_cards(_SPARE_CARDS, metrics, None)[: max(0, _FEWEST - len(cards))]


def _find_cards(wanted: Sequence[tuple], metrics: Mapping[str, Any], codebook_size: int | None) -> list[Card]:
    cards = []
    for label, pattern, factor, style, note in wanted:
        for tag, value in metrics.items():
            match = re.fullmatch(pattern, tag)
            if match and not tag.endswith("_std"):
                if match.groups():
                    note = match[1].replace("_", " ")
                elif codebook_size and tag.startswith("codebook/"):
                    note = f"of {codebook_size:,} codes"
                cards.append(Card(label, styled(value, style, factor), note))
                break
    return cards
