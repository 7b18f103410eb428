# SPDX-License-Identifier: Apache-2.0
"""What in a source's tokens may harm a model, counted on the way and said at the end.

- Special tokens besides BOS and EOS: a base model that never saw them has untrained embeddings
  there, and chat markers among mid-training data have cost whole abilities.
- Strings of special tokens in texts, where they are read as text.
- Unknown tokens: the text is lost.
- Documents with few bytes per token, by Unicode script: a tokenizer that falls back to bytes.
- Very long documents.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from midjax import types, units
from midjax.batches import encoders, pieces

# Fewer are little more than bytes: English has 4 to 5, and bytes alone have 1.
LEAST_BYTES_PER_TOKEN = 1.5
# Told where so many of a script's documents have; a few are in every corpus.
LEAST_SHARE = 0.01
# Shorter documents have too few tokens for a rate.
_LEAST_TOKENS = 64
LONG_TOKENS = 1_000_000
_SAMPLE_CHARACTERS = 256

# First code point of each run of blocks, and its script. Blocks of letters of no script, or of one
# that is not named here, are Common (not counted) and Other.
_BLOCKS: tuple[tuple[int, str], ...] = (
    (0x0, "Common"), (0x41, "Latin"), (0x5B, "Common"), (0x61, "Latin"), (0x7B, "Common"),
    (0xC0, "Latin"), (0x2B0, "Common"), (0x370, "Greek"), (0x400, "Cyrillic"),
    (0x530, "Armenian"), (0x590, "Hebrew"), (0x600, "Arabic"), (0x700, "Other"),
    (0x750, "Arabic"), (0x780, "Other"), (0x8A0, "Arabic"), (0x900, "Devanagari"),
    (0x980, "Bengali"), (0xA00, "Gurmukhi"), (0xA80, "Gujarati"), (0xB00, "Oriya"),
    (0xB80, "Tamil"), (0xC00, "Telugu"), (0xC80, "Kannada"), (0xD00, "Malayalam"),
    (0xD80, "Sinhala"), (0xE00, "Thai"), (0xE80, "Lao"), (0xF00, "Tibetan"), (0x1000, "Myanmar"),
    (0x10A0, "Georgian"), (0x1100, "Hangul"), (0x1200, "Ethiopic"), (0x13A0, "Other"),
    (0x1780, "Khmer"), (0x1800, "Mongolian"), (0x18B0, "Other"), (0x1C80, "Cyrillic"),
    (0x1C90, "Georgian"), (0x1CC0, "Other"), (0x1D00, "Latin"), (0x1DC0, "Common"),
    (0x1E00, "Latin"), (0x1F00, "Greek"), (0x2000, "Common"), (0x2C00, "Other"),
    (0x2C60, "Latin"), (0x2C80, "Other"), (0x2D00, "Georgian"), (0x2D30, "Other"),
    (0x2D80, "Ethiopic"), (0x2DE0, "Cyrillic"), (0x2E00, "Common"), (0x2E80, "Han"),
    (0x3000, "Common"), (0x3040, "Kana"), (0x3100, "Other"), (0x3130, "Hangul"),
    (0x3190, "Common"), (0x31F0, "Kana"), (0x3200, "Common"), (0x3400, "Han"), (0x4DC0, "Common"),
    (0x4E00, "Han"), (0xA000, "Other"), (0xA640, "Cyrillic"), (0xA6A0, "Other"),
    (0xA700, "Common"), (0xA720, "Latin"), (0xA800, "Other"), (0xA8E0, "Devanagari"),
    (0xA900, "Other"), (0xA960, "Hangul"), (0xA980, "Other"), (0xA9E0, "Myanmar"),
    (0xAA00, "Other"), (0xAA60, "Myanmar"), (0xAA80, "Other"), (0xAB00, "Ethiopic"),
    (0xAB30, "Latin"), (0xAB70, "Other"), (0xAC00, "Hangul"), (0xD800, "Common"),
    (0xF900, "Han"), (0xFB00, "Latin"), (0xFB13, "Armenian"), (0xFB1D, "Hebrew"),
    (0xFB50, "Arabic"), (0xFE00, "Common"), (0xFE70, "Arabic"), (0xFF00, "Common"),
    (0xFF21, "Latin"), (0xFF3B, "Common"), (0xFF41, "Latin"), (0xFF5B, "Common"),
    (0xFF66, "Kana"), (0xFFA0, "Hangul"), (0xFFE0, "Common"), (0x10000, "Other"),
    (0x1F000, "Common"), (0x20000, "Han"), (0x40000, "Other"),
)  # fmt: skip


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(first code points, number of each one's script, names by number); Common is 0."""
    names = list(dict.fromkeys(name for _, name in _BLOCKS))
    firsts = np.array([first for first, _ in _BLOCKS], np.uint32)
    return firsts, np.array([names.index(name) for _, name in _BLOCKS]), names


