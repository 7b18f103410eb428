# SPDX-License-Identifier: Apache-2.0
"""Scores of a task from its instances and a model's answers; and of a group from its members'.

    score(task, instances, answers) -> {
        "metrics": {title: mean over instances},
        "per_instance": {title: [a value per instance, in their order]},   for intervals
        "subsets": {subset: {title: mean}},                                of a task with subsets
        "macro": {title: mean over subsets of their means}, "primary": title, "instances": count}
    combine(group, {member: score}) -> "members", "macro" over members, "micro" over instances

Code is run, and function calls are compared, by a judge from outside: [(instance, completion), ...]
-> [right or not, ...]. `judges` has them; of agents' episodes `suite` knows how they ended.
Completions went through the filters of the task.
Where a likelihood is not finite, its document's values are NaN, and so are all means over it.
"""

import collections
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from midjax.evals import render, requests, task_parts
from midjax.evals import task as tasks
from midjax.evals.agents import toolbench
from midjax.evals.metrics import choices, drop, maths, passing, rouge, texts

Judge = Callable[[Sequence[tuple[render.Instance, str]]], Sequence[bool]]
_ROUGE: dict[str, Callable[[str, str], float]] = {
    "rouge1": lambda predicted, gold: rouge.rouge_n(predicted, gold, 1),
    "rouge2": lambda predicted, gold: rouge.rouge_n(predicted, gold, 2),
    "rougeL": rouge.rouge_l,
}


def score(
    task: tasks.Task,
    instances: Sequence[render.Instance],
    answers: Sequence[Sequence[render.Answer]],
    *,
    judge: Judge | None = None,
) -> dict[str, Any]:
    """All figures of a task.

    Args:
      task: of any kind but a group.
      instances: what was asked.
      answers: for each instance an answer per request, as `render.ask` gives them. Of a generated
        text with several samples, text metrics read the first.
      judge: of code, calls and agents.

    Raises:
      ValueError: answers and instances do not fit; there are none; a judge or a library is missing.
    """
    if not instances:
        raise ValueError(f"{task.name}: no instances, so nothing to score.")
    for instance, told in zip(instances, answers, strict=True):
        if len(told) != len(instance.requests):
            raise ValueError(
                f"{task.name}, document {instance.id}: {len(instance.requests)} requests and "
                f"{len(told)} answers."
            )
    if task.kind in ("code", "calls", "agent"):
        values = _judged(task, instances, answers, judge)
    else:
        values = {
            metric.title: [
                _one(task, metric, instance, told)
                for instance, told in zip(instances, answers, strict=True)
            ]
            for metric in task.metrics
        }
    found: dict[str, Any] = {
        "task": task.name,
        "primary": task.primary,
        "instances": len(instances),
        "metrics": {title: statistics.fmean(part) for title, part in values.items()},
        "per_instance": values,
    }
    if task.subsets:
        found |= _by_subset(instances, values)
    return found


