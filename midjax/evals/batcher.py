# SPDX-License-Identifier: Apache-2.0
"""Continuations of many prompts of different lengths, in as few and as full passes as can be.

    asked, longest first --groups--> rows x slots of a cache
        free rows --pack, decode.fill--> first tokens
        all rows  --decode.step, chunk_tokens times--> tokens --host--> who has ended?
        ended rows are free: filled anew while the others go on; where nothing is left to fill
        them with, the last go on in a cache of fewer rows

Shapes are rounded up (`packing.bucket`), so that there are few to compile. The host looks at tokens
once per chunk; what a row wrote in a chunk after its end is cut off.

Shape suffixes: B rows of the cache, V vocabulary.
"""

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from midjax import log
from midjax.evals import batch_steps, loss, packing, sampling
from midjax.model import architecture, decode, sharding
from midjax.units import ceil_div, human_bytes

# Rows are filled when this part of them is free, or nothing else is to do: a prompt packed with
# others costs less than one alone, and a free row costs as much as a busy one.
_FREE_PART = 4
_LEAST_SLOTS = 64
_LEAST_ROWS = 4
# Where all that still write may write fewer tokens than this, a program for fewer rows is not
# compiled for them.
_LEAST_TOKENS_LEFT = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """What writes.

    Attributes:
      config, params: the model; params on one device or sharded over `jax_mesh`.
      vocab_size: ids from here on (rows that pad the embedding) are never chosen.
      eos_ids: any of them ends a continuation.
      jax_mesh: from `sharding.make`. Rows are split over `context` too, see
        `sharding.without_context`.
      batch_rows: continuations that are written at once, at most; rounded up to what the mesh
        divides. The cache grows with it.
      chunk_tokens: how often the host looks.
    """

    config: architecture.TransformerConfig
    params: Any
    vocab_size: int
    eos_ids: tuple[int, ...]
    jax_mesh: jax.sharding.Mesh | None = None
    batch_rows: int = 32
    chunk_tokens: int = 8

    def __post_init__(self) -> None:
        for name in ("batch_rows", "chunk_tokens"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}.")
        if not 1 <= self.vocab_size <= self.config.vocab_size:
            raise ValueError(
                f"vocab_size must be 1..{self.config.vocab_size}, which the model has, got "
                f"{self.vocab_size}."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """One continuation to write.

    Attributes:
      prompt: token ids, one at least.
      max_new_tokens: where it ends at the latest.
      temperature, top_p: see `sampling.choose`.
      key: from `sampling.key_of`.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    temperature: float
    top_p: float
    key: np.ndarray

    @property
    def tokens(self) -> int:
        """Of prompt and continuation."""
        return len(self.prompt) + self.max_new_tokens


# (number of a continuation -> its new tokens) -> the numbers of those that have ended.
Ended = Callable[[Mapping[int, Sequence[int]]], set[int]]


def continuations(
    model: Model, asked: Sequence[Asked], ended: Ended = lambda grown: set()
) -> list[list[int]]:
    """New token ids of each, without EOS.

    Args:
      model: what writes.
      asked: in any order; neither the order nor the company has a part in the result, but for
        float rounding.
      ended: asked after each chunk about the continuations that grew in it. One that it names
        stops there, with all the tokens that `ended` was shown.
    """
    found: dict[int, list[int]] = {}
    for numbers in _groups(asked, model.batch_rows):
        found |= _Group(model, {number: asked[number] for number in numbers}).run(ended)
    return [found[number] for number in range(len(asked))]


def _groups(asked: Sequence[Asked], batch_rows: int) -> Iterator[list[int]]:
    """Numbers of continuations that share a cache: of like length, longest first, and no fewer than
    fill it."""
    order = sorted(range(len(asked)), key=lambda number: -asked[number].tokens)
    while order:
        slots = packing.bucket(asked[order[0]].tokens, packing.LEAST_TOKENS)
        alike = sum(2 * asked[number].tokens > slots for number in order)
        size = ceil_div(max(alike, 1), batch_rows) * batch_rows
        yield order[:size]
        order = order[size:]


class _Group:
    """Continuations of one cache, from the first prompt to the last end."""

    def __init__(self, model: Model, asked: Mapping[int, Asked]) -> None:
        self._asked, self._params, self._mesh = asked, model.params, model.jax_mesh
        if self._mesh is not None:
            self._mesh = sharding.without_context(self._mesh)
        self._parts = loss.row_divisor(self._mesh)
        most = ceil_div(model.batch_rows, self._parts)
        self._rows_of_part = min(packing.bucket(ceil_div(len(asked), self._parts)), most)
        self._rows = self._rows_of_part * self._parts
        self._how = batch_steps.How(
            config=dataclasses.replace(model.config, remat="none", quantization=None),
            vocab_size=model.vocab_size,
            policy=sampling.policy_of(
                [one.temperature for one in asked.values()], [one.top_p for one in asked.values()]
            ),
            chunk_tokens=model.chunk_tokens,
        )
        self._eos = np.full(packing.bucket(len(model.eos_ids), 8), -1, np.int32)
        self._eos[: len(model.eos_ids)] = model.eos_ids
        self._ends = frozenset(model.eos_ids)
        self._longest_prompt = max(len(one.prompt) for one in asked.values())
        self._longest = max(one.tokens for one in asked.values())
        first = max(self._longest_prompt + model.chunk_tokens, _LEAST_SLOTS)
        self._slots = packing.bucket(min(first, self._longest), packing.LEAST_TOKENS)
        self._sizes = {self._slots}  # what the cache had already
        self._new: dict[int, list[int]] = {number: [] for number in asked}
        self._limit: dict[int, int] = {}  # as in `batch_steps.Rows`
        self._queue = collections.deque(asked)
        self._in_row: dict[int, int] = {}  # row of the cache -> number

    def run(self, ended: Ended) -> dict[int, list[int]]:
        """Number -> new tokens."""
        size = decode.cache_bytes(self._how.config, self._rows, self._longest)
        log.say(
            f"generate: {len(self._asked)} continuations, {self._rows} at once, of up to "
            f"{self._longest} tokens with their prompts: a cache of up to {human_bytes(size)}"
        )
        on_mesh = contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)
        with on_mesh:
            cache, rows = batch_steps.empty(self._how, self._rows, self._slots)
            while self._queue or self._in_row:
                if self._is_time_to_fill():
                    new = self._take()
                    cache = self._with_room(cache)
                    prompts = {row: self._tokens(self._in_row[row]) for row in new}
                    packed = packing.prompts(prompts, self._rows, self._parts, self._longest_prompt)
                    given = self._eos, packed, self._given(new)
                    cache, rows, first = batch_steps.fill(
                        self._how, self._params, cache, rows, *given
                    )
                    self._grow(new, np.asarray(first)[:, None], ended)
                if self._in_row:
                    cache, rows = self._without_idle_rows(self._with_room(cache), rows)
                    wanted = np.isin(np.arange(self._rows), list(self._in_row))
                    cache, rows, out = batch_steps.chunk(
                        self._how, self._params, cache, rows, self._eos, wanted
                    )
                    self._grow(list(self._in_row), np.asarray(out), ended)
        return self._new

    def _with_room(self, cache: decode.Cache) -> decode.Cache:
        """The cache with slots for another chunk of every row, and without many more.

        It is not made for the longest text that is allowed: most end long before, and every step
        reads all slots. For the same reason it has fewer again where those who needed them have
        ended: as few as it had before, which is compiled already.
        """
        wanted = max(
            min(self._length(number) + self._how.chunk_tokens, self._asked[number].tokens)
            for number in self._in_row.values()
        )
        if wanted > self._slots:
            most = min(max(wanted, 2 * self._slots), self._longest)
            self._slots = packing.bucket(most, packing.LEAST_TOKENS)
            self._sizes.add(self._slots)
            return batch_steps.resized(cache, self._slots)
        least = min(size for size in self._sizes if size >= wanted)
        if 2 * least > self._slots:
            return cache
        self._slots = least
        return batch_steps.resized(cache, least)

    def _without_idle_rows(
        self, cache: decode.Cache, rows: batch_steps.Rows
    ) -> tuple[decode.Cache, batch_steps.Rows]:
        """Fewer rows for the last continuations, where they may take long enough to be worth the
        compilation. Not where a mesh splits rows: then most of a step is reading parameters."""
        busy = sorted(self._in_row)
        size = self._rows
        while size >= 2 * len(busy) and size > _LEAST_ROWS:
            size //= 2
        left = max(self._asked[n].max_new_tokens - len(self._new[n]) for n in self._in_row.values())
        few = size == self._rows or left < _LEAST_TOKENS_LEFT
        if self._queue or self._mesh is not None or few:
            return cache, rows
        idle = [row for row in range(self._rows) if row not in self._in_row]
        kept = [*busy, *idle][:size]
        self._in_row = {place: self._in_row[row] for place, row in enumerate(busy)}
        self._rows = self._rows_of_part = size
        return batch_steps.some_rows(cache, rows, np.array(kept, np.int32))

    def _is_time_to_fill(self) -> bool:
        free = self._rows - len(self._in_row)
        enough = min(len(self._queue), max(self._rows // _FREE_PART, 1))
        return bool(self._queue) and (not self._in_row or free >= enough)

    def _take(self) -> list[int]:
        """Free rows, now with continuations of the queue."""
        free = [row for row in range(self._rows) if row not in self._in_row]
        # A part of the mesh packs its own prompts: neighbours go to different parts.
        free.sort(key=lambda row: (row % self._rows_of_part, row))
        new = free[: len(self._queue)]
        for row in new:
            self._in_row[row] = number = self._queue.popleft()
            asked, tokens = self._asked[number], self._tokens(number)
            longest = decode.longest_row(self._how.config, len(tokens))
            last = asked.tokens - 1
            self._limit[number] = last if longest is None else min(last, longest)
        return new

    def _length(self, number: int) -> int:
        return len(self._asked[number].prompt) + len(self._new[number])

    def _tokens(self, number: int) -> list[int]:
        return [*self._asked[number].prompt, *self._new[number]]

    def _given(self, new: Sequence[int]) -> batch_steps.Rows:
        zeros, reals = np.zeros((4, self._rows), np.int32), np.zeros((2, self._rows), np.float32)
        keys = np.zeros((self._rows, 2), np.uint32)
        token, position, limit, number = zeros
        temperature, top_p = reals
        for row in new:
            one, written = self._asked[self._in_row[row]], len(self._new[self._in_row[row]])
            position[row], number[row] = self._length(self._in_row[row]), written
            limit[row], keys[row] = self._limit[self._in_row[row]], one.key
            temperature[row], top_p[row] = one.temperature, one.top_p
        active = np.zeros(self._rows, bool)
        return batch_steps.Rows(token, position, limit, number, active, keys, temperature, top_p)

    def _grow(self, rows: Sequence[int], written: np.ndarray, ended: Ended) -> None:
        """Adds what rows wrote, [B, tokens] with -1 after their end, and frees those that ended."""
        done = set()
        for row, tokens in zip(rows, written[list(rows)].tolist(), strict=True):
            number = self._in_row[row]
            fresh = [token for token in tokens if token >= 0]
            stop = next((i for i, token in enumerate(fresh) if token in self._ends), None)
            self._new[number] += fresh[:stop]
            if stop is not None or len(self._new[number]) == self._asked[number].max_new_tokens:
                done.add(number)
        numbers = {self._in_row[row] for row in rows}
        done |= ended({number: self._new[number] for number in numbers})
        for row in rows:
            number = self._in_row[row]
            newest = self._length(number) - 1
            if number in done:
                del self._in_row[row]
            elif newest >= self._limit[number]:
                # All of its keys turn by other angles from here on: it is a prompt again.
                del self._in_row[row]
                self._queue.appendleft(number)
