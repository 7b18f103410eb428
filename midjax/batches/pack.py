# SPDX-License-Identifier: Apache-2.0
"""Documents -> rows of T tokens, by a plan that is a pure function of (lengths, T, policy).

A document of n tokens gives n - 1 (input, target) pairs, and pairs are what is packed: the target
of a row's last input may lie in the next row, so a cut loses no target, every pair is trained on
exactly once an epoch, and no target crosses into another document.
"""

import collections
import dataclasses
from bisect import bisect_left, insort
from typing import Literal

import numpy as np
from jaxtyping import Int

from midjax.batches import shards

Policy = Literal["concat", "best_fit", "whole"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Which pieces of which documents make each row.

    Row r is the pieces [row_start[r], row_start[r + 1]). A piece is `length` pairs of document
    `document` from pair `start` on.

    Attributes:
      row_tokens: T.
      row_start: [rows + 1].
      document, start, length: [pieces].
      dropped: documents that are in no row, by reason.
    """

    row_tokens: int
    row_start: Int[np.ndarray, " rows_plus_1"]
    document: Int[np.ndarray, " pieces"]
    start: Int[np.ndarray, " pieces"]
    length: Int[np.ndarray, " pieces"]
    dropped: dict[str, int]

    def __len__(self) -> int:
        return len(self.row_start) - 1

    @property
    def padding(self) -> int:
        """Places without a pair, over all rows."""
        return len(self) * self.row_tokens - int(self.length.sum())


def plan(
    lengths: Int[np.ndarray, " documents"],
    row_tokens: int,
    policy: Policy,
    *,
    least_tokens: int | None = None,
    most_tokens: int | None = None,
) -> Plan:
    """Plans the rows of one source.

    Args:
      lengths: tokens per document, BOS and EOS included.
      row_tokens: T, at least 1.
      policy: `concat` lays documents end to end and cuts every T pairs: only the last row has
        padding, and cut documents go on in the next row without their past. `best_fit` keeps
        documents of up to T pairs whole: longer ones are cut into pieces of T and a rest, and
        each piece goes where the least room is left (best-fit decreasing). `whole` gives one row
        to each document of at least T pairs, its first T; shorter ones are dropped and counted.
      least_tokens, most_tokens: documents of fewer or more tokens are dropped and counted.
    """
    if row_tokens < 1:
        raise ValueError(f"row_tokens must be 1 or more, got {row_tokens}.")
    lengths = np.asarray(lengths, np.int64)
    least = max(least_tokens or 0, 2)
    short, long = lengths < least, lengths > (most_tokens or np.inf)
    reasons = {f"fewer than {least} tokens": short, f"more than {most_tokens} tokens": long}
    dropped = {reason: int(which.sum()) for reason, which in reasons.items() if which.any()}
    pairs = np.where(short | long, 0, lengths - 1)
    if policy == "concat":
        return _concat(pairs, row_tokens, dropped)
    if policy == "best_fit":
        return _best_fit(pairs, row_tokens, dropped)
    if policy == "whole":
        return _whole(pairs, row_tokens, dropped)
    raise ValueError(f"Unknown packing policy {policy!r}; known: concat, best_fit, whole.")


def _concat(pairs: np.ndarray, row_tokens: int, dropped: dict[str, int]) -> Plan:
    ends = np.cumsum(pairs)
    total = int(ends[-1]) if len(ends) else 0
    rows = -(-total // row_tokens)
    cuts = np.unique(np.concatenate([[0], ends, np.arange(1, rows) * row_tokens]))
    begin, end = cuts[:-1], cuts[1:]
    document = np.searchsorted(ends, begin, side="right")
    return Plan(
        row_tokens=row_tokens,
        row_start=np.searchsorted(begin, np.arange(rows + 1) * row_tokens),
        document=document,
        start=begin - (ends - pairs)[document],
        length=end - begin,
        dropped=dropped,
    )


def _best_fit(pairs: np.ndarray, row_tokens: int, dropped: dict[str, int]) -> Plan:
    # Pieces: each document in cuts of T and a rest.
    count = -(-pairs // row_tokens)
    document = np.repeat(np.arange(len(pairs)), count)
    nth = np.arange(len(document)) - np.repeat(np.cumsum(count) - count, count)
    start = nth * row_tokens
    length = np.minimum(pairs[document] - start, row_tokens)
    rows: list[list[int]] = []
    open_rows: dict[int, collections.deque[int]] = collections.defaultdict(collections.deque)
    spaces: list[int] = []  # sorted, distinct: room left in rows that are not full
    for piece in np.argsort(-length, kind="stable"):
        need = int(length[piece])
        at = bisect_left(spaces, need)
        if at == len(spaces):
            row, room = len(rows), row_tokens
            rows.append([])
        else:
            room = spaces[at]
            row = open_rows[room].popleft()
            if not open_rows[room]:
                del open_rows[room], spaces[at]
        rows[row].append(int(piece))
        if left := room - need:
            if left not in open_rows:
                insort(spaces, left)
            open_rows[left].append(row)
    order = np.array([piece for row in rows for piece in row], np.int64)
    return Plan(
        row_tokens=row_tokens,
        row_start=np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64),
        document=document[order],
        start=start[order],
        length=length[order],
        dropped=dropped,
    )


def _whole(pairs: np.ndarray, row_tokens: int, dropped: dict[str, int]) -> Plan:
    (document,) = np.nonzero(pairs >= row_tokens)
    short = int((pairs > 0).sum()) - len(document)
    if short:
        dropped = dropped | {f"fewer than {row_tokens + 1} tokens": short}
    return Plan(
        row_tokens=row_tokens,
        row_start=np.arange(len(document) + 1),
        document=document,
        start=np.zeros_like(document),
        length=np.full_like(document, row_tokens),
        dropped=dropped,
    )


class Rows:
    """`rows[i]`: the fields of `Batch` for one row, each [T]. Random access, nothing kept."""

    def __init__(self, source: shards.TokenSource, plan: Plan, source_index: int) -> None:
        self._source, self._plan, self._index = source, plan, source_index

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        size = self._plan.row_tokens
        row = {
            name: np.zeros(size, np.int32)
            for name in ("tokens", "targets", "segments", "positions")
        }
        weights = np.zeros(size, np.float32)
        at = 0
        first, last = self._plan.row_start[index], self._plan.row_start[index + 1]
        for segment, piece in enumerate(range(first, last), 1):
            start, length = int(self._plan.start[piece]), int(self._plan.length[piece])
            tokens = self._source[self._plan.document[piece]][start : start + length + 1]
            here = slice(at, at + length)
            row["tokens"][here], row["targets"][here] = tokens[:-1], tokens[1:]
            row["segments"][here] = segment
            row["positions"][here] = np.arange(length)
            weights[here] = 1.0
            at += length
        return row | {"weights": weights, "source": np.full(size, self._index, np.int32)}
