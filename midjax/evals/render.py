# SPDX-License-Identifier: Apache-2.0
"""Documents and a task's templates -> what a model is asked.

    context = description + (example + joiner) per shot + prompt
    Document --fields--> context, answer per choice --> Instance(requests, gold, ...)
    instances --ask(engine)--> answers, one tuple per instance, which metrics.scoring reads

`prepare` does all of it from a data folder; `instances` is the pure part.
"""

import collections
import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from midjax.evals import examples as examples_lib
from midjax.evals import requests, task_data, task_parts, template
from midjax.evals import task as tasks

Request = requests.Loglikelihood | requests.Generate
Answer = requests.Likelihood | tuple[str, ...]
# Examples come from the whole of a split, whichever part of it is asked.
_ALL = task_parts.Sample(count=sys.maxsize)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instance:
    """One document as it is asked.

    Attributes:
      id: of its document.
      subset: of the task's subsets, or "".
      requests: of a choice task one per choice, then, if it asks them, as many without the
        question; of the others one.
      choices: their texts, without what the template puts around them; of choice tasks.
      gold: what the metric compares with, see `task`.
      fields: what the templates read: the document's record and the task's fields.
    """

    id: str
    subset: str
    requests: tuple[Request, ...]
    choices: tuple[str, ...] = ()
    gold: Any = None
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)


def prepare(
    task: tasks.Task,
    folder: str,
    *,
    split: str | None = None,
    shots: int | None = None,
    variables: Mapping[str, str] | None = None,
    subsets: Sequence[str] | None = None,
    sample: task_parts.Sample | None = None,
    limit: int | None = None,
    online: bool = False,
    left_out: collections.Counter[str] | None = None,
    noted: collections.Counter[str] | None = None,
) -> list[Instance]:
    """Reads the documents and the examples of a task, and renders them.

    Args:
      task: of any kind but a group.
      folder: the data folder.
      split: asks this one instead of the task's.
      shots, variables: as of `instances`.
      subsets, sample: as of `task_data.read`.
      limit: asks the first so many documents of each subset.
      online: as of `task_data.read`.
      left_out: as there; and those beyond the "limit".
      noted: as of `instances`.

    Raises:
      task_data.MissingDataError: see there.
      ValueError: the data do not fit the task.
    """
    if task.data is not None and split not in (None, task.data.split):
        # Of the asked split itself, so that no question is its own example there either.
        other = dataclasses.replace(task.data, split=str(split), sample=None)
        task = dataclasses.replace(task, data=other)
    counts = collections.Counter[str]() if left_out is None else left_out
    count = task.shots.count if shots is None else shots
    from_split = count > 0 and task.shots.take != "list" and not task.shots.file
    try:
        documents = task_data.read(
            task, folder, subsets=subsets, sample=sample, online=online, left_out=counts
        )
    except task_data.MissingDataError as error:
        if from_split and not online and task.shots.split != (task.data and task.data.split):
            try:
                _pool(task, folder, subsets, online)
            except task_data.MissingDataError as other:
                raise task_data.MissingDataError.both(error, other) from error
        raise
    if limit is not None:
        every = len(documents)
        documents = [
            d
            for s in examples_lib.subsets(documents)
            for d in examples_lib.of_subset(documents, s)[:limit]
        ]
        counts["limit"] += every - len(documents)
    texts = {}
    if task.shots.file:
        for subset in examples_lib.subsets(documents):
            texts[subset] = task_data.text_file(task, folder, task.shots.file, subset)
    pool = _pool(task, folder, subsets, online) if from_split else []
    return instances(
        task, documents, pool=pool, texts=texts, shots=shots, variables=variables, noted=noted
    )


def _pool(
    task: tasks.Task, folder: str, subsets: Sequence[str] | None, online: bool
) -> list[task_data.Document]:
    """The documents that examples are taken of."""
    whole = task.shots.split == (task.data and task.data.split)
    try:
        return task_data.read(
            task,
            folder,
            split=task.shots.split,
            subsets=subsets,
            sample=_ALL if whole else None,
            online=online,
        )
    except task_data.MissingDataError as error:
        note = f"Its examples are of the split {task.shots.split!r} (Tasks.shots = 0 asks none)"
        raise task_data.MissingDataError.of(note, error) from error


def instances(
    task: tasks.Task,
    documents: Sequence[task_data.Document],
    *,
    pool: Sequence[task_data.Document] = (),
    texts: Mapping[str, str] | None = None,
    shots: int | None = None,
    variables: Mapping[str, str] | None = None,
    noted: collections.Counter[str] | None = None,
) -> list[Instance]:
    """Renders documents, in their order.

    Args:
      task: of any kind but a group.
      documents: what is asked.
      pool: of `shots.split`, where the examples are taken from, unless the task lists them.
      texts: subset -> text of `shots.file`.
      shots: another number of examples than the task's.
      variables: other texts than the task's `variables`.
      noted: counts documents with "fewer examples" than the others: an example that is the question
        itself is left out, as lm_eval does it, and none is drawn in its place. And "other
        examples": picked ones whose text is not the published one.

    Raises:
      ValueError: a document does not fit the task's templates, its gold answer is none of the
        choices, or there are too few examples.
    """
    rendering = _Rendering(task, variables or {})
    count = task.shots.count if shots is None else shots
    noted = collections.Counter() if noted is None else noted
    listed = examples_lib.listed(task, pool, count, rendering.fields, noted)
    examples = examples_lib.Examples(task, pool, count, listed)
    descriptions = _template(task, "description", task.description)
    found = []
    for document in documents:
        fields = rendering.fields(document)
        if task.shots.file:
            text = (texts or {})[document.subset]
            if task.shots.after and task.shots.after not in text:
                raise ValueError(f"{task.shots.file} has no {task.shots.after!r} to begin after.")
            before = text.partition(task.shots.after)[2] if task.shots.after else text
            before = before.rstrip("\n") + task.shots.joiner
        else:
            own = examples.of(document)
            if len(own) < examples.count:
                noted["fewer examples"] += 1
            shown = [rendering.example(example) for example in own]
            before = "".join(text + task.shots.joiner for text in shown)
        found.append(rendering.instance(document, fields, descriptions(fields) + before))
    return found


