# SPDX-License-Identifier: Apache-2.0
"""Fill-in-the-middle: documents rearranged so that a model learns to complete between two parts."""

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from typing import Any

from midjax.corpora import formats


@dataclasses.dataclass(frozen=True, kw_only=True)
class FillInTheMiddle:
    """A share of the documents cut in three and rearranged; the others as they are.

    Cut at two characters drawn uniformly, as in Bavarian et al. 2022, "Efficient Training of
    Language Models to Fill in the Middle" (arXiv 2207.14255), sections 3 and 4:

        PSM   <prefix> prefix <suffix> suffix <middle> middle
        SPM   <prefix> <suffix> suffix <middle> prefix middle    (their variant, which shares
                                                                  the sentinels' order with PSM)

    All tokens bear loss, as there. What happens to a document depends on the seed and on its id
    alone. A document with the string of a special token in it stays as it is: rearranged text is
    read with special tokens, and this one would be read as one.

    Attributes:
      field: holds the text.
      share: of the documents that are rearranged, 0 to 1. The paper's is 0.5 to 0.9.
      spm_share: of those, the share in SPM order; 0.5 in the paper.
      seed: of the draws.
      prefix_token, suffix_token, middle_token: special tokens of the tokenizer, such as
        "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>".
    """

    field: str
    share: float
    spm_share: float
    seed: int
    prefix_token: str
    suffix_token: str
    middle_token: str

    def __post_init__(self) -> None:
        for name in ("share", "spm_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"FillInTheMiddle.{name} must be in 0 to 1, got {getattr(self, name)}."
                )

    def fields(self) -> frozenset[str]:
        """Fields that the text is made of."""
        return frozenset([self.field])

    def open(self, facts: formats.TokenizerFacts) -> formats.Render:
        """The function from a record to its text.

        Raises:
          ValueError: a sentinel is not a special token of the tokenizer.
        """
        for name in ("prefix_token", "suffix_token", "middle_token"):
            if getattr(self, name) not in facts.special_tokens:
                raise ValueError(
                    f"FillInTheMiddle.{name} {getattr(self, name)!r} is not a special token of the "
                    f"tokenizer; it has {sorted(facts.special_tokens)[:50]}."
                )
        special = re.compile("|".join(map(re.escape, sorted(facts.special_tokens))))

        def render(record: Mapping[str, Any], key: str) -> formats.Rendered:
            text = formats.string(record, self.field)
            if not text.strip():
                raise formats.Drop("empty text")
            chosen, order, first, second = self._draws(key)
            if chosen >= self.share or special.search(text):
                return formats.Rendered(text=text)
            # Each of the places between characters, both ends included.
            begin, end = sorted(int(draw * (len(text) + 1)) for draw in (first, second))
            prefix, middle, suffix = text[:begin], text[begin:end], text[end:]
            if order < self.spm_share:
                parts = ["", suffix, prefix + middle]
            else:
                parts = [prefix, suffix, middle]
            sentinels = (self.prefix_token, self.suffix_token, self.middle_token)
            joined = "".join(a + b for a, b in zip(sentinels, parts, strict=True))
            return formats.Rendered(text=joined, special=True)

        return render

    def _draws(self, key: str) -> list[float]:
        """Four numbers in [0, 1), the same wherever and whenever the document is read."""
        digest = hashlib.sha256(f"{self.seed}:{key}".encode(errors="surrogatepass")).digest()
        # 53 bits, what a float holds: the result is below 1.
        return [(int.from_bytes(digest[i : i + 8], "big") >> 11) / 2**53 for i in (0, 8, 16, 24)]
