# SPDX-License-Identifier: Apache-2.0
"""Exact match and F1 of DROP (Dua et al. 2019, 1903.00161, section 5; its released evaluator).

A bag of words is compared after lower-casing, without punctuation (but in numbers) and articles,
numbers as floats. What a model wrote is one span: of several gold spans it can meet one, and the
mean over all of them counts. A gold span with numbers is met only by a text with one of them.
"""

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = frozenset(string.punctuation)


def answers(answer: Mapping[str, Any], validated: Mapping[str, Sequence[Any]]) -> list[list[str]]:
    """Every accepted answer of a record of the data set, each a list of spans, without doubles.

    Args:
      answer: `number`, `date` (`day`, `month`, `year`) and `spans`.
      validated: the same keys, each with a list: a second reader's.
    """
    candidates = [answer] + [
        {key: validated[key][i] for key in ("number", "date", "spans")}
        for i in range(len(validated["number"]))
    ]
    found: list[list[str]] = []
    for candidate in candidates:
        if candidate["number"] != "":
            spans = [str(candidate["number"])]
        elif len(candidate["spans"]):
            spans = [str(span) for span in candidate["spans"]]
        else:
            spans = [" ".join(candidate["date"][key] for key in ("day", "month", "year")).strip()]
        if spans not in found:
            found.append(spans)
    return found


def best(predicted: str, gold: Sequence[Sequence[str] | str]) -> tuple[float, float]:
    """(exact match, F1), each the greatest over the accepted answers; F1 is rounded to hundredths,
    as the evaluator does."""
    scores = [(0.0, 0.0)]
    for answer in gold:
        spans = [answer] if isinstance(answer, str) else list(answer)
        if spans and spans[0].strip():
            scores.append(_compare(predicted, spans))
    return max(exact for exact, _ in scores), max(f1 for _, f1 in scores)


def _compare(predicted: str, gold: list[str]) -> tuple[float, float]:
    ours, theirs = _normalize(predicted), [_normalize(span) for span in gold]
    # One text aligns with one span, the best; the others are missed.
    f1 = max(_f1(set(ours.split()), set(span.split())) for span in theirs) / len(theirs)
    return float(theirs == [ours]), round(f1, 2)


def _f1(predicted: set[str], gold: set[str]) -> float:
    numbers = {word for word in gold if _is_number(word)}
    if numbers and not numbers & {word for word in predicted if _is_number(word)}:
        return 0.0
    shared = len(gold & predicted)
    precision = shared / len(predicted) if predicted else 1.0
    recall = shared / len(gold) if gold else 1.0
    if not precision + recall:
        return 0.0
    return 2 * precision * recall / (precision + recall)


def _normalize(text: str) -> str:
    words = [_normalize_word(word) for word in re.split(r" |-", text)]
    return " ".join(word for word in words if word.strip()).strip()


def _normalize_word(word: str) -> str:
    word = word.lower()
    if not _is_number(word):
        word = "".join(character for character in word if character not in _PUNCTUATION)
    if _is_number(word):
        word = str(float(word))
    return " ".join(_ARTICLES.sub(" ", word).split())


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
