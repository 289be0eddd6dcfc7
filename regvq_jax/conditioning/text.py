"""CLIP's byte-pair tokenizer: captions to fixed-length rows of token ids, on the host."""

import functools
import gzip
import html
import importlib.resources
import unicodedata
from collections.abc import Iterable

import tokenizers
from tokenizers import models, pre_tokenizers

from regvq_jax.conditioning.text_rows import RowTokenizer
from regvq_jax.errors import UserError

BOS_ID = 49406
EOS_ID = 49407
# CLIP pads with 0 or with EOS, both of which are also real tokens. An id of its own lets every
# reader of a row derive its mask as `ids != PAD_ID`.
PAD_ID = 49408
VOCAB_SIZE = 49409

_VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"
_NUM_MERGES = BOS_ID - 2 * 256  # The file lists more merges than CLIP uses.
_WORD_END = "</w>"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_STRAIGHT_QUOTES = str.maketrans(
    {**dict.fromkeys("\u02bc\u2018\u2019\u201a\u201b", "'"), **dict.fromkeys("“”„‟", '"')}
)


class TextTokenizer(RowTokenizer):
    """Captions to CLIP token ids and back; get it from `make_tokenizer`.

    Rows are as in `RowTokenizer`. Every Unicode string has ids, byte by byte where the vocabulary knows
    no better. Pickles as its name, not its content, so that data workers can hold one.
    """

    vocab_size = VOCAB_SIZE
    bos_id = BOS_ID
    eos_id = EOS_ID
    pad_id = PAD_ID

    def __init__(self):
        byte_symbols = _byte_symbols()
        merges = _read_merges()
        symbols = [*byte_symbols.values(), *(s + _WORD_END for s in byte_symbols.values())]
        symbols += ["".join(pair) for pair in merges]
        self._symbols = symbols
        self._symbol_bytes = {symbol: byte for byte, symbol in byte_symbols.items()}
        self._bpe = tokenizers.Tokenizer(
            models.BPE(
                vocab={symbol: i for i, symbol in enumerate(symbols)},
                merges=merges,
                end_of_word_suffix=_WORD_END,
            )
        )
        self._bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(_WORDS), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

    def __reduce__(self):
        return make_tokenizer, ()

    def decode(self, ids: Iterable[int]) -> str:
        """Turns one row of ids back into a caption, lower case, with a space after each word.

        Args:
            ids: int [L], as `encode` returns; BOS, EOS and padding are skipped.

        Returns:
            The caption without a trailing space; bytes that a cut left incomplete become U+FFFD.

        Raises:
            UserError: an id is outside the vocabulary.
        """
        content = bytearray()
        for i in map(int, ids):
            if not 0 <= i < VOCAB_SIZE:
                raise UserError(f"Text token id {i} is outside the vocabulary of {VOCAB_SIZE} ids.")
            if i >= BOS_ID:
                continue
            symbol = self._symbols[i]
            content += bytes(self._symbol_bytes[c] for c in symbol.removesuffix(_WORD_END))
            if symbol.endswith(_WORD_END):
                content += b" "
        return content.decode("utf-8", errors="replace").rstrip(" ")

    def _words(self, text: str) -> list[int]:
        return self._bpe.encode(clean(text)).ids


@functools.lru_cache(maxsize=1)
def make_tokenizer() -> TextTokenizer:
    """Returns the process's one `TextTokenizer`, built on the first call."""
    return TextTokenizer()


def clean(text: str) -> str:
    """Brings a caption into the form CLIP's vocabulary was made for.

    HTML entities are resolved, Unicode is composed (NFC), curly quotes become straight, white space
    becomes single spaces, letters become lower case. Differs from CLIP in that mis-decoded text,
    ligatures and full-width letters are left as they are.
    """
    text = html.unescape(html.unescape(text))
    text = unicodedata.normalize("NFC", text).translate(_STRAIGHT_QUOTES)
    return " ".join(text.split()).lower()


def _byte_symbols() -> dict[int, str]:
    """Maps each byte to one printable character, in the order of CLIP's vocabulary."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    symbols = {byte: chr(byte) for byte in printable}
    return symbols | {byte: chr(256 + i) for i, byte in enumerate(rest)}


def _read_merges() -> list[tuple[str, str]]:
    file = importlib.resources.files(__package__) / _VOCABULARY_FILE
    lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")
    return [tuple(line.split()) for line in lines[1 : 1 + _NUM_MERGES]]  # Line 0 is a version.
