# SPDX-License-Identifier: Apache-2.0
"""What a task asks of a model, and what the model answers. Texts only: ids are the engine's matter.

task + documents --render--> requests --engine--> answers --metrics--> numbers
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loglikelihood:
    """How likely is `continuation` after `context`, which may be empty (BOS alone)?"""

    context: str
    continuation: str

    def __post_init__(self) -> None:
        if not self.continuation:
            raise ValueError(
                f"No continuation is asked for after {self.context[-40:]!r}: give one."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rolling:
    """How likely is a whole text, in windows of the model's context if it is longer?"""

    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Likelihood:
    """The answer to both.

    Attributes:
      nats: sum of the natural logarithms of the tokens' probabilities, 0 or less.
      greedy: every token was the likeliest in its place.
      tokens: how many were scored.
    """

    nats: float
    greedy: bool
    tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate:
    """What does the model write after `context`?

    Attributes:
      stop: texts that end a continuation, and are not part of it.
      max_new_tokens: where a continuation ends at the latest.
      temperature: 0 takes the likeliest token; otherwise logits are divided by it and sampled.
      top_p: the likeliest tokens whose probabilities sum to it are sampled from; 1 is all.
      samples: continuations asked for.
      seed: of the sampling; token j of sample k depends on (seed, request, k, j) only.
    """

    context: str
    stop: tuple[str, ...]
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if "" in self.stop:
            raise ValueError(
                f"stop={self.stop} holds an empty text, which ends every continuation."
            )
        for name in ("max_new_tokens", "samples"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}.")
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be 0 or more, got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}.")
        if self.samples > 1 and not self.temperature:
            raise ValueError(
                f"samples={self.samples} at temperature 0 are all the same. Ask for one, or give a "
                "temperature."
            )


class Engine(Protocol):
    """A model that answers. Answers come in the order of the requests."""

    def loglikelihoods(self, requests: Sequence[Loglikelihood]) -> list[Likelihood]: ...

    def rolling(self, requests: Sequence[Rolling]) -> list[Likelihood]: ...

    def generate(self, requests: Sequence[Generate]) -> list[tuple[str, ...]]:
        """For each request its `samples` continuations, without what stopped them."""
        ...
