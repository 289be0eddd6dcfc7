"""What all tokenizers of captions share: rows of fixed length, cut and padded."""

import abc
from collections.abc import Sequence

import numpy as np

from regvq_jax.errors import UserError


class RowTokenizer(abc.ABC):
    """Captions to rows of token ids: start, the caption's ids, end, then `pad_id` to the end of the row.

    The mask of a row (True = a token) is `ids != pad_id`. A caption without words is a row of `pad_id`
    alone, all False in the mask, which means: no condition. So it is with every text encoder here, the
    learned one and the frozen ones.

    Attributes:
        vocab_size: ids are in 0..vocab_size-1.
        bos_id, eos_id: start and end.
        pad_id: stands for no token; no caption has it.
    """

    vocab_size: int
    bos_id: int
    eos_id: int
    pad_id: int

    def encode(self, texts: Sequence[str], length: int) -> np.ndarray:
        """Turns captions into rows of token ids, cutting those that are too long before their end.

        Args:
            texts: B captions.
            length: L, at least 2, the size of a row.

        Returns:
            int32 [B, L]; a pure function of each caption, whatever its neighbours.

        Raises:
            UserError: `length` cannot hold start and end, or `texts` is one string.
        """
        if length < 2:
            raise UserError(f"A text length of {length} cannot hold start and end: set at least 2.")
        rows = np.full((len(_as_captions(texts)), length), self.pad_id, np.int32)
        for row, text in zip(rows, texts, strict=True):
            words = self._words(text)
            if words:
                words = [self.bos_id, *words[: length - 2], self.eos_id]
                row[: len(words)] = words
        return rows

    def lengths(self, texts: Sequence[str]) -> np.ndarray:
        """Counts the ids that each caption needs uncut, start and end included, 0 if it is empty.

        `(lengths(texts) > L).sum()` captions lose words in `encode(texts, L)`.

        Args:
            texts: B captions.

        Returns:
            int32 [B].

        Raises:
            UserError: `texts` is one string.
        """
        counts = [len(self._words(text)) for text in _as_captions(texts)]
        return np.array([count + 2 if count else 0 for count in counts], np.int32)

    @abc.abstractmethod
    def _words(self, text: str) -> list[int]:
        """Ids of one caption, without start and end.

        One caption at a time: a library's `encode_batch` starts threads, which do not survive a fork.
        """


def _as_captions(texts: Sequence[str]) -> Sequence[str]:
    if isinstance(texts, str):
        raise UserError(f"Captions must come as a list of strings, got the one string {texts!r}.")
    return texts
