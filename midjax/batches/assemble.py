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


def batch(
    pieces: rows.Pieces,
    source: Int[np.ndarray, " B"],
    texts: Sequence[Text],
    row_tokens: int,
) -> batch_lib.Batch:
    """Reads the documents of some rows and lays them out. A row without pieces is padding.

    Args:
      pieces: of the rows.
      source: index into `texts` of each row.
      texts: all sources.
      row_tokens: T.
    """
    row = np.repeat(np.arange(len(source)), pieces.count)
    used = np.bincount(row, pieces.length, len(source)).astype(np.int64)
    length = pieces.length.astype(np.int64)
    begin = np.cumsum(length) - length - (np.cumsum(used) - used)[row]  # in its row
    joined = np.array([text.mask == "none" for text in texts], bool)[source][row]
    # Each row's padding is one more piece, at its end.
    ends = np.cumsum(pieces.count)
    sizes = np.insert(length, ends, row_tokens - used)
    segments = np.insert(np.where(joined, 1, pack.nth(pieces.count) + 1), ends, 0)
    origin = np.insert(np.where(joined, 0, begin), ends, 0)
    shape = (len(source), row_tokens)
    made = batch_lib.Batch(
        tokens=np.zeros(shape, np.int32),
        targets=np.zeros(shape, np.int32),
        segments=np.repeat(segments.astype(np.int32), sizes).reshape(shape),
        positions=np.arange(row_tokens, dtype=np.int32)
        - np.repeat(origin.astype(np.int32), sizes).reshape(shape),
        weights=np.ones(shape, np.float32),
        source=np.repeat(source.astype(np.int32), row_tokens).reshape(shape),
    )
    for r in np.flatnonzero(used < row_tokens).tolist():
        made.positions[r, used[r] :] = 0
        made.weights[r, used[r] :] = 0
    _read(made, pieces, source[row], row * row_tokens + begin, texts)
    return made


def _read(
    made: batch_lib.Batch,
    pieces: rows.Pieces,
    source: np.ndarray,
    begin: np.ndarray,
    texts: Sequence[Text],
) -> None:
    """Fills tokens, targets and the weights of masked text.

    Args:
      source: of each piece.
      begin: of each piece in the batch as one long row.
    """
    tokens, targets, weights = (x.reshape(-1) for x in (made.tokens, made.targets, made.weights))
    columns = (source, pieces.document, pieces.start, pieces.length, begin)
    for k, document, start, length, at in zip(*(c.tolist() for c in columns), strict=True):
        text = texts[k].tokens
        pairs = length
        if texts[k].mask == "none":  # a document's last token is an input without a target
            pairs = min(length, text.lengths.item(document) - start - 1)
            weights[at + pairs : at + length] = 0
        ids = text.read(document, start, pairs + 1)
        tokens[at : at + length] = ids[:length]
        targets[at : at + pairs] = ids[1:]
        if text.has_loss:
            weights[at : at + pairs] = text.loss(document, start + 1, pairs)
