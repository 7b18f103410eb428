# SPDX-License-Identifier: Apache-2.0
"""Weights that follow from how much there is of each source.

Counts are tokens of one epoch as rows hold them, padding included, since rows are what is drawn.
"""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, kw_only=True)
class Temperature:
    """p_i ~ n_i^exponent: mT5's sampling (2010.11934, section 3.2), with 1 / T as `exponent`.

    Attributes:
      sources: names.
      exponent: from 0 (uniform) to 1 (in proportion to the counts); mT5 has 0.3.
    """

    sources: tuple[str, ...]
    exponent: float

    def __post_init__(self) -> None:
        _check_sources("Temperature", self.sources)
        if not 0 <= self.exponent <= 1:
            raise ValueError(
                f"Temperature.exponent must lie in [0, 1], got {self.exponent}. It is 1 / T: 0.2 "
                "for a temperature of 5."
            )

    def weights(self, tokens: Mapping[str, int], stage_tokens: int) -> dict[str, float]:
        """Source -> weight, not normalised."""
        del stage_tokens
        # Divided first: a power of a token count can be any size.
        most = max(max(tokens[name] for name in self.sources), 1)
        return {name: (tokens[name] / most) ** self.exponent for name in self.sources}


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniMax:
    """As uniform as a cap on epochs allows: Algorithm 1 of UniMax (2304.09151).

    From the smallest source on, each gets an equal part of what is left of the budget, or, if that
    is less, `max_epochs` of itself. Where the budget is more than all caps together, weights are in
    proportion to the counts.

    Attributes:
      sources: names.
      max_epochs: N of the paper, in this stage alone. `Mixture.max_epochs` holds for the run.
    """

    sources: tuple[str, ...]
    max_epochs: float

    def __post_init__(self) -> None:
        _check_sources("UniMax", self.sources)
        if not self.max_epochs > 0:
            raise ValueError(f"UniMax.max_epochs must be above 0, got {self.max_epochs}.")

    def weights(self, tokens: Mapping[str, int], stage_tokens: int) -> dict[str, float]:
        """Source -> tokens of the stage, not normalised. The stage's tokens are the budget."""
        found = {}
        left = float(stage_tokens)
        ascending = sorted(self.sources, key=lambda name: (tokens[name], name))
        for i, name in enumerate(ascending):
            found[name] = min(left / (len(ascending) - i), tokens[name] * self.max_epochs)
            left -= found[name]
        return found


def _check_sources(kind: str, sources: tuple[str, ...]) -> None:
    if not sources or len(set(sources)) < len(sources):
        raise ValueError(
            f"{kind}.sources must name one source or more, each once, got {list(sources)}."
        )
