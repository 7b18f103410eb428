# SPDX-License-Identifier: Apache-2.0
"""Bin packing: which row each piece of 1..T tokens goes to."""

import collections
from bisect import bisect_left, insort

import numpy as np
from jaxtyping import Int


def best_fit(sizes: Int[np.ndarray, " pieces"], row_tokens: int) -> Int[np.ndarray, " pieces"]:
    """The row of each piece by best-fit decreasing: the longest first, where least room is left.

    Where that takes more rows than `least_rows`, first-fit is tried as well and the better one is
    taken: there are never more rows than first-fit's of the pieces in this order.
    """
    counts = np.bincount(sizes, minlength=row_tokens + 1)
    in_order, rows = _best_fit_decreasing(counts, row_tokens)
    if rows > least_rows(counts, row_tokens):
        other = first_fit(sizes, row_tokens, most_rows=rows - 1)
        if other is not None:
            return other
    found = np.empty(len(sizes), np.int64)
    found[np.argsort(-sizes, kind="stable")] = in_order
    return found


class _Rooms:
    """Rows that have room left, as ranges (first row, number of rows) of equal room."""

    def __init__(self) -> None:
        self._ranges: dict[int, collections.deque[tuple[int, int]]] = {}
        self._sorted: list[int] = []

    def take(self, least: int) -> tuple[int, int, int] | None:
        """(room, first row, number) of the range that was put first with the least such room."""
        at = bisect_left(self._sorted, least)
        if at == len(self._sorted):
            return None
        room = self._sorted[at]
        first, number = self._ranges[room].popleft()
        if not self._ranges[room]:
            del self._ranges[room], self._sorted[at]
        return room, first, number

    def put(self, room: int, first: int, number: int, *, in_front: bool = False) -> None:
        if not room or not number:
            return
        if room not in self._ranges:
            insort(self._sorted, room)
            self._ranges[room] = collections.deque()
        if in_front:
            self._ranges[room].appendleft((first, number))
        else:
            self._ranges[room].append((first, number))


def _best_fit_decreasing(counts: np.ndarray, row_tokens: int) -> tuple[np.ndarray, int]:
    """Rows of the pieces from the longest to the shortest, and how many rows there are.

    Works on sizes and ranges of rows, not on pieces. A row takes as many of one size as fit, one
    after the other: after the first of them it is the row with the least room that will do.
    """
    rooms, rows = _Rooms(), 0
    placed: list[tuple[int, int, int]] = []  # first row, number of rows, pieces in each
    sizes = np.flatnonzero(counts)[::-1]
    for size, left in zip(sizes.tolist(), counts[sizes].tolist(), strict=True):
        while left:
            found = rooms.take(size)
            if found is None:  # as many new rows as all that are left need
                found = row_tokens, rows, -(-left // (row_tokens // size))
                rows += found[2]
            room, first, number = found
            each = room // size
            full = min(number, left // each)
            if full:
                placed.append((first, full, each))
                rooms.put(room - size * each, first, full)
                left -= full * each
            if full < number and left:  # the last ones do not fill a row
                placed.append((first + full, 1, left))
                rooms.put(room - size * left, first + full, 1)
                left, full = 0, full + 1
            rooms.put(room, first + full, number - full, in_front=True)
    begin, count, per_row = np.array(placed, np.int64).reshape(-1, 3).T
    pieces = count * per_row
    nth = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    return np.repeat(begin, pieces) + nth // np.repeat(per_row, pieces), rows


def least_rows(counts: Int[np.ndarray, " sizes"], row_tokens: int) -> int:
    """A number of rows that no packing undercuts: L2 of Martello and Toth (1990).

    For each k up to T / 2: pieces over T - k share a row with none of k or more; pieces over T / 2
    with no other such piece; and what those of k and more do not find room for beside the latter
    needs rows of its own.

    Args:
      counts: number of pieces of each size, 0..T.
    """
    counts = np.asarray(counts, np.int64)
    number = np.concatenate([[0], np.cumsum(counts)])  # of sizes below s
    volume = np.concatenate([[0], np.cumsum(counts * np.arange(len(counts)))])
    half = row_tokens // 2
    k = np.arange(half + 1)
    largest = number[row_tokens + 1] - number[row_tokens - k + 1]
    large = number[row_tokens - k + 1] - number[half + 1]
    room = large * row_tokens - (volume[row_tokens - k + 1] - volume[half + 1])
    small = volume[half + 1] - volume[k]
    return int((largest + large + np.maximum(-(-(small - room) // row_tokens), 0)).max())


def first_fit(
    sizes: Int[np.ndarray, " pieces"], row_tokens: int, *, most_rows: int | None = None
) -> Int[np.ndarray, " pieces"] | None:
    """The row of each piece by first-fit: in the order given, each to the first row with room.

    A tree over the rows knows the most room below each node: a piece costs O(log rows), about five
    microseconds.

    Returns:
      None as soon as it takes more than `most_rows` rows.
    """
    leaves = 1 << max(len(sizes) - 1, 0).bit_length()
    if most_rows is not None:
        leaves = min(leaves, 1 << max(most_rows - 1, 0).bit_length())
    room = [row_tokens] * (2 * leaves)
    found = []
    limit = leaves if most_rows is None else most_rows
    for size in np.asarray(sizes).tolist():
        if size > room[1]:
            return None
        at = 1
        while at < leaves:
            at *= 2
            if room[at] < size:
                at += 1
        row = at - leaves
        if row >= limit:
            return None
        found.append(row)
        left = room[at] = room[at] - size
        while at > 1:
            other = room[at ^ 1]
            at //= 2
            most = left if left > other else other
            if room[at] == most:
                break
            room[at] = left = most
    return np.array(found, np.int64)
