# SPDX-License-Identifier: Apache-2.0
"""RULER's variable tracking: which variables have a value, through chains of assignments.

    VAR ABCDE = 12345 ... VAR FGHIJ = VAR ABCDE ... VAR KLMNO = VAR FGHIJ ...

Links of a chain stand in their order; an example with names of three letters stands before.
"""

import dataclasses
import itertools
import random
import re
import string
from collections.abc import Callable, Iterator

from midjax.evals.long import draft, retrieval

_BEFORE = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
# "assgined" is RULER's.
_AFTER = (
    "\nQuestion: Find all variables that are assigned the value {value} in the text above. Answer: "
    "According to the chain(s) of variable assignment in the text above, {count} variables are "
    "assgined the value {value}, they are:"
)
_ASSIGNED = re.compile(r"VAR ([A-Z]{5}) = ")
_NAME_LETTERS, _EXAMPLE_LETTERS = 5, 3
_MORE = 3
# The example has RULER's 500 tokens, or an eighth of a text that is short.
_EXAMPLE_TOKENS, _EXAMPLE_SHARE = 500, 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chains:
    """How many chains there are, and how many assignments of variables to variables each has."""

    count: int = 1
    hops: int = 4


def make(task: Chains, row_tokens: int, count: Callable[[str], int], name: str) -> draft.Draft:
    """One sample.

    Args:
      row_tokens: gives the example's length.
      count: tokens of a text.
      name: what its random numbers depend on.
    """
    shown, answer = _chains(task, _EXAMPLE_LETTERS, f"{name}/example")
    limit = min(row_tokens // _EXAMPLE_SHARE, _EXAMPLE_TOKENS)
    whole = shown(1, 0, "")
    for units in range(2, limit):
        longer = shown(units, 0, "")
        if count(longer) > limit:
            break
        whole = longer
    example = f"{whole} {' '.join(answer)}\n\n"
    render, references = _chains(task, _NAME_LETTERS, name)

    def beside(text: str) -> list[str]:
        names = dict.fromkeys(_ASSIGNED.findall(text[len(example) :]))
        return [one for one in names if one not in references]

    return draft.Draft(
        render=lambda *sizes: example + render(*sizes),
        least_units=1,
        most_units=None,
        characters=_MORE * (len(retrieval.NOISE) + 1),
        references=references,
        beside=beside,
        elsewhere=lambda: _names(draft.generator(name, "elsewhere"), _NAME_LETTERS),
        forms=26.0**_NAME_LETTERS,
    )


def _names(rng: random.Random, letters: int) -> Iterator[str]:
    return draft.distinct(lambda: "".join(rng.choices(string.ascii_uppercase, k=letters)), set())


def _chains(
    task: Chains, letters: int, name: str
) -> tuple[Callable[[int, int, str], str], tuple[str, ...]]:
    """(sentences of noise, characters of more, tail) -> text up to the answer; and the answer."""
    rng = draft.generator(name, "chains")
    names = _names(rng, letters)
    values = draft.distinct(lambda: str(rng.randrange(10_000, 100_000)), set())
    links: list[str] = []
    places: list[float] = []
    variables: list[list[str]] = []
    for _ in range(task.count):
        own = [next(names) for _ in range(task.hops + 1)]
        links.append(f"VAR {own[0]} = {next(values)}")
        links += [f"VAR {new} = VAR {old}" for old, new in itertools.pairwise(own)]
        places += sorted(rng.random() for _ in own)
        variables.append(own)
    value = links[0].rpartition(" ")[2]
    after = _AFTER.format(value=value, count=task.hops + 1)
    more = (" " + retrieval.NOISE) * _MORE

    def render(units: int, size: int, tail: str) -> str:
        lines = draft.spread(links, places, [retrieval.NOISE + "\n"] * units)
        return _BEFORE + " ".join(lines) + more[:size] + tail + after

    return render, tuple(variables[0])
