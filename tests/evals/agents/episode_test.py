# SPDX-License-Identifier: Apache-2.0
import pytest

from midjax.evals.agents import episode


class Countdown:
    """Wants to hear its number; told the difference until then."""

    def __init__(self, number: int, broken: bool = False) -> None:
        self.number, self.broken, self.closed, self.said = number, broken, False, 0
        self.begun = False

    def begin(self):
        if self.broken:
            raise OSError("no disk")
        self.begun = True
        return [episode.Message(role="user", content=str(self.number))]

    def step(self, text):
        self.said = int(text)
        return None if self.said >= self.number else f"{self.number - self.said} more"

    def verdict(self):
        return "" if self.said == self.number else f"{self.said} is too much"

    def counts(self):
        return {"said": self.said}

    def close(self):
        assert not self.closed
        self.closed = True


def count(talks):
    """Says 1, then 2, ...: the number of its turns."""
    return [str(1 + sum(turn.role == "assistant" for turn in talk)) for talk in talks]


def test_episodes_run_side_by_side_and_end_on_their_own():
    tasks = [Countdown(2), Countdown(1), Countdown(9), Countdown(1, broken=True), Countdown(0)]
    outcomes = episode.play(tasks, count, rounds=3)
    assert [outcome.rounds for outcome in outcomes] == [2, 1, 3, 0, 1]
    assert [outcome.solved for outcome in outcomes] == [True, True, False, False, False]
    assert outcomes[2].reason == "not done after 3 rounds"
    assert outcomes[3].reason == "the environment broke: no disk"
    assert outcomes[4].reason == "1 is too much"
    assert [turn.content for turn in outcomes[0].messages] == ["2", "1", "1 more", "2"]
    assert all(task.closed for task in tasks)


def test_few_are_open_at_once_and_an_agent_may_end_one():
    tasks, sizes = [Countdown(number) for number in (3, 1, 2, 9)], []

    def some(talks):
        assert sum(task.begun and not task.closed for task in tasks) == len(talks)
        sizes.append(len(talks))
        return [
            episode.End(how="out of tokens", reason="no more") if talk[0].content == "9" else said
            for talk, said in zip(talks, count(talks), strict=True)
        ]

    outcomes = episode.play(tasks, some, at_once=2)
    assert sizes == [2, 2, 2, 1]
    assert [one.how for one in outcomes] == ["solved", "solved", "solved", "out of tokens"]
    assert [one.rounds for one in outcomes] == [3, 1, 2, 0]
    assert outcomes[3].reason == "no more" and outcomes[0].counts == {"said": 3}
    with pytest.raises(ValueError, match="at_once must be 1 or more, got 0"):
        episode.play([], count, at_once=0)


def test_an_agent_must_answer_every_conversation():
    task = Countdown(2)
    with pytest.raises(ValueError, match="0 of 1 conversations"):
        episode.play([task], lambda talks: [])
    assert task.closed


def test_there_is_at_least_one_round():
    with pytest.raises(ValueError, match="rounds"):
        episode.play([], count, rounds=0)
