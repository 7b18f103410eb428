# SPDX-License-Identifier: Apache-2.0
"""Pass keys hidden in long text: can a model find one line far back, and does it use it at all?

    haystack [.........................................]  text of documents, laid end to end
    row      [bos][......][statement][......][question][key]     T tokens
                           with the key                          scored

The needle test of "passkey retrieval" (2305.16300) with teacher forcing: one forward pass gives the
likelihood of the key after the question. The same rows without the statement (the haystack's own
text stands there) tell what the statement is worth, which shows in a model far too small to
answer. Haystack i and key i are the same at every length and depth, so that cells compare.

Shape suffixes: B rows of a batch, T tokens of a row, A places of an answer, D model width,
V vocabulary.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jaxtyping import Array, Float, Int

from midjax.batches import shards
from midjax.evals import loss
from midjax.model import architecture, context, sharding, transformer
from midjax.units import ceil_div

KEY = "{key}"
# (tokens [B, T], places [B, A], answers [B, A]) -> the likeliest token after each place, and the
# nats of the answer there.
Score = Callable[
    [Int[np.ndarray, "B T"], Int[np.ndarray, "B A"], Int[np.ndarray, "B A"]],
    tuple[Int[np.ndarray, "B A"], Float[np.ndarray, "B A"]],
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needles:
    """Which keys to hide where.

    Attributes:
      source: name of the token folder whose documents give the haystack.
      row_tokens: lengths of rows, which may exceed the model's context.
      depths: where the statement stands, as shares of the text before the question: 0 is at the
        start of the row, 1 is right before the question.
      per_cell: keys for each length and depth.
      digits: of a key.
      statement: text that tells the key; holds {key}.
      question: text that the key is the answer to.
      batch_rows: rows per batch; divides over the mesh's data axes.
      seed: of keys and of the order of haystacks.
    """

    source: str
    row_tokens: tuple[int, ...]
    depths: tuple[float, ...]
    per_cell: int
    digits: int
    statement: str
    question: str
    batch_rows: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("per_cell", "digits", "batch_rows"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"Needles.{name} must be 1 or more, got {value}.")
        for name, low, high in (("row_tokens", 1, math.inf), ("depths", 0, 1)):
            values = getattr(self, name)
            wrong = [value for value in values if not low <= value <= high]
            if not values or wrong or len(set(values)) < len(values):
                allowed = "1 or more" if high == math.inf else "shares from 0 to 1"
                raise ValueError(
                    f"Needles.{name} must name at least one value, none twice, each {allowed}; "
                    f"got {values}."
                )
        if KEY not in self.statement:
            raise ValueError(
                f"Needles.statement must hold {KEY}, the place of the pass key; got "
                f"{self.statement!r}."
            )
        if KEY in self.question or not self.question:
            raise ValueError(
                "Needles.question must be a text without the key, which comes after it; got "
                f"{self.question!r}."
            )
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"Needles.seed must lie in [0, 2^32), got {self.seed}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hidden:
    """One key in tokens. The ids of the key are the same in the statement and in the answer."""

    statement: tuple[int, ...]
    question: tuple[int, ...]
    key: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Of statement, question and key."""
        return len(self.statement) + len(self.question) + len(self.key)


class Haystacks:
    """The texts of a source without BOS and EOS, laid end to end, again and again.

    Args:
      source: an opened token folder that has BOS.
    """

    def __init__(self, source: shards.TokenSource) -> None:
        self._source = source
        self._ends = 0 if source.manifest["eos_id"] is None else 1
        self.lengths = np.maximum(source.lengths - 1 - self._ends, 0)

    def text(self, document: int, tokens: int) -> Int[np.ndarray, " tokens"]:
        """So many tokens from the start of a document on, through the documents after it."""
        found: list[np.ndarray] = []
        held = 0
        while held < tokens:
            at = document % len(self.lengths)
            found.append(self._source[at][1 : 1 + self.lengths[at]])
            held += int(self.lengths[at])
            document += 1
        return np.concatenate([*found, np.zeros(0, np.int32)])[:tokens]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """What `run` reads, checked: see `check`.

    Attributes:
      hidden: the keys, [per_cell].
      starts: document at which each key's haystack begins, [per_cell].
    """

    bos_id: int
    haystacks: Haystacks
    hidden: tuple[Hidden, ...]
    starts: tuple[int, ...]