def combine(group: tasks.Task, scores: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A group's figures, of each member its primary one.

    Members with subsets count by their macro mean, as MMLU is reported. Macro is the mean of the
    members, micro that of all instances. Where members' primary metrics differ (accuracies and bits
    per byte), each has means of its own.

    Args:
      group: a task of kind "group".
      scores: a member's name -> what `score` gave.

    Raises:
      ValueError: a member is missing.
    """
    missing = [name for name in group.members if name not in scores]
    if missing:
        raise ValueError(f"{group.name} has the member {missing[0]!r}, which has no score.")
    members, kinds = {}, collections.defaultdict(list)
    for name in group.members:
        one = scores[name]
        title = one["primary"]
        members[name] = {title: one.get("macro", one["metrics"])[title]}
        kinds[_family(title)].append((members[name][title], one["per_instance"][title]))
    return {
        "task": group.name,
        "members": members,
        "macro": {kind: statistics.fmean(v for v, _ in part) for kind, part in kinds.items()},
        "micro": {
            kind: statistics.fmean(value for _, values in part for value in values)
            for kind, part in kinds.items()
        },
    }


def _family(title: str) -> str:
    return "acc" if title.startswith("acc") else title


def _by_subset(
    instances: Sequence[render.Instance], values: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    numbers = collections.defaultdict(list)
    for number, instance in enumerate(instances):
        numbers[instance.subset].append(number)
    subsets = {
        subset: {title: statistics.fmean(part[i] for i in own) for title, part in values.items()}
        for subset, own in numbers.items()
    }
    macro = {
        title: statistics.fmean(means[title] for means in subsets.values()) for title in values
    }
    return {"subsets": subsets, "macro": macro}


def _one(
    task: tasks.Task,
    metric: task_parts.Metric,
    instance: render.Instance,
    told: Sequence[render.Answer],
) -> float:
    if task.kind == "generate":
        (samples,) = told
        assert isinstance(samples, tuple)
        return _text(metric, texts.filtered(samples[0], metric.filters), instance)
    likelihoods = [answer for answer in told if isinstance(answer, requests.Likelihood)]
    if not all(math.isfinite(answer.nats) for answer in likelihoods):
        return math.nan  # of NaN no choice is the likeliest
    if task.kind == "choice":
        return choices.score(metric.name, instance, likelihoods)
    (only,) = likelihoods
    if metric.name == "bits_per_byte":
        return choices.bits_per_byte(instance.requests[0], only)
    return -only.nats / only.tokens if metric.name == "nats_per_token" else float(only.greedy)


def _text(metric: task_parts.Metric, predicted: str, instance: render.Instance) -> float:
    accepted = instance.gold if isinstance(instance.gold, list | tuple) else [instance.gold]
    if metric.name.startswith("step_"):
        what, system = metric.name.removeprefix("step_"), instance.fields["system"]
        return toolbench.part(what, predicted, str(instance.gold), system)
    if metric.name.startswith("drop_"):
        exact, f1 = drop.best(predicted, accepted)
        return exact if metric.name == "drop_em" else f1
    gold = [str(answer) for answer in accepted]
    if not gold:
        raise ValueError(f"Document {instance.id} has no gold answer.")
    if metric.name == "exact_match":
        return texts.exact_match(predicted, gold, metric)
    if metric.name == "squad_em":
        return texts.squad_em(predicted, gold)
    if metric.name == "squad_f1":
        return texts.squad_f1(predicted, gold)
    if metric.name == "math_equal":
        return float(any(maths.equal(predicted, answer) for answer in gold))
    return max(_ROUGE[metric.name](predicted, answer) for answer in gold)


def _judged(
    task: tasks.Task,
    instances: Sequence[render.Instance],
    answers: Sequence[Sequence[render.Answer]],
    judge: Judge | None,
) -> dict[str, list[float]]:
    if judge is None:
        what = {"code": "runs programs in a sandbox", "calls": "compares function calls"}.get(
            task.kind, "saw the episodes"
        )
        raise ValueError(f"{task.name} is of kind {task.kind!r}: give score the judge that {what}.")
    filters = task.code.filters if task.code is not None else task.metrics[0].filters
    pairs, counts = [], []
    for instance, told in zip(instances, answers, strict=True):
        (samples,) = told
        assert isinstance(samples, tuple)
        pairs += [(instance, texts.filtered(text, filters)) for text in samples]
        counts.append(len(samples))
    verdicts = list(judge(pairs))
    if len(verdicts) != len(pairs):
        raise ValueError(
            f"The judge was given {len(pairs)} completions, and judged {len(verdicts)}."
        )
    values: dict[str, list[float]] = {metric.title: [] for metric in task.metrics}
    begin = 0
    for count in counts:
        passed = sum(map(bool, verdicts[begin : begin + count]))
        begin += count
        for metric in task.metrics:
            k = metric.k if metric.name == "pass" else 1
            values[metric.title].append(passing.pass_at_k(count, passed, k))
    assert all(math.isfinite(value) for part in values.values() for value in part)
    return values
