# SPDX-License-Identifier: Apache-2.0
"""Answers -> numbers.

score      of what the model wrote: the share of the references that it holds ("all"), or whether
           it holds any ("part"); RULER's string_match_all and string_match_part
chance     the same of somebody who names as many candidates as are asked for, without looking
first      how often the gold answer is likelier, per byte, than each of its decoys
effective  the longest length at which the mean over the tasks is above a threshold: RULER takes
           0.856, which Llama 2 7B has at 4,096 tokens
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from midjax.evals import loss, requests
from midjax.evals.long import prompts, tasks

LLAMA2_7B_AT_4K = 0.856
_UNPRINTABLE = re.compile(r"[\x00-\x1f]")


def match(answer: str, references: Sequence[str], how: str) -> float:
    """What an answer is worth, 0 to 1."""
    said = _UNPRINTABLE.sub("\n", answer.strip()).strip().lower()
    found = [one.lower() in said for one in references]
    return float(any(found)) if how == "part" else sum(found) / len(found)


def chance(prompt: prompts.Prompt, how: str) -> float:
    """The expected score of somebody who guesses: see `draft.Draft.pool`.

    Of n things drawn from N, each is found with probability n / N.
    """
    drawn = 1 if how == "part" else len(prompt.references)
    return min(drawn / prompt.pool, 1.0)


def written(task: str, made: Sequence[prompts.Prompt], answers: Sequence[str]) -> dict[str, Any]:
    """The numbers of what was written: score, score_error (one standard error), chance."""
    how = tasks.TASKS[task].match
    found = [match(a, p.references, how) for a, p in zip(answers, made, strict=True)]
    return {
        "score": float(np.mean(found)),
        "score_error": error(found),
        "chance": float(np.mean([chance(one, how) for one in made])),
    }


def candidates(task: str, prompt: prompts.Prompt) -> list[requests.Loglikelihood]:
    """The first reference and the decoys, each as what follows the prompt."""
    form = tasks.TASKS[task].answer
    return [
        requests.Loglikelihood(context=prompt.text, continuation=form.format(one))
        for one in (prompt.references[0], *prompt.decoys)
    ]


def ranked(
    asked: Sequence[Sequence[requests.Loglikelihood]], told: Sequence[Sequence[requests.Likelihood]]
) -> dict[str, Any]:
    """The numbers of likelihoods, the gold answer's first in each.

    Returns:
      first (a tie counts as the share that falls to the gold answer), first_error, first_chance;
      rank, its mean, 1 at best; bits_per_byte, of the gold answers. Null where not finite.
    """
    first, ranks, odds, nats, size = [], [], [], 0.0, 0
    for requested, likelihoods in zip(asked, told, strict=True):
        sizes = [len(one.continuation.encode()) for one in requested]
        rates = np.array([one.nats for one in likelihoods]) / np.array(sizes)
        better, equal = int((rates > rates[0]).sum()), int((rates == rates[0]).sum())
        known = bool(np.isfinite(rates).all())
        first.append((0.0 if better else 1 / equal) if known else math.nan)
        ranks.append(1 + better + (equal - 1) / 2 if known else math.nan)
        odds.append(1 / len(sizes))
        nats, size = nats - likelihoods[0].nats, size + sizes[0]
    return {
        "first": loss.finite(float(np.mean(first))),
        "first_error": error(first),
        "first_chance": float(np.mean(odds)),
        "rank": loss.finite(float(np.mean(ranks))),
        "bits_per_byte": loss.finite(nats / size / math.log(2)),
    }


def error(values: Sequence[float]) -> float | None:
    """One standard error of their mean; null of a single one."""
    if len(values) < 2:
        return None
    return loss.finite(float(np.std(values, ddof=1)) / math.sqrt(len(values)))


def effective(means: Sequence[tuple[int, float]], threshold: float) -> int | None:
    """The longest of (tokens, mean score) whose score is above the threshold; null if none is."""
    return max((tokens for tokens, score in means if score > threshold), default=None)