def ask(engine: requests.Engine, asked: Sequence[Instance]) -> list[tuple[Answer, ...]]:
    """Puts all requests to a model; an answer per request, a tuple per instance."""
    flat = [request for instance in asked for request in instance.requests]
    likelihoods = [request for request in flat if isinstance(request, requests.Loglikelihood)]
    texts = [request for request in flat if isinstance(request, requests.Generate)]
    told = iter(engine.loglikelihoods(likelihoods) if likelihoods else [])
    written = iter(engine.generate(texts) if texts else [])
    return [
        tuple(
            next(told) if isinstance(request, requests.Loglikelihood) else next(written)
            for request in instance.requests
        )
        for instance in asked
    ]


def _template(task: tasks.Task, what: str, source: str) -> template.Text:
    return template.Text(source, f"{task.name}: {what}")


class _Rendering:
    """A task's compiled templates."""

    def __init__(self, task: tasks.Task, variables: Mapping[str, str]) -> None:
        unknown = sorted(set(variables) - set(task.variables))
        if unknown:
            raise ValueError(
                f"{task.name} has no variable {unknown[0]!r}; it has {sorted(task.variables)}."
            )
        if task.kind == "group":
            raise ValueError(f"{task.name} is a group: render its members {task.members}.")
        self._task = task
        self._variables = {**task.variables, **variables}
        self._fields = [
            (name, template.Expression(source, f"{task.name}: fields.{name}"))
            for name, source in task.fields.items()
        ]
        self._prompt = _template(task, "prompt", task.prompt)
        self._answer = _template(task, "answer", task.answer)
        self._example = _template(task, "shots.example", task.shots.example)
        self._choices = self._expression("choices")
        self._gold = self._expression("gold")
        self._shown: dict[tuple[str, str], str] = {}

    def _expression(self, key: str) -> template.Expression | None:
        source = getattr(self._task, key)
        return template.Expression(source, f"{self._task.name}: {key}") if source else None

    def fields(self, document: task_data.Document) -> dict[str, Any]:
        """What the templates read."""
        found = {**self._variables, **document.fields, "subset": document.subset}
        for name, expression in self._fields:
            found[name] = self._place(document, expression, found)
        return found

    def _place(self, document: task_data.Document, expression: Any, fields: Any) -> Any:
        try:
            return expression(fields)
        except template.TemplateError as error:
            raise template.TemplateError(f"Document {document.id}: {error}") from error

    def _chosen(self, fields: Mapping[str, Any]) -> tuple[tuple[str, ...], Any]:
        """The choices, and the gold answer."""
        gold = None if self._gold is None else self._gold(fields)
        if self._choices is None:
            return (), gold
        choices = tuple(str(choice) for choice in self._choices(fields))
        numbers = gold if isinstance(gold, list | tuple) else [gold]
        for number in numbers:
            if isinstance(number, bool) or not isinstance(number, int):
                raise template.TemplateError(f"gold is {gold!r}, not the number of a choice.")
            if not 0 <= number < len(choices):
                raise template.TemplateError(f"gold is {gold!r}, of {len(choices)} choices.")
        return choices, gold

    def _ways(self, fields: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        choices, gold = self._chosen(fields)
        if not choices:
            yield {**fields, "gold": gold}
        for choice in choices:
            yield {**fields, "choice": choice}

    def example(self, document: task_data.Document) -> str:
        """An example's text, with its answer."""
        key = (document.subset, document.id)
        if key not in self._shown:
            self._shown[key] = self._example_text(document)
        return self._shown[key]

    def _example_text(self, document: task_data.Document) -> str:
        fields = self._place(document, self.fields, document)
        choices, gold = self._place(document, self._chosen, fields)
        more = {"choice": choices[_first(gold)]} if choices else {"gold": gold}
        fields = {**fields, **more}
        if self._task.shots.example:
            return self._place(document, self._example, fields)
        prompt, answer = (
            self._place(document, part, fields) for part in (self._prompt, self._answer)
        )
        return prompt + answer

    def instance(
        self, document: task_data.Document, fields: dict[str, Any], before: str
    ) -> Instance:
        """What is asked of one document."""
        task = self._task
        choices, gold = self._place(document, self._chosen, fields)
        asked: list[Request] = []
        ways = list(self._ways(fields))
        if task.generate is not None and task.kind != "gold":
            context = before + self._place(document, self._prompt, ways[0])
            values = {
                field.name: getattr(task.generate, field.name)
                for field in dataclasses.fields(task.generate)
            }
            asked.append(requests.Generate(context=context, **values))
        else:
            answers = [self._place(document, self._answer, way) for way in ways]
            for way, answer in zip(ways, answers, strict=True):
                context = before + self._place(document, self._prompt, way)
                asked.append(requests.Loglikelihood(context=context, continuation=answer))
            if task.unconditional is not None:
                asked += [
                    requests.Loglikelihood(context=task.unconditional, continuation=answer)
                    for answer in answers
                ]
        return Instance(
            id=document.id,
            subset=document.subset,
            requests=tuple(asked),
            choices=choices,
            gold=gold,
            fields=fields,
        )


def _first(gold: Any) -> int:
    return gold[0] if isinstance(gold, list | tuple) else gold
