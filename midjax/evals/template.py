# SPDX-License-Identifier: Apache-2.0
"""The templates and expressions of task files: Jinja, sandboxed, and strict about names.

    Text("Question: {{question}}\\nAnswer:") (fields) -> text
    Expression("choices.label.index(answerKey)") (fields) -> any plain value

Jinja, because lm_eval's public task files are written in it and midjax depends on it already. The
sandbox knows no import, no loader, no attribute that begins with an underscore, and changes nothing
that it is given. Beyond Jinja's own filters there are `regex_replace`, `regex_findall`, `tojson`
without HTML escapes, `drop_answers`; and `letters`, A to Z.
"""

import functools
import json
import re
import string
from collections.abc import Mapping
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.sandbox

from midjax.evals.metrics import drop

# What a template may raise because of a document; UndefinedError is a TemplateError as well.
_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    RecursionError,
)
_SHOWN_NAMES = 40


class TemplateError(ValueError):
    """A template that is wrong, or does not fit a document."""


class Text:
    """A template that gives text.

    Attributes:
      names: what it needs from outside.
    """

    def __init__(self, source: str, what: str) -> None:
        """Compiles.

        Args:
          source: Jinja.
          what: its name in messages.

        Raises:
          TemplateError: it is not Jinja.
        """
        self._what = what
        environment = _environment()
        try:
            self.names = _names(environment.parse(source))
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise TemplateError(f"{what} is not a Jinja template: {error}") from error

    def __call__(self, fields: Mapping[str, Any]) -> str:
        """The text.

        Raises:
          TemplateError: the fields lack a name, or the template fails on them.
        """
        try:
            return self._template.render(fields)
        except _ERRORS as error:
            raise TemplateError(_failure(self._what, error, fields)) from error


class Expression:
    """A Jinja expression that gives a value: a text, a number, a list."""

    def __init__(self, source: str, what: str) -> None:
        """As `Text`."""
        self._what, self._source = what, source
        environment = _environment()
        try:
            self.names = _names(environment.parse("{{ (" + source + ") }}"))
            self._value = environment.compile_expression(source, undefined_to_none=False)
        except jinja2.TemplateError as error:
            raise TemplateError(f"{what} is not a Jinja expression: {error}") from error

    def __call__(self, fields: Mapping[str, Any]) -> Any:
        """The value.

        Raises:
          TemplateError: as of `Text`.
        """
        try:
            value = self._value(fields)
            if isinstance(value, jinja2.Undefined):
                raise jinja2.UndefinedError(f"{self._source} is undefined")
        except _ERRORS as error:
            raise TemplateError(_failure(self._what, error, fields)) from error
        return value


def _names(tree: Any) -> frozenset[str]:
    return frozenset(jinja2.meta.find_undeclared_variables(tree) - set(_environment().globals))


def _failure(what: str, error: BaseException, fields: Mapping[str, Any]) -> str:
    known = ", ".join(list(fields)[:_SHOWN_NAMES])
    return f"{what}: {error}. There are the fields {known}."


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        extensions=[jinja2.ext.loopcontrols],
    )
    environment.filters["regex_replace"] = _regex_replace
    environment.filters["regex_findall"] = _regex_findall
    environment.filters["tojson"] = _to_json
    environment.filters["drop_answers"] = drop.answers
    environment.globals["letters"] = tuple(string.ascii_uppercase)
    return environment


def _regex_replace(text: str, pattern: str, by: str = "") -> str:
    """Python's `re.sub`."""
    return re.sub(pattern, by, text)


def _regex_findall(text: str, pattern: str) -> list[Any]:
    """Python's `re.findall`."""
    return re.findall(pattern, text)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
