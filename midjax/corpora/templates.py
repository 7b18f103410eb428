# SPDX-License-Identifier: Apache-2.0
"""Jinja templates, sandboxed, that know where marked text lands: `{% generation %}` blocks.

The environment is what chat templates are written for (that of transformers'
`apply_chat_template`): trim_blocks, lstrip_blocks, loop controls, `tojson` without HTML escapes,
`raise_exception`, `strftime_now`; and its rule for where a generation block is.
"""

import datetime
import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.sandbox
import jinja2.visitor

# What rendering may raise because of a record; UndefinedError is a TemplateError as well.
RENDER_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    RecursionError,
)
Spans = tuple[tuple[int, int], ...]


class Script:
    """One compiled template.

    Attributes:
      names: variables that it needs from outside.
      marks: whether any text is marked.
    """

    def __init__(
        self,
        source: str,
        what: str,
        *,
        strict: bool,
        mark: str | None = None,
        date: datetime.date | None = None,
    ) -> None:
        """Compiles.

        Args:
          source: Jinja.
          what: its name in messages.
          strict: whether an undefined variable is an error, or renders as nothing.
          mark: in a template without generation blocks, `{{ }}` of this variable count as some.
          date: what `strftime_now` tells. The real date would give other text tomorrow.

        Raises:
          ValueError: it is not Jinja, or it asks for the date and there is none.
        """
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, jinja2.ext.loopcontrols],
            undefined=jinja2.StrictUndefined if strict else jinja2.Undefined,
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = functools.partial(_strftime, date)
        environment.globals["namespace"] = _Namespace
        generation = environment.extensions[_Generation.identifier]
        assert isinstance(generation, _Generation)
        self._generation = generation
        try:
            tree = environment.parse(source)
            self.names = frozenset(
                jinja2.meta.find_undeclared_variables(tree) - set(environment.globals)
            )
            used = {node.name for node in tree.find_all(jinja2.nodes.Name)}
            if mark is not None and not self._generation.used:
                tree = _Marker(self._generation, mark).visit(tree)
                tree.set_environment(environment)
            self._template = environment.from_string(tree)
        except jinja2.TemplateError as error:
            line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise ValueError(f"{what} is not a Jinja template{line}: {error}") from error
        self.marks = self._generation.used
        if "strftime_now" in used and date is None:
            raise ValueError(
                f"{what} writes the current date (strftime_now) into the text, which would differ "
                "from day to day. Give the date that it is to write."
            )

    def render(self, context: Mapping[str, Any]) -> tuple[str, Spans]:
        """The text, and the ranges [start, end) of its marked characters, none of them empty.

        Raises:
          any of `RENDER_ERRORS`: the template fails on this context or refuses it.
        """
        text, marked = self._generation.follow(self._template.generate(context))
        for start, content in marked:
            if not text.startswith(content, start):
                # A block in a macro or in {% set %}: its text is not where it was made.
                raise jinja2.TemplateRuntimeError("a generation block inside a macro has no place")
        return text, tuple((start, start + len(part)) for start, part in marked if part)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}`: renders its content and remembers where."""

    tags = {"generation"}  # noqa: RUF012 (as jinja declares it)

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.used = False
        self._length = 0
        self._marked: list[tuple[int, str]] = []

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        """Of jinja: from the block's tokens to a node."""
        line = next(parser.stream).lineno
        return self.block(parser.parse_statements(("name:endgeneration",), drop_needle=True), line)

    def block(self, body: list[jinja2.nodes.Node], line: int) -> jinja2.nodes.CallBlock:
        """A block around nodes."""
        self.used = True
        made = jinja2.nodes.CallBlock(self.call_method("mark"), [], [], body)
        made.set_lineno(line)
        return made

    def mark(self, caller: Any) -> str:
        """Called where a block stands."""
        content = caller()
        self._marked.append((self._length, content))
        return content

    def follow(self, pieces: Iterator[str]) -> tuple[str, list[tuple[int, str]]]:
        """Joins the pieces of a rendering; and (start, content) of the blocks in it."""
        self._length, self._marked, held = 0, [], []
        for piece in pieces:
            held.append(piece)
            self._length += len(piece)
        return "".join(held), self._marked


class _Marker(jinja2.visitor.NodeTransformer):
    """Puts each `{{ }}` that reads a variable into a generation block of its own."""

    def __init__(self, generation: _Generation, name: str) -> None:
        self._generation, self._name = generation, name

    def visit_Output(self, node: jinja2.nodes.Output) -> list[jinja2.nodes.Node]:
        """Of jinja: replaces one node by several."""
        made: list[jinja2.nodes.Node] = []
        for child in node.nodes:
            output = jinja2.nodes.Output([child]).set_lineno(node.lineno)
            names = [child] if isinstance(child, jinja2.nodes.Name) else []
            names += list(child.find_all(jinja2.nodes.Name))
            if any(found.name == self._name for found in names):
                made.append(self._generation.block([output], node.lineno))
            else:
                made.append(output)
        return made


class _Namespace(jinja2.utils.Namespace):
    """Jinja's `namespace`, without attributes that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # self is positional, so that a key may be
        self, rest = args[0], args[1:]
        values = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if str(name).startswith("_"):
        raise jinja2.sandbox.SecurityError(f"namespace attribute {name!r} begins with _")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime(date: datetime.date | None, form: str) -> str:
    assert date is not None  # the constructor refused
    return date.strftime(form)
