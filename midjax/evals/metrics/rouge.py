# SPDX-License-Identifier: Apache-2.0
"""ROUGE-N and ROUGE-L (Lin 2004), F-measure, as the library `rouge_score` computes them without a
stemmer: lower case, words of a-z and 0-9, whole texts as one sentence."""

import collections
import re


def rouge_n(predicted: str, reference: str, n: int) -> float:
    """F-measure of the n-grams that both have, each as often as the rarer."""
    ours, theirs = _grams(_words(predicted), n), _grams(_words(reference), n)
    shared = sum((ours & theirs).values())
    return _f_measure(shared, sum(ours.values()), sum(theirs.values()))


def rouge_l(predicted: str, reference: str) -> float:
    """F-measure of the longest common subsequence of words."""
    ours, theirs = _words(predicted), _words(reference)
    return _f_measure(_common(ours, theirs), len(ours), len(theirs))


def _words(text: str) -> list[str]:
    return re.findall("[a-z0-9]+", text.lower())


def _grams(words: list[str], n: int) -> collections.Counter:
    return collections.Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _common(left: list[str], right: list[str]) -> int:
    row = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0
        for j, other in enumerate(right, 1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]


def _f_measure(shared: int, ours: int, theirs: int) -> float:
    return 2 * shared / (ours + theirs) if shared else 0.0
