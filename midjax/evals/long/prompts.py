# SPDX-License-Identifier: Apache-2.0
"""A task, a length and the number of a sample -> a prompt of just that length."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

from midjax.evals.long import (
    aggregation,
    draft,
    haystack,
    lengths,
    questions,
    retrieval,
    tasks,
    tracking,
)

# Samples drawn anew before it is said that the text holds what it should not.
_TRIES = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """One sample at one length.

    Attributes:
      text: what the model reads, up to its answer.
      tokens: of it, with BOS.
      answer_tokens: room for the answer.
      references: what the answer must hold.
      decoys: wrong answers.
      pool: among how many somebody guesses, see `draft.Draft.pool`.
      is_exact: tokens and answer_tokens are what was asked for, not fewer.
      redrawn: samples that were thrown away, as running text held one of their references.
    """

    text: str
    tokens: int
    answer_tokens: int
    references: tuple[str, ...]
    decoys: tuple[str, ...]
    pool: float
    is_exact: bool
    redrawn: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Maker:
    """What prompts are made of.

    Attributes:
      text: running text and words.
      count: tokens of a text, with BOS.
      seed: of everything that is drawn.
      decoys: wrong answers for each prompt.
      chains: of the task vt.
      questions: by task.
    """

    text: haystack.Haystack
    count: Callable[[str], int]
    seed: int
    decoys: int
    chains: tracking.Chains
    questions: Mapping[str, questions.Questions]

    def make(self, task: str, row_tokens: int, answer_tokens: int, sample: int) -> Prompt:
        """One prompt; with room for its answer it has `row_tokens` tokens.

        Raises:
          ValueError: there is none: the length is too short for the task, or there is too little
            to fill it with.
        """
        for attempt in range(_TRIES):
            drawn = self._drafts(task, row_tokens, sample, attempt)
            kept, found = self._fitted(drawn, task, row_tokens, answer_tokens)
            lower = found.text.lower()
            if kept.stands_once and any(lower.count(one) != 1 for one in kept.references):
                continue
            rng = draft.generator(self.seed, task, sample, "decoys")
            return Prompt(
                text=found.text,
                tokens=found.tokens,
                answer_tokens=answer_tokens,
                references=kept.references,
                decoys=kept.decoys(found.text, self.decoys, rng),
                pool=kept.pool(found.text),
                is_exact=found.tokens + answer_tokens == row_tokens,
                redrawn=attempt,
            )
        raise ValueError(
            f"{task}: what is hidden stands in the source's own text, {_TRIES} times over. Name "
            "another source: this one is full of numbers of 7 digits or of UUIDs."
        )

    def _fitted(
        self, drawn: Iterator[draft.Draft], task: str, row_tokens: int, answer_tokens: int
    ) -> tuple[draft.Draft, lengths.Fitted]:
        room = row_tokens - answer_tokens
        most = 0
        for one in drawn:
            try:
                return one, lengths.fit(one, self.count, room)
            except lengths.TooShortError as error:
                raise ValueError(
                    f"LongTasks.row_tokens={row_tokens} is too short for {task}: its least text "
                    f"has {error.tokens} tokens with this tokenizer, and {answer_tokens} are for "
                    "the answer. Choose longer rows, or leave the task out."
                ) from error
            except lengths.RanOutError as error:
                most = error.tokens
        raise ValueError(
            f"LongTasks.row_tokens={row_tokens} is too long for {task}: all that it has are {most} "
            "tokens. Choose shorter rows, or give it more data."
        )

    def _drafts(
        self, task: str, row_tokens: int, sample: int, attempt: int
    ) -> Iterator[draft.Draft]:
        name = f"{self.seed}/{task}/{sample}" + (f"/{attempt}" if attempt else "")
        known = tasks.TASKS[task]
        if known.family == "niah":
            assert known.needles is not None
            yield retrieval.make(known.needles, self.text, sample, name)
        elif known.family == "vt":
            yield tracking.make(self.chains, row_tokens, self.count, name)
        elif known.family == "cwe":
            yield from aggregation.common_words(self.text, row_tokens, name)
        elif known.family == "fwe":
            yield aggregation.frequent_words(row_tokens, name)
        else:
            yield questions.make(self.questions[task], sample, self.seed)
