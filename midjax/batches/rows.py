# SPDX-License-Identifier: Apache-2.0
"""The rows of one source, epoch after epoch without end: row number -> pieces of documents.

Every epoch holds each document and has the same number of rows, in an order of its own that is a
pure function of (key of the source, epoch). `concat` lays all documents end to end in a new order.
The other policies keep which lengths share a row, as that is what fits, and exchange the documents
of equal length. All permute the rows.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from midjax.batches import pack, permute


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pieces:
    """What some rows are made of.

    Attributes:
      first: row i is the pieces [first[i], first[i + 1]), [rows + 1].
      document, start, length: as in `pack.Plan`, [pieces].
    """

    first: Int[np.ndarray, " rows_plus_1"]
    document: Int[np.ndarray, " pieces"]
    start: Int[np.ndarray, " pieces"]
    length: Int[np.ndarray, " pieces"]

    def __len__(self) -> int:
        return len(self.first) - 1

    @property
    def count(self) -> Int[np.ndarray, " rows"]:
        """Pieces of each row."""
        return np.diff(self.first)


def of_plan(plan: pack.Plan, begin: int, end: int) -> Pieces:
    """Rows [begin, end) of a plan, with its own documents. Rows after its last have no piece."""
    first = plan.row_start[np.minimum(np.arange(begin, end + 1), len(plan))].astype(np.int64)
    here = slice(first[0], first[-1])
    return Pieces(
        first=first - first[0],
        document=plan.documents[plan.place[here]],
        start=plan.start[here],
        length=plan.length[here],
    )


class Planned:
    """The rows of a plan.

    Args:
      key: of the source.
    """

    def __init__(self, plan: pack.Plan, key: np.uint64) -> None:
        self._plan, self._key = plan, key

    def __len__(self) -> int:
        return len(self._plan)

    def pieces(self, numbers: Int[np.ndarray, " rows"]) -> tuple[np.ndarray, Pieces]:
        """(numbers of these rows in the plan, their pieces).

        Args:
          numbers: of the source's rows without end: epoch * len(self) + place in the epoch.
        """
        plan = self._plan
        rows, key = _rows(numbers, len(plan), self._key)
        first = plan.row_start[rows].astype(np.int64)
        count = plan.row_start[rows + 1] - first
        piece = np.repeat(first, count) + pack.nth(count)
        place = plan.place[piece]
        after = np.searchsorted(plan.class_start, place, side="right")
        begin = plan.class_start[after - 1].astype(np.int64)
        size = plan.class_start[after] - begin
        exchange = permute.mix(np.repeat(key, count) ^ begin.astype(np.uint64))
        place = begin + permute.permute(place - begin, size, exchange)
        return rows, Pieces(
            first=pack.sums(count),
            document=plan.documents[place],
            start=plan.start[piece],
            length=plan.length[piece],
        )


class Laid:
    """The rows of documents that are laid end to end.

    Of the last two epochs that were asked for, 12 bytes per document are kept in memory.

    Args:
      lengths: of all documents of the source.
      mask: see `pack.Packing`.
      key: of the source.
    """

    def __init__(
        self,
        stream: pack.Stream,
        lengths: Int[np.ndarray, " documents"],
        mask: pack.Mask,
        key: np.uint64,
    ) -> None:
        self._stream, self._lengths, self._mask, self._key = stream, lengths, mask, key
        self._epochs = functools.lru_cache(maxsize=2)(self._epoch)

    def __len__(self) -> int:
        return len(self._stream)

    def pieces(self, numbers: Int[np.ndarray, " rows"]) -> tuple[np.ndarray, Pieces]:
        """As `Planned.pieces`. `numbers` rise."""
        rows, _ = _rows(numbers, len(self), self._key)
        epochs = numbers // len(self)
        parts = []
        for epoch in np.unique(epochs).tolist():
            order, ends = self._epochs(epoch)
            here = rows[epochs == epoch]
            at, start, length, count = pack.cut(ends, here, self._stream.row_tokens)
            parts.append((count, order[at], start, length))
        count, document, start, length = (np.concatenate(p) for p in zip(*parts, strict=True))
        first = pack.sums(count)
        return rows, Pieces(first=first, document=document, start=start, length=length)

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The documents of an epoch in their order, and where each ends."""
        kept = self._stream.documents
        number = len(self._lengths) if kept is None else len(kept)
        # Not the key of the order of the rows.
        key = permute.mix(permute.keys(self._key, np.array([epoch])))
        order = pack.narrow(permute.permute(np.arange(number), number, key))
        if kept is not None:
            order = kept[order]
        return order, np.cumsum(pack.of_tokens(self._lengths[order], self._mask), dtype=np.int64)


def _rows(numbers: np.ndarray, size: int, key: np.uint64) -> tuple[np.ndarray, np.ndarray]:
    """Where each number goes in its epoch, and the key of this epoch."""
    epochs = permute.keys(key, numbers // size)
    return permute.permute(numbers % size, size, epochs), epochs


def mixed(
    sources: Sequence[Planned | Laid],
    source: Int[np.ndarray, " rows"],
    numbers: Int[np.ndarray, " rows"],
) -> tuple[np.ndarray, Pieces]:
    """As `Planned.pieces`, of rows of several sources.

    Args:
      source: index into `sources` of each row.
      numbers: of each row; of one source they rise.
    """
    row_id = np.empty(len(source), np.int64)
    count = np.empty(len(source), np.int64)
    found = []
    for k in np.unique(source).tolist():
        (here,) = np.nonzero(source == k)
        row_id[here], pieces = sources[k].pieces(numbers[here])
        count[here] = pieces.count
        found.append((here, pieces))
    first = pack.sums(count)
    columns = np.empty((3, first[-1]), np.int64)
    for here, pieces in found:
        to = np.repeat(first[here], pieces.count) + pack.nth(pieces.count)
        columns[:, to] = pieces.document, pieces.start, pieces.length
    document, start, length = columns
    return row_id, Pieces(first=first, document=document, start=start, length=length)
