# SPDX-License-Identifier: Apache-2.0
"""A text that grows: what a task makes for one sample, before anything says how long it is."""

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draft:
    """One sample of a task, at every length.

    Attributes:
      render: (units, characters, tail) -> text. Units are sentences, words, paragraphs, or what
        else the task is filled with; characters are of the filling that goes on after them; tail is
        a mark after these.
      least_units: with fewer the question has no answer.
      most_units: there are no more; None is no bound.
      characters: there are no more.
      references: what an answer must hold.
      beside: text -> the other candidates in it, each once: what somebody takes for an answer who
        does not know which is asked for.
      elsewhere: wrong answers of the same form that need stand nowhere, each once.
      forms: how many texts of that form there are.
      stands_once: each reference must stand in the text just once. Where the filling is text that
        nobody has read, it may not be so; then another sample is drawn.
    """

    render: Callable[[int, int, str], str]
    least_units: int
    most_units: int | None
    characters: int
    references: tuple[str, ...]
    beside: Callable[[str], list[str]]
    elsewhere: Callable[[], Iterator[str]]
    forms: float
    stands_once: bool = False

    def pool(self, text: str) -> float:
        """Among how many somebody guesses: the candidates in the text, or, if these are the
        references only, whatever has their form."""
        beside = self.beside(text)
        return len(beside) + len(self.references) if beside else self.forms

    def decoys(self, text: str, count: int, rng: random.Random) -> tuple[str, ...]:
        """So many wrong answers, or all that there are; first those that stand in the text."""
        found = self.beside(text)
        rng.shuffle(found)
        if len(found) < count:
            known = {*found, *self.references}
            others = (one for one in self.elsewhere() if one not in known)
            found += itertools.islice(others, count - len(found))
        return tuple(found[:count])


class Endless(Generic[T]):
    """The first items of something that never ends, kept."""

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self._known: list[T] = []

    def first(self, count: int) -> list[T]:
        """The first `count` items; the same at every call."""
        while len(self._known) < count:
            self._known.append(next(self._items))
        return self._known[:count]


def distinct(draw: Callable[[], str], taken: set[str]) -> Iterator[str]:
    """Draws that are not taken; each is then."""
    while True:
        found = draw()
        if found not in taken:
            taken.add(found)
            yield found


def generator(*names: object) -> random.Random:
    """Random numbers of these names, which share nothing with those of others."""
    return random.Random("/".join(map(str, names)))


def spread(items: Sequence[str], places: Sequence[float], filling: Sequence[str]) -> list[str]:
    """Items among a filling.

    Args:
      places: of the items in [0, 1): the share of the filling before each.
    """
    slots = [int(place * (len(filling) + 1)) for place in places]
    order = sorted(range(len(items)), key=lambda item: places[item])
    found: list[str] = []
    at = 0
    for item in order:
        found += [*filling[at : slots[item]], items[item]]
        at = slots[item]
    return [*found, *filling[at:]]
