# SPDX-License-Identifier: Apache-2.0
"""Units and characters that give a text an exact number of tokens.

    units       as many as fit                  interpolated, then one after the other
    characters  of the filling that goes on     interpolated, then those around
    tail        a mark after them

A character more is mostly a token more, or none; but it may also join two, or be two itself: where
a sentence has ended, its stop and the line's end are often one token. So where the search ends
between two texts, one of them with a token too few and one with a token too many, others around are
tried.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

from midjax.evals.long import draft as drafts

# So many characters more, or fewer, are tried, and then these marks behind some of them.
_AROUND = 12
_TAILS = (" .", "..", " ..", " -", " *", ",", ")", " . .", "\n", " \n")


class TooShortError(ValueError):
    """A draft's least text is longer than what was asked for."""

    def __init__(self, tokens: int) -> None:
        super().__init__(f"the least text has {tokens} tokens")
        self.tokens = tokens


class RanOutError(ValueError):
    """A draft's longest text is shorter than what was asked for."""

    def __init__(self, tokens: int) -> None:
        super().__init__(f"the longest text has {tokens} tokens")
        self.tokens = tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitted:
    """A draft cut to size. `tokens` are those asked for, or fewer if no text has just so many."""

    text: str
    tokens: int
    units: int
    characters: int


def fit(draft: drafts.Draft, count: Callable[[str], int], tokens: int) -> Fitted:
    """The draft's text with so many tokens.

    Args:
      count: tokens of a text, with all that is put before it.

    Raises:
      TooShortError, RanOutError: there is no text of that length.
    """

    def made(units: int, characters: int, tail: str = "") -> Fitted:
        text = draft.render(units, characters, tail)
        return Fitted(text=text, tokens=count(text), units=units, characters=characters)

    best = most(lambda units: made(units, 0), draft.least_units, draft.most_units, tokens)
    if best.tokens == tokens:
        return best
    most_units = best.units
    for units in range(most_units, max(most_units - 2, draft.least_units - 1), -1):
        here = most(functools.partial(made, units), 0, draft.characters, tokens)
        if here.tokens < tokens and here.characters == draft.characters:
            if units == draft.most_units:
                raise RanOutError(here.tokens)
            return max(best, here, key=lambda one: one.tokens)
        sizes = [here.characters + n for n in sorted(range(-_AROUND, _AROUND + 1), key=abs)]
        sizes = [size for size in sizes if 0 <= size <= draft.characters]
        others = (made(units, size, tail) for tail in ("", *_TAILS) for size in sizes)
        for one in itertools.chain([here], others):
            best = one if best.tokens < one.tokens <= tokens else best
            if best.tokens == tokens:
                return best
    return best


def most(made: Callable[[int], Fitted], least: int, greatest: int | None, tokens: int) -> Fitted:
    """The text of the most units, or characters, that has at most so many tokens.

    Numbers of tokens need only grow on the whole: what is found is below the limit, and with one
    more of them it is not.

    Raises:
      TooShortError: not even the least has.
    """
    low, low_at = made(least), least
    if low.tokens > tokens:
        raise TooShortError(low.tokens)
    step, high, high_at = 16, low, least
    while high.tokens <= tokens:
        low, low_at = high, high_at
        if low.tokens == tokens or low_at == greatest:
            return low
        high_at = low_at + step if greatest is None else min(low_at + step, greatest)
        high = made(high_at)
        # A little beyond where the limit should be, as the last step was.
        rate = max(high.tokens - low.tokens, 1) / (high_at - low_at)
        step = max(int((tokens - high.tokens) / rate * 1.02) + 1, 4)
    turn = 0
    while high_at - low_at > 1:
        turn += 1
        at = low_at + (tokens - low.tokens) * (high_at - low_at) // (high.tokens - low.tokens)
        if turn % 4 == 0:  # for numbers that don't grow evenly
            at = (low_at + high_at) // 2
        at = min(max(at, low_at + 1), high_at - 1)
        found = made(at)
        if found.tokens == tokens:
            return found
        if found.tokens < tokens:
            low, low_at = found, at
        else:
            high, high_at = found, at
    return low
