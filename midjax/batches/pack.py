# SPDX-License-Identifier: Apache-2.0
"""Documents -> rows of T tokens, by a plan that is a pure function of (lengths, T, policy, mask).

A document of n tokens gives n - 1 (input, target) pairs, and pairs are what is packed: the target
of a row's last input may lie in the next row, so a cut loses no target, every pair is trained on
exactly once an epoch, and no target crosses into another document. Where documents of a row see
each other (mask "none"), the last token is an input as well, without a target: it separates them.
"""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Int

from midjax import units
from midjax.batches import fit, permute

Policy = Literal["concat", "first_fit", "best_fit", "best_fit_whole", "whole"]
Mask = Literal["document", "none"]
POLICIES = ("concat", "first_fit", "best_fit", "best_fit_whole", "whole")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packing:
    """How documents become rows.

    Attributes:
      row_tokens: T, at least 1.
      policy: `concat` lays documents end to end and cuts every T: only the last row has padding,
        and cut documents go on in the next row without their past. `first_fit` and `best_fit` keep
        documents of up to T whole: longer ones are cut into pieces of T and a rest, and each piece
        goes to the first row with room, in the documents' order, or where the least room is left,
        the longest first. `best_fit_whole` never cuts: of a longer document the first T are
        taken and the rest is counted as truncated. `whole` gives one row to each document of more
        than T tokens, its first T; shorter ones are dropped and counted.
      mask: `document` lets a token see its own document only; `none` lets it see all of its row
        before it.
      least_tokens, most_tokens: documents of fewer or more tokens are dropped and counted.
    """

    row_tokens: int
    policy: Policy
    mask: Mask = "document"
    least_tokens: int | None = None
    most_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.row_tokens < 1:
            raise ValueError(f"row_tokens must be 1 or more, got {self.row_tokens}.")
        if self.policy not in POLICIES:
            raise ValueError(
                f"Unknown packing policy {self.policy!r}; known: {', '.join(POLICIES)}."
            )
        if self.mask not in ("document", "none"):
            raise ValueError(f"Unknown mask {self.mask!r}; known: document, none.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Which pieces of which documents make each row.

    Row r is the pieces [row_start[r], row_start[r + 1]). A piece is `length` places of a document
    from its place `start` on; a place is an input with its target.

    Attributes:
      row_tokens: T.
      row_start: [rows + 1].
      documents: those that are in some row, by rising length (`concat`: by number), [documents].
      class_start: documents [class_start[c], class_start[c + 1]) of `documents` are equally long
        and may stand for each other, [classes + 1].
      place: of each piece's document in `documents`, [pieces].
      start, length: [pieces].
      tokens: sum of the lengths.
      truncated_tokens: what documents have beyond the part of them that is in a row.
      dropped: documents that are in no row, by reason.
    """

    row_tokens: int
    row_start: Int[np.ndarray, " rows_plus_1"]
    documents: Int[np.ndarray, " documents"]
    class_start: Int[np.ndarray, " classes_plus_1"]
    place: Int[np.ndarray, " pieces"]
    start: Int[np.ndarray, " pieces"]
    length: Int[np.ndarray, " pieces"]
    tokens: int
    truncated_tokens: int
    dropped: dict[str, int]

    def __len__(self) -> int:
        return len(self.row_start) - 1

    @property
    def document(self) -> Int[np.ndarray, " pieces"]:
        """The document of each piece, [pieces]."""
        return self.documents[self.place]

    @property
    def padding(self) -> int:
        """Places without a token, over all rows."""
        return len(self) * self.row_tokens - self.tokens


def places(
    lengths: Int[np.ndarray, " documents"], packing: Packing
) -> tuple[Int[np.ndarray, " documents"], dict[str, int]]:
    """(places of each document in a row, 0 for those in none; documents in none by reason).

    Args:
      lengths: tokens per document, BOS and EOS included.
    """
    lengths = np.asarray(lengths, np.int64)
    least = max(packing.least_tokens or 0, 2)
    reasons = [(f"fewer than {least} tokens", lengths < least)]
    if packing.most_tokens is not None:
        reasons.append((f"more than {packing.most_tokens} tokens", lengths > packing.most_tokens))
    if packing.policy == "whole":
        more = packing.row_tokens + 1
        reasons.append((f"fewer than {more} tokens", lengths < more))
    dropped: dict[str, int] = {}
    out = np.zeros(len(lengths), bool)
    for reason, which in reasons:  # the first one counts
        if count := int((which & ~out).sum()):
            dropped[reason] = dropped.get(reason, 0) + count
            out |= which
    return np.where(out, 0, of_tokens(lengths, packing.mask)), dropped


def of_tokens(tokens: Int[np.ndarray, " n"], mask: Mask) -> Int[np.ndarray, " n"]:
    """Places in a row that documents of so many tokens take."""
    return tokens - 1 if mask == "document" else tokens


def plan(lengths: Int[np.ndarray, " documents"], packing: Packing) -> Plan:
    """Plans the rows of one source.

    Args:
      lengths: tokens per document, BOS and EOS included.
      packing: how.
    """
    size, dropped = places(lengths, packing)
    if packing.policy == "concat":
        return _concat(size, packing.row_tokens, dropped)
    by_length = np.argsort(size, kind="stable")
    documents = by_length[np.searchsorted(size, 1, sorter=by_length) :]
    size = size[documents]
    if packing.policy in ("whole", "best_fit_whole"):
        kept = np.minimum(size, packing.row_tokens)
        place, start, length = np.arange(len(kept)), np.zeros_like(kept), kept
    else:  # cuts of T and a rest
        count = -(-size // packing.row_tokens)
        place = np.repeat(np.arange(len(size)), count)
        start = nth(count) * packing.row_tokens
        length = np.minimum(size[place] - start, packing.row_tokens)
    row = _rows(packing, documents, place, length)
    # Inside a row pieces stand in no particular order: by length, long documents would always have
    # a row's first places.
    random = permute.mix(np.arange(len(row), dtype=np.uint64)) >> np.uint64(32)
    order = np.argsort((row.astype(np.uint64) << np.uint64(32)) | random, kind="stable")
    return Plan(
        row_tokens=packing.row_tokens,
        row_start=narrow(sums(np.bincount(row) if len(row) else row)),
        documents=narrow(documents),
        class_start=narrow(np.append(np.flatnonzero(np.diff(size, prepend=-1)), len(size))),
        place=narrow(place[order]),
        start=narrow(start[order]),
        length=narrow(length[order]),
        tokens=int(length.sum()),
        truncated_tokens=int(size.sum() - length.sum()),
        dropped=dropped,
    )


def _rows(
    packing: Packing, documents: np.ndarray, place: np.ndarray, length: np.ndarray
) -> np.ndarray:
    """The row of each piece, [pieces]."""
    if packing.policy == "whole":
        return np.argsort(np.argsort(documents))  # rows in the order of the documents
    if packing.policy == "first_fit":
        order = np.argsort(documents[place], kind="stable")
        found = np.empty(len(place), np.int64)
        first_fit = fit.first_fit(length[order], packing.row_tokens)
        assert first_fit is not None
        found[order] = first_fit
        return found
    return fit.best_fit(length, packing.row_tokens)


def _concat(size: np.ndarray, row_tokens: int, dropped: dict[str, int]) -> Plan:
    (documents,) = np.nonzero(size)
    ends = np.cumsum(size[documents])
    tokens = int(size.sum())
    place, start, length, count = cut(
        ends, np.arange(units.ceil_div(tokens, row_tokens)), row_tokens
    )
    return Plan(
        row_tokens=row_tokens,
        row_start=narrow(sums(count)),
        documents=narrow(documents),
        class_start=narrow(np.arange(len(documents) + 1)),
        place=narrow(place),
        start=narrow(start),
        length=narrow(length),
        tokens=tokens,
        truncated_tokens=0,
        dropped=dropped,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream:
    """What is known of `concat` rows for any order in which the documents are laid.

    Attributes:
      row_tokens: T.
      documents: those that are in some row, [documents]; None is all.
      tokens, truncated_tokens, dropped: as in `Plan`.
    """

    row_tokens: int
    documents: Int[np.ndarray, " documents"] | None
    tokens: int
    dropped: dict[str, int]
    truncated_tokens: int = 0

    def __len__(self) -> int:
        return units.ceil_div(self.tokens, self.row_tokens)

    @property
    def padding(self) -> int:
        """Places without a token, in the last row."""
        return len(self) * self.row_tokens - self.tokens


def stream(lengths: Int[np.ndarray, " documents"], packing: Packing) -> Stream:
    """`plan` of the policy `concat`, without the pieces."""
    assert packing.policy == "concat", packing
    size, dropped = places(lengths, packing)
    return Stream(
        row_tokens=packing.row_tokens,
        documents=narrow(np.flatnonzero(size)) if dropped else None,
        tokens=int(size.sum()),
        dropped=dropped,
    )


def cut(
    ends: Int[np.ndarray, " documents"], rows: Int[np.ndarray, " rows"], row_tokens: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The pieces of some rows of documents laid end to end, in time that depends on these alone.

    Args:
      ends: where each document ends, rising.
      rows: which rows.

    Returns:
      (document, start, length) of the pieces, row after row, and the pieces of each row.
    """
    begin = rows * row_tokens
    end = np.minimum(begin + row_tokens, ends[-1] if len(ends) else 0)
    first = np.searchsorted(ends, begin, side="right")
    last = np.searchsorted(ends, end, side="left")
    count = last - first + 1 if len(rows) else np.zeros(0, np.int64)
    document = np.repeat(first, count) + nth(count)
    before = np.where(document > 0, ends[document - 1], 0)
    from_ = np.maximum(before, np.repeat(begin, count))
    to = np.minimum(ends[document], np.repeat(end, count))
    return document, from_ - before, to - from_, count


def nth(count: Int[np.ndarray, " n"]) -> np.ndarray:
    """0, 1, .. count[0] - 1, 0, 1, .. count[1] - 1, ..."""
    return np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)


def sums(count: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n_plus_1"]:
    """0, count[0], count[0] + count[1], ...: where each begins and ends."""
    return np.concatenate([[0], np.cumsum(count, dtype=np.int64)])


def narrow(values: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """As int32 where all values fit: half the memory, and half the file."""
    fits = not len(values) or int(values.max()) < 1 << 31
    return values.astype(np.int32 if fits else np.int64)
