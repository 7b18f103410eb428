# SPDX-License-Identifier: Apache-2.0
"""Long tasks of `midjax eval`: checks, prompts, answers, numbers.

{"source", "seed", "per_cell", "forms", "threshold",
 "cells": [{"task", "row_tokens", "samples", "inexact", "short_tokens", "redrawn",
            "score", "score_error", "chance",                             of "generate"
            "first", "first_error", "first_chance", "rank", "bits_per_byte"}],  of "rank"
 "means": [{"row_tokens", "score", "chance", "first", "first_chance"}],
 "effective_tokens": the longest row whose mean score is above the threshold, or null}
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import tokenizers

from midjax import log
from midjax.batches import shards
from midjax.evals import likelihood_tokens, requests
from midjax.evals.long import haystack, prompts, questions, scores, tasks, tracking

Advance = Callable[[int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongTasks:
    """What to ask at which lengths.

    Attributes:
      source: name of the token folder whose documents give running text and words.
      row_tokens: lengths, of the prompt with room for the answer; may exceed the model's context.
      per_cell: samples of each task at each length. RULER asks 500.
      tasks: names, or of groups: "niah", "ruler_synthetic", "ruler"; see `tasks.py`.
      forms: "generate", the model writes and the answers are looked for; "rank", the gold answer is
        set against decoys by its likelihood, which tells more of a model below 7B.
      decoys: wrong answers beside the gold one.
      answer_tokens: room for the answer; None is RULER's for each task.
      chains, hops: of variable tracking.
      squad, hotpot: files of the tasks qa_squad and qa_hotpot.
      threshold: that the mean score must exceed for a length to be effective.
      batch_rows: continuations that are written at once.
      seed: of all that is drawn.
    """

    source: str
    row_tokens: tuple[int, ...]
    per_cell: int
    tasks: tuple[str, ...] = ("ruler_synthetic",)
    forms: tuple[Literal["generate", "rank"], ...] = ("generate", "rank")
    decoys: int = 9
    answer_tokens: int | None = None
    chains: int = 1
    hops: int = 4
    squad: str | None = None
    hotpot: str | None = None
    threshold: float = scores.LLAMA2_7B_AT_4K
    batch_rows: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("per_cell", "decoys", "chains", "hops", "batch_rows"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"LongTasks.{name} must be 1 or more, got {value}.")
        if self.answer_tokens is not None and self.answer_tokens < 1:
            raise ValueError(
                f"LongTasks.answer_tokens must be 1 or more, or None, got {self.answer_tokens}."
            )
        allowed = {"row_tokens": "1 or more", "forms": "'generate' or 'rank'", "tasks": "a task"}
        for name, words in allowed.items():
            values = getattr(self, name)
            wrong = name == "row_tokens" and any(value < 1 for value in values)
            wrong |= name == "forms" and not {"generate", "rank"} >= set(values)
            if not values or wrong or len(set(values)) < len(values):
                raise ValueError(
                    f"LongTasks.{name} must name at least one value, none twice, each {words}; got "
                    f"{values}."
                )
        tasks.named(self.tasks)
        if not 0 <= self.threshold < 1:
            raise ValueError(f"LongTasks.threshold must lie in [0, 1), got {self.threshold}.")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tasks, groups resolved."""
        return tasks.named(self.tasks)

    @property
    def context_tokens(self) -> int:
        """Of an engine that reads prompts whole, whatever the model's context is."""
        return 2 * max(self.row_tokens)  # rows are of their length; none is cut

    def room(self, task: str) -> int:
        """Tokens for an answer."""
        return self.answer_tokens or tasks.TASKS[task].answer_tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """What `run` asks, checked. `prompts` are those of (task, row_tokens); all of them are held,
    about 4 bytes for each token."""

    tokenizer: likelihood_tokens.Tokenizer
    prompts: dict[tuple[str, int], tuple[prompts.Prompt, ...]]


def check(config: LongTasks, source: shards.TokenSource, tokenizer: tokenizers.Tokenizer) -> Inputs:
    """Makes the prompts, and refuses what can't be made.

    Args:
      source: the token folder of `config.source`; has BOS, with which a prompt begins.
      tokenizer: the one it was made with.

    Raises:
      task_data.MissingDataError: no data set for a task's questions.
      ValueError: too little text, rows too short for a task or too long for its data, answers that
        don't fit the room for them, a tokenizer that loses them.
    """
    text = haystack.Haystack(source, tokenizer, config.seed)
    if text.tokens < max(config.row_tokens):
        raise ValueError(
            f"LongTasks.source={config.source!r} has {text.tokens} tokens of text, and the longest "
            f"row {max(config.row_tokens)}. Name a source with more text, or shorter rows."
        )
    paths = {"qa_squad": config.squad, "qa_hotpot": config.hotpot}
    data = {name: questions.read(name, paths[name]) for name in config.names if name in paths}
    for name, found in data.items():
        if len(found.questions) < config.per_cell:
            raise ValueError(
                f"LongTasks.per_cell={config.per_cell}, and {name} has {len(found.questions)} "
                "questions. Ask for fewer."
            )
    begun = likelihood_tokens.Tokenizer(
        tokenizer=tokenizer, prefix_id=source.manifest["bos_id"], begins="bos"
    )
    maker = prompts.Maker(
        text=text,
        count=lambda one: len(begun.encode([one])[0]),
        seed=config.seed,
        decoys=config.decoys,
        chains=tracking.Chains(count=config.chains, hops=config.hops),
        questions=data,
    )
    made = {}
    for row_tokens in config.row_tokens:
        for task in config.names:
            room = config.room(task)
            made[task, row_tokens] = tuple(
                maker.make(task, row_tokens, room, sample) for sample in range(config.per_cell)
            )
            _check_answers(task, made[task, row_tokens], begun)
    return Inputs(tokenizer=begun, prompts=made)


