# SPDX-License-Identifier: Apache-2.0
"""Updates <-> tokens on a schedule, through changes of the batch. Exact: integers and fractions.

knees (0, 0, 1000), (50, 50000, 2000):     update 50 is the first one of 2,000 tokens
tokens(60) = 50000 + 10 * 2000             tokens before update 60
"""

import dataclasses
import fractions
import itertools
import math
from collections.abc import Sequence

Number = int | fractions.Fraction


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clock:
    """Tokens as a function of updates: linear between the changes of the batch.

    Attributes:
      knees: (updates before, tokens before, tokens of a batch from here on), the first at 0, 0.
    """

    knees: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        joined = all(
            b[0] > a[0] and b[1] == a[1] + (b[0] - a[0]) * a[2]
            for a, b in itertools.pairwise(self.knees)
        )
        if not self.knees or self.knees[0][:2] != (0, 0) or not joined:
            raise ValueError(f"A clock's knees must start at 0, 0 and join: {self.knees}.")
        if any(batch < 1 for _, _, batch in self.knees):
            raise ValueError(f"A clock's batches must have 1 token or more: {self.knees}.")

    def tokens(self, count: Number) -> fractions.Fraction:
        """Tokens before update `count`; between two updates, in proportion."""
        first, before, batch = [knee for knee in self.knees if knee[0] <= max(count, 0)][-1]
        return fractions.Fraction(before + (count - first) * batch)

    def count(self, tokens: Number) -> fractions.Fraction:
        """Updates that consume `tokens`, with the fraction of the last one."""
        first, before, batch = [knee for knee in self.knees if knee[1] <= max(tokens, 0)][-1]
        return first + fractions.Fraction(tokens - before) / batch

    def updates(self, tokens: Number) -> int:
        """Whole updates that consume at least `tokens`."""
        return math.ceil(self.count(tokens))

    def batch_tokens(self, count: Number) -> int:
        """Tokens of the batch of update `count`."""
        return [knee for knee in self.knees if knee[0] <= max(count, 0)][-1][2]

    def changed(self, count: int, batch_tokens: int) -> "Clock":
        """The same up to update `count`, and batches of `batch_tokens` from there on."""
        kept = [knee for knee in self.knees if knee[0] < count]
        if kept and kept[-1][2] == batch_tokens:
            return Clock(knees=tuple(kept))
        knee = (count, int(self.tokens(count)), batch_tokens)
        return Clock(knees=(*kept, knee))

    def to_json(self) -> list[list[int]]:
        """For a checkpoint's manifest."""
        return [list(knee) for knee in self.knees]


def constant(batch_tokens: int) -> Clock:
    """Batches of one size from the start."""
    return Clock(knees=((0, 0, batch_tokens),))


def from_json(knees: Sequence[Sequence[int]]) -> Clock:
    """What `to_json` gave."""
    return Clock(knees=tuple((first, before, batch) for first, before, batch in knees))
