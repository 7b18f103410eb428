# SPDX-License-Identifier: Apache-2.0
"""Ranked choices: which one a model holds for the likeliest, by several measures of likely.

With s the sum of the continuation's log-probabilities (nats):

| metric | the choice with the greatest | as |
|---|---|---|
| acc | s | acc of lm_eval, acc_raw of OLMES |
| acc_norm | s / characters of the choice's text, without the space before it | lm_eval |
| acc_bytes | s / UTF-8 bytes of the same | lm_eval |
| acc_per_char | s / characters of the continuation, the space included | OLMES |
| acc_per_byte | s / UTF-8 bytes of the same | OLMES |
| acc_per_token | s / tokens of the continuation | OLMES |
| acc_uncond | s - s after the unconditional context (PMI) | acc_uncond of OLMES, 2406.08446 |

The first of equals counts, as of numpy's argmax. Of the gold choice: bits_per_byte is
-s / (bytes of the continuation, the space included) / ln 2, OLMES's bits_per_byte_corr;
correct_prob is its share of exp(s) over all choices.
"""

import math
from collections.abc import Callable, Sequence

from midjax.evals import render, requests

_MEASURES: dict[str, Callable[[str, str, int], float]] = {
    "acc": lambda continuation, choice, tokens: 1,
    "acc_norm": lambda continuation, choice, tokens: len(choice),
    "acc_bytes": lambda continuation, choice, tokens: len(choice.encode()),
    "acc_per_char": lambda continuation, choice, tokens: len(continuation),
    "acc_per_byte": lambda continuation, choice, tokens: len(continuation.encode()),
    "acc_per_token": lambda continuation, choice, tokens: tokens,
}
ACCURACIES = (*_MEASURES, "acc_uncond")


def score(name: str, instance: render.Instance, answers: Sequence[requests.Likelihood]) -> float:
    """One of the metrics for one instance, whose requests were answered in their order."""
    count = len(instance.choices)
    told = answers[:count]
    gold = instance.gold if isinstance(instance.gold, list | tuple) else [instance.gold]
    if name == "bits_per_byte":
        return min(bits_per_byte(instance.requests[i], told[i]) for i in gold)
    if name == "correct_prob":
        top = max(answer.nats for answer in told)
        shares = [math.exp(answer.nats - top) for answer in told]
        return sum(shares[i] for i in gold) / sum(shares)
    return float(chosen(name, instance, answers) in gold)


def chosen(name: str, instance: render.Instance, answers: Sequence[requests.Likelihood]) -> int:
    """The number of the choice that is the likeliest by an accuracy's measure."""
    count = len(instance.choices)
    told, without = answers[:count], answers[count:]
    if name == "acc_uncond":
        pairs = zip(told, without, strict=True)
        values = [answer.nats - alone.nats for answer, alone in pairs]
    else:
        measure = _MEASURES[name]
        values = []
        for request, choice, answer in zip(instance.requests, instance.choices, told, strict=False):
            assert isinstance(request, requests.Loglikelihood)
            length = measure(request.continuation, choice, answer.tokens)
            values.append(answer.nats / max(length, 1))
    return values.index(max(values))


def bits_per_byte(request: render.Request, answer: requests.Likelihood) -> float:
    """Bits that the model needs per UTF-8 byte of the continuation."""
    assert isinstance(request, requests.Loglikelihood)
    return -answer.nats / math.log(2) / len(request.continuation.encode())
