# SPDX-License-Identifier: Apache-2.0
"""RULER's questions: one paragraph of many holds the answer.

    qa_squad    dev-v2.0.json of SQuAD 2.0, CC BY-SA 4.0
    qa_hotpot   hotpot_dev_distractor_v1.json of HotpotQA, CC BY-SA 4.0

Paragraphs that must be there come first, then those of the same article (SQuAD) or those that the
data set itself sets beside them (HotpotQA), then any others, as many as fit, in random order. None
of them holds an answer, but for those to yes-no questions.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from midjax import files, log
from midjax.evals import task_data
from midjax.evals.long import draft

_BEFORE = (
    "Answer the question based on the given documents. Only give me the answer and do not output "
    "any other words.\n\nThe following are given documents.\n\n"
)
_AFTER = (
    "\n\nAnswer the question based on the given documents. Only give me the answer and do not "
    "output any other words.\n\nQuestion: {question} Answer:"
)
_WHERE = {
    "qa_squad": (
        "squad",
        "dev-v2.0.json of SQuAD 2.0 (CC BY-SA 4.0), from "
        "https://rajpurkar.github.io/SQuAD-explorer/",
    ),
    "qa_hotpot": (
        "hotpot",
        "hotpot_dev_distractor_v1.json of HotpotQA (CC BY-SA 4.0), from "
        "https://hotpotqa.github.io/",
    ),
}
_UNSAID = frozenset({"yes", "no"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """One question.

    Attributes:
      answers: any of them is right.
      needed, near: numbers of paragraphs.
    """

    text: str
    answers: tuple[str, ...]
    needed: tuple[int, ...]
    near: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Questions:
    """A data set.

    Attributes:
      answers: the first one of each question, each once.
    """

    task: str
    questions: tuple[Question, ...]
    paragraphs: tuple[str, ...]
    answers: tuple[str, ...]


def read(task: str, path: str | None) -> Questions:
    """Reads a data set.

    Args:
      task: qa_squad or qa_hotpot.
      path: of its file; None is none.

    Raises:
      task_data.MissingDataError: there is no file; it says where to get it.
      ValueError: it is another one.
    """
    field, where = _WHERE[task]
    if path is None or not files.path(path).exists():
        given = "is not set" if path is None else f"is {path!r}, and there is no such file"
        raise task_data.MissingDataError(
            f"LongTasks.{field} {given}. The task {task} reads {where}. Give its path, or leave "
            "the task out."
        )
    reader = {"qa_squad": _squad, "qa_hotpot": _hotpot}[task]
    try:
        questions, paragraphs = reader(files.read_json(path))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"LongTasks.{field}={path!r} is not what the task {task} reads, which is {where}: "
            f"{type(error).__name__} {error}."
        ) from error
    if lost := [one.text for one in questions if not one.answers]:
        raise ValueError(
            f"LongTasks.{field}={path!r}: {len(lost)} questions have no answer and do not say "
            f"that they have none, such as {lost[0][:80]!r}."
        )
    return Questions(
        task=task,
        questions=tuple(questions),
        paragraphs=tuple(paragraphs),
        answers=tuple(dict.fromkeys(one.answers[0] for one in questions)),
    )


def _squad(data: Any) -> tuple[list[Question], list[str]]:
    """Of 2.0, without the questions that have no answer, or 1.1."""
    impossible = 0
    numbers: dict[str, int] = {}
    found = []
    for article in data["data"]:
        own = [numbers.setdefault(p["context"], len(numbers)) for p in article["paragraphs"]]
        for number, paragraph in zip(own, article["paragraphs"], strict=True):
            impossible += sum(asked.get("is_impossible", False) for asked in paragraph["qas"])
            found += [
                Question(
                    text=asked["question"],
                    answers=tuple(dict.fromkeys(one["text"] for one in asked["answers"])),
                    needed=(number,),
                    near=tuple(one for one in dict.fromkeys(own) if one != number),
                )
                for asked in paragraph["qas"]
                if not asked.get("is_impossible", False)
            ]
    if impossible:
        log.say(f"qa_squad: {len(found)} questions; {impossible} that have no answer are left out.")
    return found, list(numbers)


def _hotpot(data: Any) -> tuple[list[Question], list[str]]:
    numbers: dict[str, int] = {}
    found = []
    for asked in data:
        titles = {title for title, _ in asked["supporting_facts"]}
        needed: list[int] = []
        near: list[int] = []
        for title, sentences in asked["context"]:
            number = numbers.setdefault(f"{title}\n{''.join(sentences)}", len(numbers))
            (needed if title in titles else near).append(number)
        found.append(
            Question(
                text=asked["question"],
                answers=(asked["answer"],),
                needed=tuple(needed),
                near=tuple(near),
            )
        )
    return found, list(numbers)


def make(data: Questions, sample: int, seed: int) -> draft.Draft:
    """One sample.

    Args:
      sample: its number, below that of the questions.
      seed: of all that is drawn.
    """
    order = list(range(len(data.questions)))
    draft.generator(seed, data.task, "questions").shuffle(order)
    question = data.questions[order[sample]]
    name = f"{seed}/{data.task}/{order[sample]}"
    rng = draft.generator(name)
    near = list(question.near)
    rng.shuffle(near)
    known = {*question.needed, *near}
    rest = [number for number in range(len(data.paragraphs)) if number not in known]
    rng.shuffle(rest)
    holds = _holding(question.answers)
    others = [number for number in [*near, *rest] if not holds(data.paragraphs[number])]
    chosen = [data.paragraphs[number] for number in [*question.needed, *others]]
    places = [rng.random() for _ in chosen]
    after = _AFTER.format(question=question.text)

    def render(units: int, size: int, tail: str) -> str:
        shown = sorted(range(units), key=places.__getitem__)
        texts = [f"Document {n}:\n{chosen[one]}" for n, one in enumerate(shown, 1)]
        more = f"\n\nDocument {units + 1}:\n{chosen[units]}" if units < len(chosen) else ""
        return _BEFORE + "\n\n".join(texts) + more[:size] + tail + after

    right = [one for one in data.answers if _matches(one, question.answers)]
    return draft.Draft(
        render=render,
        least_units=len(question.needed),
        # The last paragraph is there to be cut.
        most_units=max(len(chosen) - 1, len(question.needed)),
        characters=max(map(len, chosen)) + 20,
        references=question.answers,
        beside=lambda text: [],
        elsewhere=lambda: _wrong(data.answers, question.answers, name),
        forms=len(data.answers) / max(len(right), 1),
    )


def _holding(answers: Sequence[str]) -> Callable[[str], bool]:
    """Whether a text holds an answer as a word or words of its own."""
    said = [one for one in answers if one.lower() not in _UNSAID]
    parts = [one.lower() for one in said]
    whole = [re.compile(rf"(?<!\w){re.escape(one)}(?!\w)") for one in parts]

    def holds(text: str) -> bool:
        lower = text.lower()
        return any(
            part in lower and pattern.search(lower)
            for part, pattern in zip(parts, whole, strict=True)
        )

    return holds


def _matches(answer: str, references: Sequence[str]) -> bool:
    return any(one.lower() in answer.lower() for one in references)


def _wrong(answers: Sequence[str], right: Sequence[str], name: str) -> Iterator[str]:
    found = [
        one
        for one in answers
        if not _matches(one, right) and not any(_matches(r, [one]) for r in right)
    ]
    draft.generator(name, "wrong").shuffle(found)
    return iter(found)
