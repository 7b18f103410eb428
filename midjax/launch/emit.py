# SPDX-License-Identifier: Apache-2.0
"""Plain values -> YAML that people read: a strict subset, block style, no anchors, no tags."""

import json
import re
from typing import Any

# What YAML 1.1 or 1.2 reads as something else than text stays quoted: numbers, dates, yes, null.
_PLAIN = re.compile(r"[A-Za-z/][\w./-]*", flags=re.ASCII)
_WORDS = {"y", "n", "yes", "no", "true", "false", "on", "off", "null", "nan", "inf"}


def text(document: dict[str, Any]) -> str:
    """One document.

    Raises:
      TypeError: a value other than dict, list, str, int, bool.
    """
    return "\n".join(_mapping(document, 0)) + "\n"


def texts(documents: list[dict[str, Any]]) -> str:
    """Several documents in one file."""
    return "---\n".join(map(text, documents))


def _mapping(value: dict[str, Any], indent: int) -> list[str]:
    lines = []
    for key, inner in value.items():
        lines += _entry(f"{' ' * indent}{_scalar(key)}:", inner, indent)
    return lines


def _entry(head: str, value: Any, indent: int) -> list[str]:
    if isinstance(value, dict) and value:
        return [head, *_mapping(value, indent + 2)]
    if isinstance(value, list) and value and not all(isinstance(one, int) for one in value):
        return [head, *_sequence(value, indent)]
    if isinstance(value, str) and _is_block(value):
        keep = "|" if value.endswith("\n") else "|-"
        pad = " " * (indent + 2)
        return [f"{head} {keep}", *(pad + line if line else "" for line in value.splitlines())]
    return [f"{head} {_scalar(value)}"]


def _sequence(value: list[Any], indent: int) -> list[str]:
    lines = []
    for item in value:
        if isinstance(item, dict) and item:
            first, *rest = _mapping(item, indent + 2)
            lines += [f"{' ' * indent}- {first.lstrip()}", *rest]
        else:
            lines.append(f"{' ' * indent}- {_scalar(item)}")
    return lines


def _is_block(value: str) -> bool:
    """Text of several lines which a literal block gives back unchanged."""
    lines = value.splitlines()
    clean = all(char == "\n" or char.isprintable() for char in value)
    ends_once = not value.endswith("\n\n")
    return (
        len(lines) > 1 and clean and ends_once and bool(lines[0]) and not lines[0].startswith(" ")
    )


def _escaped(char: str) -> str:
    """As it stands between double quotes; JSON's pairs of surrogates are no YAML."""
    if char in '"\\':
        return "\\" + char
    if char.isprintable():
        return char
    return f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\U{ord(char):08x}"


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
            return value
        return '"' + "".join(map(_escaped, value)) + '"'
    if isinstance(value, bool | int) or value in ({}, []):
        return json.dumps(value)
    if isinstance(value, list) and all(isinstance(one, int) for one in value):
        return json.dumps(value)
    raise TypeError(f"{value!r} is not written as YAML here: dict, list, str, int and bool are.")