def script_of(text: str) -> str:
    """The script of most letters in a sample of the text; ASCII and what has none are Latin."""
    if text.isascii():
        return "Latin"
    firsts, numbers, names = _tables()
    sample = text[:: 1 + len(text) // _SAMPLE_CHARACTERS]
    points = np.frombuffer(sample.encode("utf-32-le", "surrogatepass"), "<u4")
    found = numbers[np.searchsorted(firsts, points, side="right") - 1]
    counts = np.bincount(found, minlength=len(names))
    counts[0] = 0
    return names[int(counts.argmax())] if counts.any() else "Latin"


@dataclasses.dataclass(kw_only=True)
class Counts:
    """Of the documents of a part, a unit or a source.

    Attributes:
      special: special token -> times among the ids, BOS and EOS aside.
      spelled: special token -> documents with its string in a text where it is read as text.
      unknown: unknown tokens.
      long: documents of more than `LONG_TOKENS`.
      scripts: script -> [documents, bytes, tokens, documents with few bytes per token].
    """

    special: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    spelled: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    unknown: int = 0
    long: int = 0
    scripts: dict[str, list[int]] = dataclasses.field(default_factory=dict)

    def add(self, other: Mapping[str, Any]) -> None:
        """Takes in what `to_json` gave."""
        self.special.update(other["special"])
        self.spelled.update(other["spelled"])
        self.unknown += other["unknown"]
        self.long += other["long"]
        for name, numbers in other["scripts"].items():
            old = self.scripts.get(name, [0] * len(numbers))
            self.scripts[name] = [a + b for a, b in zip(old, numbers, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, the same whatever the order in which it was counted."""
        return {
            "special": dict(sorted(self.special.items())),
            "spelled": dict(sorted(self.spelled.items())),
            "unknown": self.unknown,
            "long": self.long,
            "scripts": dict(sorted(self.scripts.items())),
        }


class Lint:
    """Counts over documents as they are written."""

    def __init__(self, vocabulary: encoders.Vocabulary) -> None:
        facts = vocabulary.tokenizer_facts
        usual = {facts.bos_token, facts.eos_token}
        ids = {vocabulary.facts["bos_id"], vocabulary.facts["eos_id"], vocabulary.unknown_id}
        self._unknown = vocabulary.unknown_id
        self._special = {
            key: name
            for key, name in vocabulary.special_ids.items()
            if name not in usual and key not in ids
        }
        self._watched = np.zeros(vocabulary.facts["vocab_size"], bool)
        self._watched[list(self._special)] = True
        if self._unknown is not None:
            self._watched[self._unknown] = True
        self._has_watched = bool(self._watched.any())
        strings = sorted(facts.special_tokens, key=len, reverse=True)
        self._strings = re.compile("|".join(map(re.escape, strings))) if strings else None
        # A search for one or two characters takes next to nothing.
        self._leads = {
            lead: {s[:2] for s in strings if s[0] == lead} for lead in {s[0] for s in strings}
        }
        self._poor_matters = not isinstance(vocabulary, pieces.Bytes)
        self._counts = Counts()

    def take(self) -> dict[str, Any]:
        """The counts since the last call, as plain JSON."""
        counts, self._counts = self._counts, Counts()
        return counts.to_json()

    def see(self, document: types.Document | None, encoded: types.TokenDocument) -> None:
        """Counts one document; its text is None where it came as tokens."""
        tokens = encoded.tokens
        if self._has_watched:
            watched = self._watched[tokens]
            if watched.any():
                self._see_special(tokens[watched])
        if len(tokens) > LONG_TOKENS:
            self._counts.long += 1
        if document is None:
            return
        if not document.special and self._strings and self._may_spell(document.text):
            self._counts.spelled.update(set(self._strings.findall(document.text)))
        numbers = self._counts.scripts.setdefault(script_of(document.text), [0, 0, 0, 0])
        numbers[0] += 1
        numbers[1] += encoded.text_bytes
        numbers[2] += len(tokens)
        if self._poor_matters and len(tokens) >= _LEAST_TOKENS:
            numbers[3] += encoded.text_bytes < LEAST_BYTES_PER_TOKEN * len(tokens)

    def _see_special(self, tokens: np.ndarray) -> None:
        for key, count in zip(*np.unique(tokens, return_counts=True), strict=True):
            if key == self._unknown:
                self._counts.unknown += int(count)
            else:
                self._counts.special[self._special[int(key)]] += int(count)

    def _may_spell(self, text: str) -> bool:
        return any(
            lead in text and any(start in text for start in starts)
            for lead, starts in self._leads.items()
        )


def warnings(counts: Mapping[str, Any], documents: int) -> list[str]:
    """What to tell of a source's counts; nothing where all is well."""
    told = []
    if counts["special"]:
        told.append(
            f"special tokens {_listed(counts['special'])} (times): a base model that never saw "
            "them has nothing learnt there. Keep them out, unless it is meant to learn them."
        )
    if counts["spelled"]:
        told.append(
            f"texts spell special tokens {_listed(counts['spelled'])} (documents), which are read "
            "as text. If they are markers, take them out or read the source with a format."
        )
    if counts["unknown"]:
        told.append(
            f"{counts['unknown']} unknown tokens: the tokenizer has none for that text, and it is "
            "lost. Use the tokenizer that the model was trained with, or drop such documents."
        )
    for name, (number, text_bytes, tokens, poor) in counts["scripts"].items():
        if poor and poor >= LEAST_SHARE * number:
            told.append(
                f"{poor} of {number} documents in {name} script have fewer than "
                f"{LEAST_BYTES_PER_TOKEN} bytes per token ({text_bytes / tokens:.2f} on average): "
                "the tokenizer hardly knows them, and they take many tokens for little text."
            )
    if counts["long"]:
        told.append(
            f"{counts['long']} of {documents} documents have more than "
            f"{units.human(LONG_TOKENS)} tokens: each fills many rows by itself. Are they one text?"
        )
    return told


def _listed(counts: Mapping[str, int], most: int = 8) -> str:
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = f" and {len(ranked) - most} more" if len(ranked) > most else ""
    return ", ".join(f"{name!r} {count}" for name, count in ranked[:most]) + rest
