# SPDX-License-Identifier: Apache-2.0
"""Bindings -> one tree of dataclasses, or an error that says what could not have been meant.

    names exist -> visit from the root: what is reached, what is missing -> construct and check

A class is built once per scope it is referenced in. A scope holds for everything below it that is
referenced without a scope of its own, and what is not bound in a scope falls back on the unscoped
binding: this is gin's rule, and `Lookup` is gin itself.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from midjax.strict import fields

ConfigError = fields.ConfigError
COMMAND_LINE = "the command line"


@dataclasses.dataclass(frozen=True)
class Reference:
    """`@scope/Name()` in a value; `@scope/Name` is not `called`."""

    scope: str
    name: str
    called: bool

    def __str__(self) -> str:
        return f"@{_scoped(self.scope, self.name)}" + ("()" if self.called else "")


@dataclasses.dataclass(frozen=True)
class Macro:
    """`%NAME` in a value."""

    name: str


@dataclasses.dataclass(frozen=True)
class Binding:
    """One `scope/Name.field = value` and where it stands; a macro `NAME = value` has no field."""

    scope: str
    name: str
    field: str
    value: Any
    where: str
    bare: bool = False  # a string given without quotes on the command line

    @property
    def key(self) -> tuple[str, str, str]:
        return self.scope, self.name, self.field

    def __str__(self) -> str:
        return _scoped(self.scope, self.name) + (f".{self.field}" if self.field else "")

    @property
    def at(self) -> str:
        """`file:line: Name.field`."""
        return f"{self.where}: {self}"


# (class, scope) -> the bindings that hold there, by field.
Lookup = Callable[[type, str], Mapping[str, Binding]]


def _scoped(scope: str, name: str) -> str:
    return f"{scope}/{name}" if scope else name


def nodes(value: Any) -> Iterator[Reference | Macro]:
    """References and macros at any depth of a value."""
    if isinstance(value, (Reference, Macro)):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from nodes(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from nodes(item)


class Build:
    """Checks the names at once; `root` builds."""

    def __init__(
        self, root: type, classes: Mapping[str, type], bindings: list[Binding], lookup: Lookup
    ) -> None:
        self._root, self._classes, self._bindings, self._lookup = root, classes, bindings, lookup
        self._macros = {binding.name: binding for binding in bindings if not binding.field}
        self._reached: set[tuple[str, str, str]] = set()
        self._visited: set[tuple[type, str]] = set()
        self._missing: list[str] = []
        self._made: dict[tuple[type, str], Any] = {}
        for binding in bindings:
            self._check_names(binding)

    def root(self) -> Any:
        """The root object. Call once, when `lookup` is ready."""
        self._visit(self._root, "", ())
        problems = [self._why_dead(b) for b in self._bindings if b.key not in self._reached]
        if problems:
            problems.insert(0, f"Bound without effect on {self._root.__name__}:")
        if self._missing:
            problems += ["Required but not bound:", *self._missing]
        if problems:
            raise ConfigError("\n  ".join(problems))
        return self._make(self._root, "")

    # -- names

    def _check_names(self, binding: Binding) -> None:
        if "/" in binding.scope:
            raise ConfigError(
                f"{binding.at}: a scope has one level: {binding.scope.split('/')[-1]}/..."
            )
        if binding.field:
            self._check_field(binding)
        elif binding.scope or not binding.name.isupper():
            raise ConfigError(
                f"{binding.at} sets neither a field (Class.field) nor a macro (NAME in upper case)."
            )
        for node in nodes(binding.value):
            if isinstance(node, Macro):
                if node.name not in self._macros:
                    hint = fields.suggest(node.name, self._macros)
                    raise ConfigError(f"{binding.at}: the macro %{node.name} is not defined.{hint}")
                continue
            if node.name not in self._classes:
                hint = fields.suggest(node.name, self._classes)
                raise ConfigError(f"{binding.at}: no class {node.name!r} for {node}.{hint}")
            if not node.called:
                raise ConfigError(f"{binding.at}: write {node}(), with parentheses.")
            if "/" in node.scope:
                raise ConfigError(f"{binding.at}: {node}: a scope has one level.")

    def _check_field(self, binding: Binding) -> None:
        cls = self._classes.get(binding.name)
        if cls is None:
            hint = fields.suggest(binding.name, self._classes)
            raise ConfigError(
                f"{binding.at}: {self._root.__name__} has no part {binding.name!r}.{hint} "
                f"There are {', '.join(sorted(self._classes))}."
            )
        names = fields.inits(cls)
        if binding.field not in names:
            hint = fields.suggest(binding.field, names)
            raise ConfigError(
                f"{binding.at}: {binding.name} has no field {binding.field!r}.{hint} "
                f"There are {', '.join(names)}."
            )
        word = binding.value.lower() if binding.bare else ""
        proper = {"true": "True", "false": "False", "none": "None", "null": "None"}.get(word)
        if proper and binding.value not in fields.literals(fields.hints(cls)[binding.field]):
            quoted = f"'\"{binding.value}\"'"
            raise ConfigError(
                f"--gin.{binding}={binding.value}: write {proper}, or {quoted} to mean the word."
            )

    # -- what is reached

    def _visit(self, cls: type, scope: str, above: tuple[tuple[type, str], ...]) -> None:
        here = (cls, scope)
        if here in above:
            chain = " -> ".join(_scoped(s, c.__name__) for c, s in (*above, here))
            raise ConfigError(f"A part cannot contain itself: {chain}.")
        if here in self._visited:
            return
        self._visited.add(here)
        bound, annotations = self._lookup(cls, scope), fields.hints(cls)
        for name, field in fields.inits(cls).items():
            if name in bound:
                self._reached.add(bound[name].key)
                self._visit_value(bound[name], bound[name].value, scope, (*above, here), ())
            elif fields.required(field):
                path = f"{_scoped(scope, cls.__name__)}.{name}"
                self._missing.append(f"{path} ({fields.describe(annotations[name])})")

    def _visit_value(
        self,
        binding: Binding,
        value: Any,
        scope: str,
        above: tuple[tuple[type, str], ...],
        macros: tuple[str, ...],
    ) -> None:
        for node in nodes(value):
            if isinstance(node, Reference):
                self._visit(self._classes[node.name], node.scope or scope, above)
            elif node.name in macros:
                chain = " -> ".join(f"%{name}" for name in (*macros, node.name))
                raise ConfigError(f"{binding.at}: macros in a circle: {chain}.")
            else:
                macro = self._macros[node.name]
                self._reached.add(macro.key)
                self._visit_value(binding, macro.value, scope, above, (*macros, node.name))

    def _why_dead(self, binding: Binding) -> str:
        if not binding.field:
            used = [
                node.name
                for b in self._bindings
                for node in nodes(b.value)
                if isinstance(node, Macro)
            ]
            hint = fields.suggest(binding.name, {*used, *self._macros} - {binding.name})
            return f"{binding.at}: %{binding.name} is used nowhere.{hint}"
        cls = self._classes[binding.name]
        scopes = sorted(scope for built, scope in self._visited if built is cls)
        if not scopes:
            places = ", ".join(fields.holders(cls, self._classes))
            return f"{binding.at}: no {binding.name} is built. Bind @{binding.name}() to {places}."
        if binding.scope in scopes:  # cannot be: a bound field of a built instance is reached
            raise AssertionError(binding)
        if binding.scope:
            names = [scope for scope in scopes if scope]
            known = f"scopes of {binding.name} in use: {', '.join(names) or 'none'}"
            return f"{binding.at}: {known}.{fields.suggest(binding.scope, names)}"
        return f"{binding.at}: each {binding.name} has a value of its own ({', '.join(scopes)})."

    # -- construction

    def _make(self, cls: type, scope: str) -> Any:
        if (cls, scope) not in self._made:
            annotations = fields.hints(cls)
            bound = self._lookup(cls, scope)
            given = {name: self._value(binding.value, scope) for name, binding in bound.items()}
            values = {
                name: fields.fit(value, annotations[name], bound[name].at)
                for name, value in given.items()
            }
            try:
                self._made[cls, scope] = cls(**values)
            except ConfigError:
                raise
            except ValueError as error:
                named = not scope and str(error).startswith(cls.__name__)
                label = "" if named else f"{_scoped(scope, cls.__name__)}: "
                raise ConfigError(f"{label}{error}") from error
        return self._made[cls, scope]

    def _value(self, value: Any, scope: str) -> Any:
        if isinstance(value, Reference):
            return self._make(self._classes[value.name], value.scope or scope)
        if isinstance(value, Macro):
            return self._value(self._macros[value.name].value, scope)
        if isinstance(value, dict):
            return {key: self._value(item, scope) for key, item in value.items()}
        if isinstance(value, (tuple, list)):
            return type(value)(self._value(item, scope) for item in value)
        return value
