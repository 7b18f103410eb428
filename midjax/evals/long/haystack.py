# SPDX-License-Identifier: Apache-2.0
"""Words and running text of a token folder, as the model's tokenizer reads them back."""

from collections.abc import Iterator

import numpy as np
import tokenizers

from midjax.batches import shards
from midjax.evals import needle
from midjax.evals.long import draft

# Distinct words that are collected at most, and tokens that are read for them.
_MOST_WORDS = 20_000
_MOST_TOKENS = 4_000_000
_LEAST_WORDS = 200
_LETTERS = range(3, 11)


class Haystack:
    """The documents of an opened token folder.

    Args:
      source: the token folder, made with `tokenizer`.
      seed: of the order in which samples begin at its documents.
    """

    def __init__(
        self, source: shards.TokenSource, tokenizer: tokenizers.Tokenizer, seed: int
    ) -> None:
        self._stack, self._tokenizer = needle.Haystacks(source), tokenizer
        self.tokens = int(self._stack.lengths.sum())
        self._order = np.flatnonzero(self._stack.lengths > 0).tolist()
        draft.generator(seed, "documents").shuffle(self._order)
        self._vocabulary: list[str] = []

    def words(self, sample: int) -> Iterator[str]:
        """From the start of the sample's document on, through all others, again and again."""
        at = sample % len(self._order)
        while True:
            yield from self._text(self._order[at]).split()
            at = (at + 1) % len(self._order)

    def vocabulary(self) -> list[str]:
        """Distinct words of 3 to 10 letters without capitals, in the order of the alphabet.

        Of the first 20,000 words, or the first 4 million tokens, whichever end before.

        Raises:
          ValueError: there are too few.
        """
        if self._vocabulary:
            return self._vocabulary
        found: set[str] = set()
        read = 0
        for document in self._order:
            if len(found) >= _MOST_WORDS or read >= _MOST_TOKENS:
                break
            read += int(self._stack.lengths[document])
            found |= {
                word
                for word in self._text(document).split()
                if len(word) in _LETTERS and word.isalpha() and word == word.lower()
            }
        if len(found) < _LEAST_WORDS:
            raise ValueError(
                f"The source of LongTasks has {len(found)} distinct words of 3 to 10 letters "
                f"without capitals; {_LEAST_WORDS} are needed. Name a source of running text."
            )
        self._vocabulary = sorted(found)
        return self._vocabulary

    def _text(self, document: int) -> str:
        ids = self._stack.text(document, int(self._stack.lengths[document]))
        return self._tokenizer.decode(ids.tolist())
