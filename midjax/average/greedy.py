# SPDX-License-Identifier: Apache-2.0
"""The greedy soup: an ingredient stays in if the average does not get worse by it.

Wortsman et al. 2022, 2203.05482, recipe 1: sort the ingredients by their score alone; from the best
one on, add each in turn to the uniform average if that average scores no worse than without it.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from midjax import log
from midjax.average import ingredients as ingredients_lib

# Parameters -> bits per byte of each domain, None where that is not finite. Lower is better.
Score = Callable[[Any], Mapping[str, float | None]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One average that was scored.

    Attributes:
      members: numbers of its ingredients.
      domains: bits per byte of each.
      mean: over the domains; None if one of them is not finite.
      kept: whether it was the best so far.
    """

    members: tuple[int, ...]
    domains: dict[str, float | None]
    mean: float | None
    kept: bool


def choose(
    places: Sequence[str], mixed: Callable[[Sequence[int]], Any], score: Score
) -> tuple[list[int], list[Trial]]:
    """(numbers of the ingredients that stay, all that was scored).

    The result never scores worse than the best ingredient.

    Args:
      places: names of the ingredients, for what is said.
      mixed: numbers of ingredients -> parameters of their uniform average.
      score: of parameters.

    Raises:
      AverageError: no ingredient has a finite score.
    """
    trials: list[Trial] = []

    def tried(members: Sequence[int], best: float) -> float:
        domains = dict(score(mixed(members)))
        mean = _mean(domains)
        kept = mean is not None and mean <= best
        trials.append(Trial(members=tuple(members), domains=domains, mean=mean, kept=kept))
        return math.inf if mean is None else mean

    alone = []
    for number, place in enumerate(places):
        alone.append(tried([number], -math.inf))
        log.say(f"  {alone[-1]:.5f} bits per byte: {place}")
    order = sorted(range(len(places)), key=alone.__getitem__)  # the first of equal ones first
    chosen, best = order[:1], alone[order[0]]
    if best == math.inf:
        raise ingredients_lib.AverageError(
            f"None of the {len(places)} ingredients has a finite loss: {', '.join(places)}."
        )
    trials[chosen[0]] = dataclasses.replace(trials[chosen[0]], kept=True)
    for number in order[1:]:
        found = tried([*chosen, number], best)
        verdict = "left out"
        if trials[-1].kept:
            chosen, best, verdict = [*chosen, number], found, "added"
        log.say(f"  {found:.5f} bits per byte with {places[number]}: {verdict}")
    return chosen, trials


def _mean(domains: Mapping[str, float | None]) -> float | None:
    """Every domain counts the same, whatever its size."""
    found = [value for value in domains.values() if value is not None]
    return math.fsum(found) / len(found) if found and len(found) == len(domains) else None