def check(
    config: Needles,
    source: shards.TokenSource,
    tokenizer: tokenizers.Tokenizer,
    jax_mesh: jax.sharding.Mesh | None = None,
) -> Inputs:
    """Encodes the keys and refuses what can't be built or placed.

    Args:
      source: the token folder of `config.source`, made with `tokenizer`.

    Raises:
      ValueError: no BOS; a row that holds statement, question and key but no haystack; a haystack
        shorter than the longest row; a batch or a row that doesn't divide over the mesh.
    """
    if source.manifest["bos_id"] is None:
        raise ValueError(
            f"Needles.source={config.source!r} was tokenized without BOS, with which a row begins. "
            "Tokenize held-out text with bos_token set."
        )
    divisor = loss.row_divisor(jax_mesh)
    if config.batch_rows % divisor:
        raise ValueError(
            f"Needles.batch_rows={config.batch_rows} does not divide over the mesh's {divisor} "
            f"data shards. Choose a multiple of {divisor}."
        )
    hidden = tuple(_hide(config, tokenizer, i) for i in range(config.per_cell))
    least = max(one.tokens for one in hidden) + 2  # BOS, and one token of haystack
    shortest, longest = min(config.row_tokens), max(config.row_tokens)
    if shortest < least:
        raise ValueError(
            f"Needles.row_tokens={shortest} is too short: BOS, statement, question and key with "
            f"one token of haystack are {least} tokens. Choose longer rows or a shorter statement."
        )
    haystacks = Haystacks(source)
    available = int(haystacks.lengths.sum())
    needed = longest - 1 - min(len(one.question) + len(one.key) for one in hidden)
    if available < needed:
        raise ValueError(
            f"Needles.source={config.source!r} has {available} tokens of text, and a row of "
            f"{longest} tokens needs {needed}. Name a source with more text, or shorter rows."
        )
    for tokens in config.row_tokens if jax_mesh is not None else ():
        context.order(tokens, context.shards(jax_mesh.shape))  # type: ignore[union-attr]
    usable = np.flatnonzero(haystacks.lengths > 0)
    order = usable[np.argsort(_random(config.seed, 0, len(usable)), kind="stable")]
    return Inputs(
        bos_id=source.manifest["bos_id"],
        haystacks=haystacks,
        hidden=hidden,
        starts=tuple(int(order[i % len(order)]) for i in range(config.per_cell)),
    )


def _random(seed: int, stream: int, count: int) -> np.ndarray:
    """Raw bits, as NumPy keeps a bit generator's stream stable between versions."""
    return np.random.Philox(key=[seed, stream]).random_raw(count)


def _hide(config: Needles, tokenizer: tokenizers.Tokenizer, index: int) -> Hidden:
    digits = _random(config.seed, index + 1, config.digits) % 10

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    key = ids("".join(map(str, digits.tolist())))
    if not key:
        raise ValueError(
            f"The tokenizer gives no token for digits, and Needles of {config.source!r} hides keys "
            "of digits. Give the tokenizer that the model was trained with."
        )
    statement, *others = (ids(part) for part in config.statement.split(KEY))
    for after in others:
        statement += [*key, *after]
    return Hidden(statement=tuple(statement), question=tuple(ids(config.question)), key=tuple(key))


def row(
    inputs: Inputs, index: int, row_tokens: int, depth: float | None
) -> Int[np.ndarray, " row_tokens"]:
    """Key `index` in its haystack.

    The statement takes the place of as many tokens of the haystack, so that all else in the row
    stands where it would stand without it.

    Args:
      depth: of the statement; None leaves it out.
    """
    one = inputs.hidden[index]
    size = row_tokens - 1 - len(one.question) - len(one.key)
    text = inputs.haystacks.text(inputs.starts[index], size)
    if depth is not None:
        start = round(depth * (size - len(one.statement)))
        text[start : start + len(one.statement)] = one.statement
    return np.concatenate([[inputs.bos_id], text, one.question, one.key]).astype(np.int32)


def run(
    config: Needles,
    inputs: Inputs,
    score: Score,
    advance: Callable[[int], None] = lambda tokens: None,
) -> dict[str, Any]:
    """Scores every cell.

        accuracy        share of the rows in which each token of the key is the likeliest one
        nats_per_token  sum of the nats of the keys' tokens / number of these tokens
        nats_without    the same in the rows without the statement

    Args:
      inputs: from `check`.
      score: `from_model`, or anything of its kind.
      advance: told the tokens of each batch.

    Returns:
      source, per_cell, digits, statement, question, seed, and cells of {row_tokens, depth,
      accuracy, nats_per_token, nats_without, saved_error}: the last is one standard error, over
      the keys, of nats_without - nats_per_token (null for a single key). Nats are null when not
      finite.
    """
    places_A = np.arange(max(len(one.key) for one in inputs.hidden))
    cells = []
    for row_tokens in config.row_tokens:
        asked = list(itertools.product((None, *config.depths), range(config.per_cell)))
        right, nats = [], []
        for batch in _batches(asked, config.batch_rows):
            hidden = [inputs.hidden[index] for _, index in batch]
            sizes_B1 = np.array([[len(one.key)] for one in hidden])
            # Answers are the last tokens of a row; shorter keys are padded and cut again.
            last_BA = np.minimum(row_tokens - sizes_B1 + places_A, row_tokens - 1)
            tokens_BT = np.stack([row(inputs, index, row_tokens, depth) for depth, index in batch])
            answers_BA = np.take_along_axis(tokens_BT, last_BA, axis=1)
            likeliest_BA, nats_BA = score(tokens_BT, (last_BA - 1).astype(np.int32), answers_BA)
            of_key_BA = places_A < sizes_B1
            right += ((likeliest_BA == answers_BA) | ~of_key_BA).all(axis=1).tolist()
            nats += np.where(of_key_BA, nats_BA, 0).sum(axis=1, dtype=np.float64).tolist()
            advance(tokens_BT.size)
        shape = (-1, config.per_cell)
        right_CK = np.array(right[: len(asked)]).reshape(shape)
        nats_CK = np.array(nats[: len(asked)]).reshape(shape)
        for cell, depth in enumerate(config.depths, 1):
            numbers = _numbers(inputs, right_CK[cell], nats_CK[cell], nats_CK[0])
            cells.append({"row_tokens": row_tokens, "depth": depth, **numbers})
    kept = ("source", "per_cell", "digits", "statement", "question", "seed")
    return {name: getattr(config, name) for name in kept} | {"cells": cells}