def _check_answers(
    task: str, made: Sequence[prompts.Prompt], tokenizer: likelihood_tokens.Tokenizer
) -> None:
    """That answers fit, and come back from the tokenizer as they were."""
    how = tasks.TASKS[task].match
    for prompt in made:
        said = prompt.references[:1] if how == "part" else prompt.references
        (ids,) = tokenizer.bare([" ".join(("", *said))])
        if len(ids) > prompt.answer_tokens:
            raise ValueError(
                f"An answer of {task} has {len(ids)} tokens with this tokenizer, and the room for "
                f"it {prompt.answer_tokens}. Set LongTasks.answer_tokens to {len(ids)} or more."
            )
        if scores.match(tokenizer.tokenizer.decode(ids), said, how) < 1:
            raise ValueError(
                f"The tokenizer loses letters or digits of {' '.join(said)!r}, the answer to a "
                f"sample of {task}. Give the tokenizer that the model was trained with."
            )


def total_tokens(config: LongTasks) -> int:
    """Tokens of all prompts, with room for the answers, as often as they are asked."""
    cells = len(config.names) * len(config.forms)
    return cells * config.per_cell * sum(config.row_tokens)


def run(
    config: LongTasks,
    inputs: Inputs,
    model: requests.Engine,
    advance: Advance = lambda tokens: None,
) -> dict[str, Any]:
    """Asks everything; the module's docstring shows the result.

    Args:
      inputs: from `check`.
      model: must read contexts of the longest row without cutting them, see `context_tokens`.
      advance: told the tokens of what was asked.
    """
    cells: list[dict[str, Any]] = []
    for row_tokens in config.row_tokens:
        made = {task: inputs.prompts[task, row_tokens] for task in config.names}
        found = {task: _facts(task, row_tokens, some) for task, some in made.items()}
        for form in config.forms:
            ask = _written if form == "generate" else _ranked
            for task, numbers in ask(model, made).items():
                found[task] |= numbers
            advance(len(made) * config.per_cell * row_tokens)
        cells += found.values()
    if inexact := sum(cell["inexact"] for cell in cells):
        log.say(
            f"long tasks: {inexact} prompts are shorter than asked for, by "
            f"{sum(cell['short_tokens'] for cell in cells)} tokens together: no text has just "
            "their number of tokens."
        )
    means = [_mean(row_tokens, cells) for row_tokens in config.row_tokens]
    for mean in means:
        _say(mean)
    known = [(one["row_tokens"], one["score"]) for one in means if "score" in one]
    kept = ("source", "seed", "per_cell", "forms", "threshold")
    return {name: getattr(config, name) for name in kept} | {
        "cells": cells,
        "means": means,
        "effective_tokens": scores.effective(known, config.threshold),
    }


def _facts(task: str, row_tokens: int, made: Sequence[prompts.Prompt]) -> dict[str, Any]:
    return {
        "task": task,
        "row_tokens": row_tokens,
        "samples": len(made),
        "inexact": sum(not one.is_exact for one in made),
        "short_tokens": sum(row_tokens - one.tokens - one.answer_tokens for one in made),
        "redrawn": sum(one.redrawn for one in made),
    }


_Made = dict[str, tuple[prompts.Prompt, ...]]


def _written(model: requests.Engine, made: _Made) -> dict[str, dict[str, Any]]:
    asked = [
        requests.Generate(context=one.text, stop=(), max_new_tokens=one.answer_tokens)
        for some in made.values()
        for one in some
    ]
    answers = iter(model.generate(asked))
    return {
        task: scores.written(task, some, [next(answers)[0] for _ in some])
        for task, some in made.items()
    }


def _ranked(model: requests.Engine, made: _Made) -> dict[str, dict[str, Any]]:
    asked = {task: [scores.candidates(task, one) for one in some] for task, some in made.items()}
    flat = [request for some in asked.values() for one in some for request in one]
    told = iter(model.loglikelihoods(flat))
    return {
        task: scores.ranked(some, [[next(told) for _ in one] for one in some])
        for task, some in asked.items()
    }


def _say(mean: dict[str, Any]) -> None:
    words = [
        f"{words} {'–' if mean[name] is None else f'{mean[name]:.1%}'} (chance {mean[odds]:.1%})"
        for name, odds, words in (("score", "chance", "found"), ("first", "first_chance", "first"))
        if name in mean
    ]
    log.say(f"long tasks, {mean['row_tokens']} tokens: {', '.join(words)}")


def _mean(row_tokens: int, cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Over the tasks of one length."""
    here = [cell for cell in cells if cell["row_tokens"] == row_tokens]
    names = [name for name in ("score", "chance", "first", "first_chance") if name in here[0]]
    found: dict[str, Any] = {"row_tokens": row_tokens}
    for name in names:
        values = [math.nan if cell[name] is None else cell[name] for cell in here]
        mean = float(np.mean(values))
        found[name] = mean if math.isfinite(mean) else None
    return found
