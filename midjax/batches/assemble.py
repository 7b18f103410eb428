# SPDX-License-Identifier: Apache-2.0
"""Pieces of documents -> a batch, in one go: arithmetic on arrays, and one read for each piece."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from midjax.batches import batch as batch_lib
from midjax.batches import pack, rows, shards


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """A source to read from.

    Attributes:
      tokens: its token folder.
      mask: see `pack.Packing`.
    """

    tokens: shards.TokenSource
    mask: pack.Mask = "document"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Rows of which all is known but the tokens.

    A stretch is a piece, or the padding at the end of a row: stretches cover all of a row.

    Attributes:
      row_tokens: T.
      row_source: index of each row's source, [rows].
      first: row i is the stretches [first[i], first[i + 1]), [rows + 1].
      source, document, start: of what is read, [stretches].
      size: places, [stretches].
      segment: see `Batch.segments`; 0 is padding, [stretches].
      origin: the place in the row that has position 0, [stretches].
    """

    row_tokens: int
    row_source: Int[np.ndarray, " rows"]
    first: Int[np.ndarray, " rows_plus_1"]
    source: Int[np.ndarray, " stretches"]
    document: Int[np.ndarray, " stretches"]
    start: Int[np.ndarray, " stretches"]
    size: Int[np.ndarray, " stretches"]
    segment: Int[np.ndarray, " stretches"]
    origin: Int[np.ndarray, " stretches"]


def lay(
    pieces: rows.Pieces,
    source: Int[np.ndarray, " rows"],
    texts: Sequence[Text],
    row_tokens: int,
) -> Layout:
    """Lays out rows. A row without pieces is padding.

    Args:
      pieces: of the rows.
      source: index into `texts` of each row.
      texts: all sources.
      row_tokens: T.
    """
    count, length = pieces.count, pieces.length.astype(np.int64)
    row = np.repeat(np.arange(len(source)), count)
    used = np.bincount(row, length, len(source)).astype(np.int64)
    begin = np.cumsum(length) - length - (np.cumsum(used) - used)[row]  # in its row
    joined = np.array([text.mask == "none" for text in texts], bool)[source][row]
    (short,) = np.nonzero(used < row_tokens)
    ends = pieces.first[1:][short]
    return Layout(
        row_tokens=row_tokens,
        row_source=source,
        first=pieces.first + pack.sums(used < row_tokens),
        source=np.insert(source[row], ends, 0),
        document=np.insert(pieces.document, ends, 0),
        start=np.insert(pieces.start, ends, 0),
        size=np.insert(length, ends, row_tokens - used[short]),
        segment=np.insert(np.where(joined, 1, pack.nth(count) + 1), ends, 0).astype(np.int32),
        origin=np.insert(np.where(joined, 0, begin), ends, 0).astype(np.int32),
    )


def batch(layout: Layout, begin: int, end: int, texts: Sequence[Text]) -> batch_lib.Batch:
    """Reads rows [begin, end) of a layout.

    Args:
      texts: as for `lay`.
    """
    shape = (end - begin, layout.row_tokens)
    here = slice(layout.first[begin], layout.first[end])
    segments, positions = places(layout, begin, end)
    made = batch_lib.Batch(
        tokens=np.zeros(shape, np.int32),
        targets=np.zeros(shape, np.int32),
        segments=segments,
        positions=positions,
        weights=np.ones(shape, np.float32),
        source=np.empty(shape, np.int32),
    )
    made.source[:] = layout.row_source[begin:end, None]
    _read(made, layout, here, texts)
    return made


def places(layout: Layout, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """`Batch.segments` and `Batch.positions` of rows [begin, end), [rows, T] each."""
    shape = (end - begin, layout.row_tokens)
    here = slice(layout.first[begin], layout.first[end])
    size = layout.size[here]
    segments = np.repeat(layout.segment[here], size).reshape(shape)
    origin = np.repeat(layout.origin[here], size).reshape(shape)
    positions = np.arange(layout.row_tokens, dtype=np.int32) - origin
    return segments, np.where(segments > 0, positions, np.int32(0))


def _read(made: batch_lib.Batch, layout: Layout, here: slice, texts: Sequence[Text]) -> None:
    """Fills tokens, targets and the weights of masked text; blanks the padding."""
    tokens, targets, weights = (x.reshape(-1) for x in (made.tokens, made.targets, made.weights))
    columns = (layout.segment, layout.source, layout.document, layout.start, layout.size)
    end = 0
    for segment, k, document, start, size in zip(*(c[here].tolist() for c in columns), strict=True):
        at, end = end, end + size
        if not segment:
            weights[at:end] = 0
            continue
        text, pairs = texts[k].tokens, size
        if texts[k].mask == "none":  # a document's last token is an input without a target
            pairs = min(size, text.lengths.item(document) - start - 1)
            weights[at + pairs : end] = 0
        ids = text.read(document, start, pairs + 1)
        tokens[at:end] = ids[:size]
        targets[at : at + pairs] = ids[1:]
        if text.has_loss:
            weights[at : at + pairs] = text.loss(document, start + 1, pairs)
