# SPDX-License-Identifier: Apache-2.0
"""RULER's needles: keys and values hidden in a haystack.

noise    the same five sentences again and again          niah_single_1, as passkey retrieval
essay    running text of the token folder                 niah_single_2 and 3, and most others
needles  other keys and values of the same form           niah_multikey_2 and 3
"""

import dataclasses
import random
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from midjax.evals.long import draft, haystack

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_NEEDLE = "One of the special magic {kind} for {key} is: {value}."
_BEFORE = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. I "
    "will quiz you about the {kind} afterwards.\n"
)
_AFTER = (
    "\nWhat are all the special magic {kind} for {query} mentioned in the provided text? The "
    "special magic {kind} for {query} mentioned in the provided text are"
)
# Where one value is asked for.
_BEFORE_ONE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. I will "
    "quiz you about the {kind} afterwards.\n"
)
_AFTER_ONE = (
    "\nWhat is the special magic {kind} for {query} mentioned in the provided text? The special "
    "magic {kind} for {query} mentioned in the provided text is"
)
_VALUE = re.compile(r"One of the special magic \w+ for \S+ is: ([\w-]+)\.")
# Needles in running text stand after these shares of its sentences, no two at the same.
_DEPTHS = tuple(round(100 * i / 39) / 100 for i in range(40))
_SENTENCE_END = re.compile(r"[.!?][\"')\]”’]*$")
_TITLES = frozenset({"Mr.", "Mrs.", "Ms.", "Dr.", "St."})
# Of text that ends no sentence, so many words are taken for one.
_SENTENCE_WORDS = 60
# How many values of a form there are: numbers of 7 digits, UUIDs of version 4.
_FORMS = {"numbers": 9e6, "uuids": 2.0**122}
# Filling beyond the last unit.
_FILLING_WORDS = 100
_MORE = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needles:
    """What is hidden where.

    Attributes:
      stack: see the module.
      keys: words are two words of the source, joined by a hyphen.
      values: numbers have 7 digits.
      key_count: of keys in the haystack, each with a needle for each of its values.
      value_count: of a key.
      query_count: of keys that are asked for.
    """

    stack: Literal["noise", "essay", "needles"]
    keys: Literal["words", "uuids"] = "words"
    values: Literal["numbers", "uuids"] = "numbers"
    key_count: int = 1
    value_count: int = 1
    query_count: int = 1


def make(task: Needles, text: haystack.Haystack, sample: int, name: str) -> draft.Draft:
    """One sample.

    Args:
      text: gives running text and the words of keys.
      sample: its number.
      name: what its random numbers depend on.
    """
    rng = draft.generator(name, "needles")
    taken: set[str] = set()
    new_key, new_value = _new(task, text, rng, taken)
    keys = [next(new_key) for _ in range(task.key_count)]
    values = [[next(new_value) for _ in range(task.value_count)] for _ in keys]
    asked = rng.sample(range(task.key_count), task.query_count)
    hidden = [(key, value) for key, own in zip(keys, values, strict=True) for value in own]
    needles = [_needle(task, key, value) for key, value in hidden]
    rng.shuffle(needles)
    references = tuple(value for key in asked for value in values[key])
    before, after = _question(task, [keys[key] for key in asked])
    hidden_in = _Sample(
        task=task, text=text, number=sample, needles=needles, name=name, taken=taken
    )
    stack, characters = _STACKS[task.stack](hidden_in)

    def beside(rendered: str) -> list[str]:
        within = rendered[len(before) : len(rendered) - len(after)]
        return [one for one in dict.fromkeys(_VALUE.findall(within)) if one not in references]

    return draft.Draft(
        render=lambda *sizes: before + stack(*sizes) + after,
        least_units=1,
        most_units=None,
        characters=characters,
        references=references,
        beside=beside,
        elsewhere=lambda: draft.distinct(
            _drawing(task.values, draft.generator(name, "elsewhere"), text), set()
        ),
        forms=_FORMS[task.values],
        stands_once=True,
    )


