# SPDX-License-Identifier: Apache-2.0
"""Filters on what a model wrote, exact match as lm_eval defines it, and SQuAD's exact match and F1.

SQuAD (Rajpurkar et al. 2016, 1606.05250, section 6.1; its released evaluator): lower case, without
punctuation, articles and double spaces; F1 of the words, the greatest over the accepted answers.
"""

import collections
import re
import string
from collections.abc import Sequence

from midjax.evals import task_parts

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def filtered(text: str, filters: Sequence[task_parts.Filter]) -> str:
    """A text after the steps of a metric."""
    for step in filters:
        if step.kind == "regex":
            text = _extracted(text, step)
        elif step.kind == "strip":
            text = text.strip()
        elif step.kind == "before":
            text = text.partition(step.pattern)[0]
        elif step.kind == "after":
            text = text.rpartition(step.pattern)[2]
        else:
            text = _boxed(text)
    return text


def exact_match(predicted: str, gold: Sequence[str], metric: task_parts.Metric) -> float:
    """1 if the text equals one of the accepted answers, after `ignore`, `ignore_case` and
    `ignore_punctuation` on both sides, in this order."""
    ours = _plain(predicted, metric)
    return float(any(ours == _plain(answer, metric) for answer in gold))


def squad_em(predicted: str, gold: Sequence[str]) -> float:
    """1 if the text equals one of the accepted answers."""
    return float(any(_normal(predicted) == _normal(answer) for answer in gold))


def squad_f1(predicted: str, gold: Sequence[str]) -> float:
    """The greatest F1 of words."""
    return max(_f1(_normal(predicted).split(), _normal(answer).split()) for answer in gold)


def _extracted(text: str, step: task_parts.Filter) -> str:
    found = re.findall(step.pattern, text)
    if not found or not -len(found) <= step.group < len(found):
        return step.fallback
    match = found[step.group]
    if isinstance(match, tuple):
        match = next((part for part in match if part), step.fallback)
    return match.strip()


def _boxed(text: str) -> str:
    """What stands in the last \\boxed{} or \\fbox{}, braces within it balanced; else the text."""
    starts = [match.end() for match in re.finditer(r"\\(?:boxed|fbox)\s*\{", text)]
    if not starts:
        return text
    depth = 1
    for i in range(starts[-1], len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if not depth:
            return text[starts[-1] : i]
    return text


def _plain(text: str, metric: task_parts.Metric) -> str:
    for pattern in metric.ignore:
        text = re.sub(pattern, "", text)
    if metric.ignore_case:
        text = text.lower()
    if metric.ignore_punctuation:
        text = text.translate(_PUNCTUATION)
    return text


def _normal(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _f1(ours: list[str], theirs: list[str]) -> float:
    if not ours or not theirs:  # as SQuAD 2.0: no answer is met by none
        return float(ours == theirs)
    shared = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs))
