# SPDX-License-Identifier: Apache-2.0
"""Rules about parameters: pattern -> value, where every parameter matches exactly one pattern.

A pattern is a regular expression for the whole of a path, such as "layers/wq" or "embed". Layers
are stacked, so that a path names one parameter of all layers.
"""

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

V = TypeVar("V")


def check(rules: Mapping[str, object], where: str) -> None:
    """Refuses patterns that are no regular expressions.

    Args:
      rules: pattern -> value.
      where: the field, such as "AdamW.decay_rules", for the message.
    """
    for pattern in rules:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"{where}: {pattern!r} is not a regular expression: {error}."
            ) from None


def assign(rules: Mapping[str, V], names: Iterable[str], where: str) -> dict[str, V]:
    """Parameter -> the value of its rule.

    Args:
      rules: pattern -> value.
      names: paths of all parameters.
      where: the field that holds the rules, for the message.

    Raises:
      ValueError: a parameter that no rule matches, or more than one.
    """
    patterns = {pattern: re.compile(pattern) for pattern in rules}
    found = {}
    for name in names:
        matching = [pattern for pattern, regex in patterns.items() if regex.fullmatch(name)]
        if len(matching) != 1:
            told = f"the rules {matching} all match" if matching else "no rule matches"
            raise ValueError(
                f"{where}: {told} the parameter {name!r}. Each parameter must match exactly one "
                f"pattern, which stands for its whole path; the patterns are {list(rules)}."
            )
        found[name] = rules[matching[0]]
    return found