def total_tokens(config: Needles) -> int:
    """Tokens that `run` passes through the model."""
    rows = ceil_div(config.per_cell * (1 + len(config.depths)), config.batch_rows)
    return rows * config.batch_rows * sum(config.row_tokens)


def _batches(asked: Sequence[Any], batch_rows: int) -> Iterator[list[Any]]:
    """One shape always: the last batch is filled with its first row."""
    for first in range(0, len(asked), batch_rows):
        batch = list(asked[first : first + batch_rows])
        yield batch + batch[:1] * (batch_rows - len(batch))


def _numbers(
    inputs: Inputs, right_K: np.ndarray, nats_K: np.ndarray, without_K: np.ndarray
) -> dict[str, Any]:
    sizes_K = np.array([len(one.key) for one in inputs.hidden])
    saved_K, error = (without_K - nats_K) / sizes_K, math.nan
    if len(saved_K) > 1:
        error = float(saved_K.std(ddof=1)) / math.sqrt(len(saved_K))
    return {
        "accuracy": float(right_K.mean()),
        "nats_per_token": loss.finite(float(nats_K.sum()) / int(sizes_K.sum())),
        "nats_without": loss.finite(float(without_K.sum()) / int(sizes_K.sum())),
        "saved_error": loss.finite(error),
    }


def from_model(
    config: architecture.TransformerConfig, params: Any, jax_mesh: jax.sharding.Mesh | None
) -> Score:
    """The scores of a model, jitted once per shape; logits are made at the answers' places only.

    With a mesh, params may be sharded over it, rows are split over its data axes and their length
    over `context`; every process gets all the scores back.
    """
    if jax_mesh is None:

        def on_device(tokens_BT: Any, *answer_BA: Any) -> tuple[np.ndarray, np.ndarray]:
            likeliest_BA, nats_BA = _scores(config, params, _rows(tokens_BT), *answer_BA)
            return np.asarray(likeliest_BA), np.asarray(nats_BA)

        return on_device
    parts = context.shards(jax_mesh.shape)
    split = sharding.batch(jax_mesh)
    by_row = jax.sharding.NamedSharding(jax_mesh, jax.sharding.PartitionSpec(split.spec[0]))

    def on_mesh(tokens_BT: Any, places_BA: Any, answers_BA: Any) -> tuple[np.ndarray, np.ndarray]:
        size = places_BA.shape[1]
        rows = context.arrange(_rows(tokens_BT), jax_mesh.shape)
        places_BA = context.natural(tokens_BT.shape[1], parts)[places_BA]
        # Activations of A places are split over `context` too: filled up until they divide.
        answer = [np.pad(x, ((0, 0), (0, -size % parts))) for x in (places_BA, answers_BA)]
        with jax.set_mesh(jax_mesh):
            likeliest_BA, nats_BA = _scores(
                config,
                params,
                {name: loss.place(x, split) for name, x in rows.items()},
                *(loss.place(x, by_row) for x in answer),
            )
        return np.asarray(likeliest_BA)[:, :size], np.asarray(nats_BA)[:, :size]

    return on_mesh


def _rows(tokens_BT: Int[np.ndarray, "B T"]) -> dict[str, Int[np.ndarray, "B T"]]:
    """One document per row."""
    positions = np.broadcast_to(np.arange(tokens_BT.shape[1], dtype=np.int32), tokens_BT.shape)
    return {
        "tokens_BT": tokens_BT,
        "segments_BT": np.ones_like(tokens_BT),
        "positions_BT": positions,
    }


# One for all calls, as in `loss`.
@functools.partial(jax.jit, static_argnums=0)
def _scores(
    config: architecture.TransformerConfig,
    params: Any,
    rows: dict[str, Int[Array, "B T"]],
    places_BA: Int[Array, "B A"],
    answers_BA: Int[Array, "B A"],
) -> tuple[Int[Array, "B A"], Float[Array, "B A"]]:
    """Places are those of `rows` as they are."""
    hidden_BTD = transformer.hidden(config, params, **rows)
    hidden_BAD = jnp.take_along_axis(hidden_BTD, places_BA[:, :, None], axis=1)
    logits_BAV = transformer.logits(config, params, hidden_BAD)
    found_BA = jnp.take_along_axis(logits_BAV, answers_BA[:, :, None], axis=2)[:, :, 0]
    nats_BA = jax.nn.logsumexp(logits_BAV, axis=-1) - found_BA
    return sharding.everywhere((logits_BAV.argmax(axis=-1), nats_BA))
