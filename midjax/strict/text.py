# SPDX-License-Identifier: Apache-2.0
"""A tree of dataclasses as text: lines for people, and gin that loads to an equal tree."""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from midjax.strict import fields


def show(root: Any) -> str:
    """Every leaf as `path = value`; `*` marks what differs from its default or has none."""
    leaves = list(fields.leaves(root))
    width = max((len(leaf.path) for leaf in leaves if len(leaf.path) <= 48), default=0)
    lines = [
        f"{' ' if leaf.is_default else '*'} {leaf.path:<{width}} = {leaf.text}" for leaf in leaves
    ]
    return "\n".join([f"{type(root).__name__}   (* = not the default)", *lines])


def gin(root: Any) -> str:
    """Gin text with every field, defaults too, so that it means the same in a later version."""
    return _Writer(root).text()


class _Writer:
    """A class with one distinct value is bound without a scope, others under a scope per value."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._scopes: dict[tuple[str, str], str] = {}  # identity of a value -> its scope
        values = list(dict.fromkeys(_identity(value) for _, value in _instances(root, "")))
        counts: dict[str, int] = {}
        for identity in values:
            counts[identity[0]] = counts.get(identity[0], 0) + 1
        for path, value in _instances(root, ""):
            identity = _identity(value)
            if identity not in self._scopes:
                alone = value is root or counts[identity[0]] == 1
                self._scopes[identity] = "" if alone else self._new_scope(path)

    def text(self) -> str:
        blocks, done = [], set()
        for _, value in _instances(self._root, ""):
            if (identity := _identity(value)) not in done:
                done.add(identity)
                blocks.append(self._block(value))
        return "\n\n".join(block for block in blocks if block) + "\n"

    def _new_scope(self, path: str) -> str:
        name = base = re.sub(r"\W+", "_", path, flags=re.ASCII).strip("_")
        number = 2
        while name in self._scopes.values():
            name, number = f"{base}_{number}", number + 1
        return name

    def _name(self, value: Any) -> str:
        scope = self._scopes[_identity(value)]
        return f"{scope}/{type(value).__name__}" if scope else type(value).__name__

    def _block(self, value: Any) -> str:
        name = self._name(value)
        lines = [
            f"{name}.{f} = {self._literal(getattr(value, f))}" for f in fields.inits(type(value))
        ]
        return "\n".join(lines)

    def _literal(self, value: Any) -> str:
        if dataclasses.is_dataclass(value):
            return f"@{self._name(value)}()"
        if isinstance(value, Mapping):
            return "{" + ", ".join(f"{k!r}: {self._literal(v)}" for k, v in value.items()) + "}"
        if isinstance(value, tuple):
            return "(" + "".join(f"{self._literal(item)}, " for item in value).strip() + ")"
        if isinstance(value, list):
            return "[" + ", ".join(self._literal(item) for item in value) + "]"
        return repr(value)


def _identity(value: Any) -> tuple[str, str]:
    # Not the value's own ==, for which 1 == 1.0 == True.
    return type(value).__name__, json.dumps(fields.to_json(value))


def _instances(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Path and value of every dataclass in a tree, parents first."""
    if dataclasses.is_dataclass(value):
        yield path, value
        for name in fields.inits(type(value)):
            yield from _instances(getattr(value, name), f"{path}_{name}" if path else name)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _instances(item, f"{path}_{key}")
    elif isinstance(value, (tuple, list)):
        for i, item in enumerate(value):
            yield from _instances(item, f"{path}_{i}")
