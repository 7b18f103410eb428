# SPDX-License-Identifier: Apache-2.0
"""An agent and its environment in turns: messages -> action -> observation -> ... -> outcome."""

import collections
import contextlib
import dataclasses
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence

Role = typing.Literal["system", "user", "assistant"]
How = typing.Literal[
    "solved", "not solved", "out of rounds", "out of tokens", "beyond the context", "broken"
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Message:
    """One turn. Observations are the user's."""

    role: Role
    content: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class End:
    """How and why an episode is over; what an agent says that can't go on."""

    how: How
    reason: str


# Conversations -> what is said next in each. In batches, so that a model can answer all at once.
Agent = Callable[[Sequence[Sequence[Message]]], Sequence[str | End]]
# [function(item) for item in items]: what environments do may run beside each other.
Each = Callable[[Callable, Sequence], typing.Any]


class Environment(typing.Protocol):
    """One task in progress."""

    def begin(self) -> list[Message]:
        """Sets up the task; the conversation before the agent's first turn."""
        ...

    def step(self, text: str) -> str | None:
        """Acts as the agent says; the observation, or None when the agent is done."""
        ...

    def verdict(self) -> str:
        """Why the task is not solved, empty if it is. Asked once, when the agent is done."""
        ...

    def counts(self) -> Mapping[str, int]:
        """What was cut or missing in the observations, by reason. Asked last."""
        ...

    def close(self) -> None:
        """Frees what `begin` took; called once, even if `begin` failed, before `counts`."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an episode ended.

    Attributes:
      how: in one of a few words, for counts.
      reason: why it is no success; empty if it is.
      rounds: turns of the agent.
      messages: the whole conversation.
      counts: of the environment.
    """

    how: How
    reason: str
    rounds: int
    messages: tuple[Message, ...]
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def solved(self) -> bool:
        return self.how == "solved"


def _in_turn(function: Callable, items: Sequence) -> None:
    for item in items:
        function(item)


def play(
    environments: Sequence[Environment],
    agent: Agent,
    *,
    rounds: int = 8,
    at_once: int | None = None,
    each: Each = _in_turn,
) -> list[Outcome]:
    """Plays episodes side by side; outcomes in their order.

    All that are open answer together, round by round; where one ends, the next one begins.

    Args:
      rounds: turns that an agent has. AgentBench gives 8 for the operating system.
      at_once: how many are open at a time; None is all.
      each: runs what environments do, such as `Sandbox.map`, which runs several at a time. They
        begin in this thread: a sandboxed world ends with the thread that began it.

    Raises:
      ValueError: rounds or at_once below 1, or an agent that answers another number of
        conversations.
    """
    for name, value in (("rounds", rounds), ("at_once", at_once)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}.")
    every = [_Episode(environment, rounds) for environment in environments]
    waiting, live = collections.deque(every), list[_Episode]()
    try:
        while waiting or live:
            room = len(waiting) if at_once is None else at_once - len(live)
            fresh = [waiting.popleft() for _ in range(min(room, len(waiting)))]
            for one in fresh:
                one.begin()
            live = [one for one in [*live, *fresh] if one.end is None]
            if not live:
                continue
            said = agent([tuple(one.talk) for one in live])
            if len(said) != len(live):
                raise ValueError(f"The agent answered {len(said)} of {len(live)} conversations.")
            each(_Episode.answer, list(zip(live, said, strict=True)))
            live = [one for one in live if one.end is None]
    finally:
        for one in every:
            one.close()
    return [one.outcome() for one in every]


class _Episode:
    """One of those that are played."""

    def __init__(self, environment: Environment, rounds: int) -> None:
        self.environment, self.most, self.rounds = environment, rounds, 0
        self.talk: list[Message] = []
        self.end: End | None = None
        self._is_closed = False

    def begin(self) -> None:
        with self._ending():
            self.talk += self.environment.begin()
        self._close_if_over()

    @staticmethod
    def answer(pair: tuple["_Episode", str | End]) -> None:
        one, said = pair
        if isinstance(said, End):
            one.end = said
        else:
            with one._ending():
                one._step(said)
        one._close_if_over()

    def _step(self, text: str) -> None:
        self.talk.append(Message(role="assistant", content=text))
        self.rounds += 1
        observation = self.environment.step(text)
        if observation is None:
            reason = self.environment.verdict()
            self.end = End(how="not solved" if reason else "solved", reason=reason)
            return
        self.talk.append(Message(role="user", content=observation))
        if self.rounds == self.most:
            self.end = End(how="out of rounds", reason=f"not done after {self.most} rounds")

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        """An environment that breaks ends its own episode, with the reason, and no other."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            self.end = End(how="broken", reason=f"the environment broke: {error}")

    def _close_if_over(self) -> None:
        if self.end is not None:
            self.close()

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self.environment.close()

    def outcome(self) -> Outcome:
        assert self.end is not None  # `play` goes on until there is one
        return Outcome(
            how=self.end.how,
            reason=self.end.reason,
            rounds=self.rounds,
            messages=tuple(self.talk),
            counts=self.environment.counts(),
        )