def _needle(task: Needles, key: str, value: str) -> str:
    return _NEEDLE.format(kind=task.values, key=key, value=value)


def _question(task: Needles, keys: Sequence[str]) -> tuple[str, str]:
    query = keys[0] if len(keys) == 1 else ", ".join(keys[:-1]) + ", and " + keys[-1]
    one = len(keys) * task.value_count == 1
    kind = task.values.removesuffix("s") if one else task.values
    before, after = (_BEFORE_ONE, _AFTER_ONE) if one else (_BEFORE, _AFTER)
    return before.format(kind=kind), after.format(kind=kind, query=query)


def _new(
    task: Needles, text: haystack.Haystack, rng: random.Random, taken: set[str]
) -> tuple[Iterator[str], Iterator[str]]:
    """Keys and values that are not yet `taken`, without end."""
    key, value = (
        draft.distinct(_drawing(kind, rng, text), taken) for kind in (task.keys, task.values)
    )
    return key, value


def _drawing(kind: str, rng: random.Random, text: haystack.Haystack) -> Callable[[], str]:
    if kind == "numbers":
        return lambda: str(rng.randrange(10**6, 10**7))
    if kind == "uuids":
        return lambda: str(uuid.UUID(int=rng.getrandbits(128), version=4))
    words = text.vocabulary()
    return lambda: f"{rng.choice(words)}-{rng.choice(words)}"


# ---- haystacks: (units, characters, tail) -> text, and how many characters there are at most ----

_Stack = tuple[Callable[[int, int, str], str], int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Sample:
    """What is hidden; `taken` are the keys and values that are in use, for `_new`."""

    task: Needles
    text: haystack.Haystack
    number: int
    needles: Sequence[str]
    name: str
    taken: set[str]


def _noise(sample: _Sample) -> _Stack:
    rng = draft.generator(sample.name, "places")
    places = [rng.random() for _ in sample.needles]
    more = ("\n" + NOISE) * _MORE

    def stack(units: int, size: int, tail: str) -> str:
        return "\n".join(draft.spread(sample.needles, places, [NOISE] * units)) + more[:size] + tail

    return stack, len(more)


def _essay(sample: _Sample) -> _Stack:
    places = draft.generator(sample.name, "places")
    depths = sorted(places.sample(_DEPTHS, len(sample.needles)))
    words = draft.Endless(sample.text.words(sample.number))

    def stack(units: int, size: int, tail: str) -> str:
        known = words.first(units + _FILLING_WORDS)
        ends = _sentence_ends(known[:units])
        found: list[str] = []
        at = 0
        for depth, needle in zip(depths, sample.needles, strict=True):
            end = ([0, *ends])[int(len(ends) * depth)]
            found += [*known[at:end], needle]
            at = end
        more = "".join(" " + word for word in known[units:])
        return " ".join([*found, *known[at:units]]) + more[:size] + tail

    return stack, 2 * _FILLING_WORDS  # no word is shorter, with its blank


def _sentence_ends(words: Sequence[str]) -> list[int]:
    """Numbers of words after which sentences end; the last is that of all words."""
    ends: list[int] = []
    for number, word in enumerate(words, 1):
        begun = ends[-1] if ends else 0
        is_end = word not in _TITLES and _SENTENCE_END.search(word)
        if is_end or number - begun == _SENTENCE_WORDS or number == len(words):
            ends.append(number)
    return ends


def _others(sample: _Sample) -> _Stack:
    places, task = draft.generator(sample.name, "places"), sample.task
    at = [places.random() for _ in sample.needles]
    new = _new(task, sample.text, draft.generator(sample.name, "others"), sample.taken)
    others = draft.Endless(_needle(task, *pair) for pair in zip(*new, strict=False))

    def stack(units: int, size: int, tail: str) -> str:
        known = others.first(units + _MORE)
        more = "".join("\n" + one for one in known[units:])
        return "\n".join(draft.spread(sample.needles, at, known[:units])) + more[:size] + tail

    return stack, len(_needle(task, "", "")) * _MORE


_STACKS = {"noise": _noise, "essay": _essay, "needles": _others}
