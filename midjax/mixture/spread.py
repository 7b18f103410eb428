# SPDX-License-Identifier: Apache-2.0
"""Shares -> integer counts of each block, exact to within one row in every block and prefix.

What is asked of source k in the first b blocks is a fraction F[b, k], with whole sums over k. We
want integers P[b, k] with the same sums and

    floor(F) <= P <= ceil(F)                                        in every prefix of blocks
    floor(F[b+1] - F[b]) <= P[b+1] - P[b] <= floor(F[b+1] - F[b]) + 1         in every block

Such P exist: both kinds of bounds, and the sums, are laminar families, so that F itself, which
meets them, is a mean of integer solutions. They are found one block after the other by the rule
of proportionate fairness (Baruah, Cohen, Plaxton, Varvel: Proportionate progress, Algorithmica
1996), whose proof holds for shares that change as well. After b blocks a source is high,
P = ceil(F), or low, P = floor(F), or F is whole and neither. In the next block

    up        F crosses no integer: high stays high, low may become either
    down      F crosses an integer: low stays low (one row was due), high may become either
    neutral   F becomes whole: all that went before is settled

so it is better to be high before a `down` and low before an `up`; where two sources have the same
kind of block next, the block after it decides. How many are high is given by the sums.
"""

import numpy as np
from jaxtyping import Int

# Blocks in which steady shares come back to where they began: a share is exact to one part in
# PERIOD_BLOCKS * block_rows.
PERIOD_BLOCKS = 256
_UP, _NEUTRAL, _DOWN = 0, 1, 2


def asked(
    first: Int[np.ndarray, " sources"],
    last: Int[np.ndarray, " sources"],
    blocks: int,
    at: Int[np.ndarray, " n"],
) -> tuple[Int[np.ndarray, "n sources"], int]:
    """(F times the denominator, the denominator) in the first `at` blocks, all integers.

    Shares go linearly from `first` to `last` over `blocks` blocks and are steady inside each.

    Args:
      first, last: rows of each source in PERIOD_BLOCKS blocks; both have the same sum.
      blocks: over which shares change; of no effect where `first` is `last`.
      at: numbers of blocks.
    """
    at = at[:, None]
    # Sum over blocks of first * (2 blocks - 2b - 1) + last * (2b + 1), per 2 blocks * PERIOD.
    return first * (2 * blocks - at) * at + last * at * at, 2 * PERIOD_BLOCKS * blocks


def prefix(
    first: Int[np.ndarray, " sources"], last: Int[np.ndarray, " sources"], blocks: int
) -> Int[np.ndarray, "blocks+1 sources"]:
    """Rows of each source before each block: P of the module's docstring; see `asked`.

    With `first` equal to `last` and PERIOD_BLOCKS blocks the result can be repeated without end.
    """
    assert int(first.sum()) == int(last.sum())
    assert int(first.sum()) * 2 * blocks * blocks < 1 << 62, "would not fit into 64 bits"
    ideal, whole = asked(first, last, blocks, np.arange(blocks + 1))
    found, rest = np.divmod(ideal, whole)
    high = rest.sum(1) // whole
    crossing = rest[:-1] + np.diff(ideal, axis=0) % whole > whole
    kind = np.where(rest[1:] == 0, _NEUTRAL, np.where(crossing, _DOWN, _UP))
    rank = _ranks(kind)
    some, begun = rest > 0, rest[:-1] > 0
    up, down = begun & (kind == _UP), begun & (kind == _DOWN)
    state = np.zeros(len(first), bool)
    for b in range(blocks):
        stays = up[b] & state
        (free,) = np.nonzero(some[b + 1] & ~stays & ~(down[b] & ~state))
        wanted = high[b + 1] - np.count_nonzero(stays)
        assert 0 <= wanted <= len(free)
        state = stays
        state[free[np.argsort(-rank[b + 1][free], kind="stable")[:wanted]]] = True
        found[b + 1] += state
    return found


def _ranks(kind: Int[np.ndarray, "blocks sources"]) -> Int[np.ndarray, "blocks+1 sources"]:
    """Who had better be high after b blocks: the order of the kinds of all blocks after it.

    Equal strings of kinds have equal ranks. A string ends where it is neutral, or with the table.
    """
    blocks, sources = kind.shape
    ranks = np.zeros((blocks + 1, sources), np.int32)
    for b in range(blocks - 1, -1, -1):
        after = np.where(kind[b] == _NEUTRAL, 0, ranks[b + 1])
        ranks[b] = np.unique(kind[b] * (sources + 1) + after, return_inverse=True)[1]
    return ranks


def cut(
    first: Int[np.ndarray, " sources"],
    last: Int[np.ndarray, " sources"],
    blocks: int,
    *,
    block: int,
    before: Int[np.ndarray, " sources"],
    rows: int,
    block_rows: int,
) -> Int[np.ndarray, " sources"]:
    """Rows of each source in the first `rows` rows of a block, where a stage ends inside it.

    Within one row of the share; what is missing most so far is rounded up first.

    Args:
      first, last, blocks: see `asked`.
      block: which, of the table.
      before: rows of each source before it, from the table.
      rows, block_rows: of this block, of a whole one.
    """
    (start, end), whole = asked(first, last, blocks, np.array([block, block + 1]))
    counts, rest = np.divmod((end - start) * rows, whole * block_rows)
    missing = (start - before * whole) * block_rows + rest
    candidates = np.nonzero(rest)[0]
    order = np.argsort(-missing[candidates], kind="stable")
    counts[candidates[order[: rows - int(counts.sum())]]] += 1
    return counts


def largest_remainder(shares: np.ndarray, total: int) -> Int[np.ndarray, " sources"]:
    """Integers that sum to `total`, nearest to `shares * total` (Hamilton's method).

    Ties go to the lower index.
    """
    ideal = np.asarray(shares, np.float64) * total
    counts = np.floor(ideal + 1e-9).astype(np.int64)
    order = np.argsort(-(ideal - counts), kind="stable")
    counts[order[: total - counts.sum()]] += 1
    return counts
