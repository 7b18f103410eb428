# SPDX-License-Identifier: Apache-2.0
"""Record -> text, and which of its characters bear loss.

    format.open(facts of the tokenizer) -> render;   render(record, id) -> Rendered, or raises Drop

Conversations are in `chat`, fill-in-the-middle in `fim`.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jinja2

from midjax.corpora import templates


class Drop(Exception):
    """A record that gives no document.

    Attributes:
      reason: what is counted: one of few, without words of the record.
      detail: more, for the first example.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerFacts:
    """What a format needs to know of the tokenizer that will read its text.

    Attributes:
      special_tokens: strings that the tokenizer reads as one special token.
      bos_token, eos_token: what a chat template is given under these names; None where there is
        none.
      chat_template: Jinja source of the tokenizer's chat template; None where it has none.
    """

    special_tokens: frozenset[str]
    bos_token: str | None
    eos_token: str | None
    chat_template: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rendered:
    """The text of one record; `loss` and `special` as in `types.Document`."""

    text: str
    loss: tuple[tuple[int, int], ...] | None = None
    special: bool = False


Render = Callable[[Mapping[str, Any], str], Rendered]


def string(record: Mapping[str, Any], field: str) -> str:
    """The string in a field; bytes are read as UTF-8.

    Raises:
      Drop: there is none, or it is not UTF-8.
    """
    value = decoded(record.get(field))
    if not isinstance(value, str):
        raise Drop(f"no string field {field!r}")
    return value


def decoded(value: Any) -> Any:
    """Bytes as UTF-8 text, at any depth of plain containers; arrays as lists; the rest as it is.

    Raises:
      Drop: not UTF-8.
    """
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise Drop("invalid UTF-8") from None
    if isinstance(value, Mapping):
        return {name: decoded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [decoded(item) for item in value]
    if hasattr(value, "tolist"):  # numpy's arrays and scalars
        return decoded(value.tolist())
    return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """A field as it is. All of it bears loss.

    Attributes:
      field: holds the text.
    """

    field: str

    def fields(self) -> frozenset[str]:
        """Fields that the text is made of."""
        return frozenset([self.field])

    def open(self, facts: TokenizerFacts) -> Render:
        """The function from a record to its text."""
        return lambda record, key: Rendered(text=string(record, self.field))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Template:
    """Fields joined by a template. All of the text bears loss.

    Attributes:
      template: Jinja over the record's fields, such as "{{ title }}\\n\\n{{ text }}". A record
        without one of them (absent or null) is dropped; `{% if title is defined %}` makes a field
        optional.
    """

    template: str

    def __post_init__(self) -> None:
        templates.Script(self.template, f"{type(self).__name__}.template", strict=True)

    def fields(self) -> frozenset[str]:
        """Fields that the text is made of."""
        return templates.Script(self.template, "template", strict=True).names

    def open(self, facts: TokenizerFacts) -> Render:
        """The function from a record to its text."""
        script = templates.Script(self.template, "Template.template", strict=True)

        def render(record: Mapping[str, Any], key: str) -> Rendered:
            text, _ = _rendered(script, {name: record.get(name) for name in script.names})
            return Rendered(text=text)

        return render


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionAnswer:
    """A question and its answer.

    Attributes:
      question_field, answer_field: fields that hold them. A field inside another is written with a
        dot, a list's element with its number: `answers.text.0` is SQuAD's first answer.
      template: Jinja over `question`, `answer` and the record's other fields, such as
        "Question: {{ question }}\\nAnswer: {{ answer }}".
      loss: "answer": loss on what stands in `{% generation %}...{% endgeneration %}`; in a template
        without it, on every `{{ answer }}`. "all": on all of the text.
    """

    question_field: str
    answer_field: str
    template: str
    loss: Literal["answer", "all"]

    def __post_init__(self) -> None:
        names = self._script().names
        for name in ("question", "answer"):
            if name not in names:
                raise ValueError(
                    f"QuestionAnswer.template does not use {name!r}: {self.template!r}. "
                    "Write {{ question }} and {{ answer }} where they are to stand."
                )

    def fields(self) -> frozenset[str]:
        """Fields that the text is made of."""
        own = {self.question_field.split(".")[0], self.answer_field.split(".")[0]}
        return self._script().names - {"question", "answer"} | own

    def open(self, facts: TokenizerFacts) -> Render:
        """The function from a record to its text."""
        script = self._script()

        def render(record: Mapping[str, Any], key: str) -> Rendered:
            given = {name: record.get(name) for name in script.names}
            given["question"] = self._part(record, self.question_field)
            given["answer"] = self._part(record, self.answer_field)
            text, spans = _rendered(script, given)
            if self.loss == "all":
                return Rendered(text=text)
            if not spans:
                raise Drop("no answer in the text")
            return Rendered(text=text, loss=spans)

        return render

    def _script(self) -> templates.Script:
        return templates.Script(
            self.template, "QuestionAnswer.template", strict=True, mark="answer"
        )

    def _part(self, record: Mapping[str, Any], field: str) -> str:
        value: Any = record
        for step in field.split("."):
            value = decoded(value.get(step) if isinstance(value, Mapping) else value)
            if isinstance(value, list) and step.isdecimal():
                value = value[int(step)] if int(step) < len(value) else None
        if not isinstance(value, str):
            raise Drop(f"no string field {field!r}")
        if not value.strip():
            raise Drop(f"empty field {field!r}")
        return value


def _rendered(
    script: templates.Script, given: Mapping[str, Any]
) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Text and marked spans; null is the same as absent."""
    context = {name: decoded(value) for name, value in given.items() if value is not None}
    try:
        return script.render(context)
    except jinja2.UndefinedError as error:
        name = re.search(r"'([^']+)' is undefined|has no attribute '([^']+)'", str(error))
        raise Drop(
            f"no field {name[1] or name[2]!r}" if name else "undefined in the template", str(error)
        ) from None
    except templates.RENDER_ERRORS as error:
        raise Drop("refused by the template", str(error)) from None
