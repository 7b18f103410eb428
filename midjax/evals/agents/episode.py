# SPDX-License-Identifier: Apache-2.0
"""An agent and its environment in turns: messages -> action -> observation -> ... -> outcome."""

import contextlib
import dataclasses
import typing
from collections.abc import Callable, Iterator, Sequence

Role = typing.Literal["system", "user", "assistant"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Message:
    """One turn. Observations are the user's."""

    role: Role
    content: str


# Conversations -> what is said next in each. In batches, so that a model can answer all at once.
Agent = Callable[[Sequence[Sequence[Message]]], Sequence[str]]


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

    def close(self) -> None:
        """Frees what `begin` took; always called, even if `begin` failed."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an episode ended.

    Attributes:
      reason: why it is no success; empty if it is.
      rounds: turns of the agent.
      messages: the whole conversation.
    """

    reason: str
    rounds: int
    messages: tuple[Message, ...]

    @property
    def solved(self) -> bool:
        return not self.reason


def play(environments: Sequence[Environment], agent: Agent, *, rounds: int = 8) -> list[Outcome]:
    """Plays all episodes side by side, in lockstep; outcomes in their order.

    Args:
      rounds: turns that an agent has. AgentBench gives 8 for the operating system.

    Raises:
      ValueError: rounds below 1, or an agent that answers another number of conversations.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be 1 or more, got {rounds}.")
    talks: list[list[Message]] = [[] for _ in environments]
    taken = [0] * len(environments)
    reasons: dict[int, str] = {}
    try:
        for index, environment in enumerate(environments):
            with _ending(reasons, index):
                talks[index] += environment.begin()
        for _ in range(rounds):
            live = [index for index in range(len(talks)) if index not in reasons]
            if not live:
                break
            texts = agent([tuple(talks[index]) for index in live])
            if len(texts) != len(live):
                raise ValueError(f"The agent answered {len(texts)} of {len(live)} conversations.")
            for index, text in zip(live, texts, strict=True):
                talks[index].append(Message(role="assistant", content=text))
                taken[index] += 1
                with _ending(reasons, index):
                    observation = environments[index].step(text)
                    if observation is None:
                        reasons[index] = environments[index].verdict()
                    else:
                        talks[index].append(Message(role="user", content=observation))
    finally:
        for environment in environments:
            environment.close()
    return [
        Outcome(
            reason=reasons.get(index, f"not done after {rounds} rounds"),
            rounds=taken[index],
            messages=tuple(talk),
        )
        for index, talk in enumerate(talks)
    ]


@contextlib.contextmanager
def _ending(reasons: dict[int, str], index: int) -> Iterator[None]:
    """An environment that breaks ends its own episode, with the reason, and no other."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reasons[index] = f"the environment broke: {error}"
