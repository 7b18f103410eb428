# SPDX-License-Identifier: Apache-2.0
"""A line for each document of a task: its scores, and enough to see why.

{"task", "subset", "id", "scores": {metric: value}, ...}, and by the task's kind

choice    "gold" and "answer": numbers of choices, the answer by the primary accuracy;
          "choices", and the "nats" and "tokens" of each
gold      "gold": the answer's text, its "nats" and "tokens"
generate  "gold", "answer": what was written, "prediction": what the primary metric compared
code      "answer": what was written, a text per sample; "verdict": what became of each
calls     "gold", "answer", "verdict"
agent     "ended": how, "verdict": why it is not solved, "rounds", "tokens" that the model wrote,
          "cut": {what: how often}, "turns": the whole conversation
"""

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from midjax.evals import render, requests, task_parts
from midjax.evals import task as tasks
from midjax.evals.metrics import choices, texts


def of(
    task: tasks.Task,
    instances: Sequence[render.Instance],
    answers: Sequence[Sequence[render.Answer]],
    score: Mapping[str, Any],
    told: Iterable[Any],
) -> list[dict[str, Any]]:
    """The lines of a task's documents, in their order.

    Args:
      task, instances, answers: as of `scoring.score`.
      score: what it gave.
      told: by the judge, see `judges.of`; of agents what `agents.asked.row` gives.
    """
    verdicts = iter(told)
    return [
        {
            "task": task.name,
            "subset": instance.subset,
            "id": instance.id,
            "scores": {title: values[i] for title, values in score["per_instance"].items()},
            **_seen(task, instance, answers[i], verdicts),
        }
        for i, instance in enumerate(instances)
    ]


def counts(task: tasks.Task, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What else there is to say of a task's answers.

    "not finite": documents with a score that is not. Of texts: how many were "empty"; how many had
    "no answer", of the primary metric: its filter found nothing. Of code "verdicts": programs by
    what became of them; of agents: episodes by how they ended, and "cut": what was, how often.
    """
    found: dict[str, Any] = {
        "not finite": sum(any(v != v for v in row["scores"].values()) for row in rows)
    }
    if task.kind == "generate":
        fallbacks = {step.fallback for step in _filters(task) if step.kind == "regex"}
        found["empty"] = sum(not row["answer"] for row in rows)
        found["no answer"] = sum(row["prediction"] in fallbacks for row in rows)
    elif task.kind in ("code", "calls"):
        found["empty"] = sum(not text for row in rows for text in row["answer"])
    if task.kind == "agent":
        found["verdicts"] = dict(sorted(collections.Counter(row["ended"] for row in rows).items()))
        cut = sum((collections.Counter(row["cut"]) for row in rows), collections.Counter())
        found["cut"] = dict(sorted(cut.items()))
    if task.kind == "code":
        told = collections.Counter(verdict for row in rows for verdict in row["verdict"])
        found["verdicts"] = dict(sorted(told.items()))
    return found


def _filters(task: tasks.Task) -> tuple[task_parts.Filter, ...]:
    return next(metric.filters for metric in task.metrics if metric.title == task.primary)


def _seen(
    task: tasks.Task,
    instance: render.Instance,
    told: Sequence[render.Answer],
    verdicts: Iterator[Any],
) -> dict[str, Any]:
    if task.kind == "agent":
        return dict(next(verdicts))
    likelihoods = [answer for answer in told if isinstance(answer, requests.Likelihood)]
    if task.kind == "choice":
        own = likelihoods[: len(instance.choices)]
        by = task.primary if task.primary in choices.ACCURACIES else "acc"
        return {
            "gold": instance.gold,
            "answer": choices.chosen(by, instance, likelihoods),
            "choices": list(instance.choices),
            "nats": [answer.nats for answer in own],
            "tokens": [answer.tokens for answer in own],
        }
    if task.kind == "gold":
        (request,), (answer,) = instance.requests, likelihoods
        assert isinstance(request, requests.Loglikelihood)
        return {"gold": request.continuation, "nats": answer.nats, "tokens": answer.tokens}
    (samples,) = told
    assert isinstance(samples, tuple)
    if task.kind == "generate":
        return {
            "gold": instance.gold,
            "answer": samples[0],
            "prediction": texts.filtered(samples[0], _filters(task)),
        }
    gold = {"gold": instance.gold} if task.kind == "calls" else {}
    return {**gold, "answer": list(samples), "verdict": [next(verdicts) for _ in samples]}
