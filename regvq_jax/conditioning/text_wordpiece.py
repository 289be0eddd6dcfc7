"""BERT's word-piece tokenizer, from a tokenizer.json: captions to rows of token ids, on the host."""

import functools
import os
from pathlib import Path

import tokenizers

from regvq_jax.conditioning.text_rows import RowTokenizer
from regvq_jax.errors import UserError


class WordPieceTokenizer(RowTokenizer):
    """Captions to the ids of a BERT; get it from `make_wordpiece_tokenizer`.

    Rows are as in `RowTokenizer`. A word that the vocabulary cannot spell is one [UNK]. Pickles as the
    path of its file, which data workers open again.
    """

    def __init__(self, file: str):
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(file)
        except Exception as error:  # The library raises nothing narrower.
            raise UserError(f"{file} is missing or no tokenizer.json ({error}); fetch it again.") from error
        self._file = file
        # Files come with a length of their own.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # Else a caption could write [SEP] or [PAD].
        self._tokenizer.encode_special_tokens = True
        ids = {token: self._tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]", "[PAD]")}
        for token, i in ids.items():
            if i is None:
                raise UserError(f"{file} has no token {token}; name the tokenizer.json of a BERT.")
        self.bos_id, self.eos_id, self.pad_id = ids.values()
        self.vocab_size = self._tokenizer.get_vocab_size()

    def __reduce__(self):
        return make_wordpiece_tokenizer, (self._file,)

    def _words(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids


def make_wordpiece_tokenizer(file: str | os.PathLike) -> WordPieceTokenizer:
    """The process's one tokenizer of a tokenizer.json, read on the first call.

    Raises:
        UserError: the file is missing or damaged, or is no BERT's.
    """
    return _make(str(Path(file).expanduser().absolute()))


@functools.lru_cache(maxsize=4)
def _make(file: str) -> WordPieceTokenizer:
    return WordPieceTokenizer(file)
