# SPDX-License-Identifier: Apache-2.0
"""Prompts of different lengths, end to end in the rows of one array.

row 5: a a a a    row 1: b b    row 4: c    --first fit, longest first-->    a a a a
                                                                             b b c .
"""

from collections.abc import Mapping, Sequence

import numpy as np

from midjax.model import decode

LEAST_TOKENS = 16
# Rows are twice as long as the longest prompt up to here: attention within them costs little yet.
_SHORT_TOKENS = 256


def bucket(size: int, least: int = 1) -> int:
    """The least of least * 2^n and least * 3 * 2^n that is not below: few sizes, to compile for."""
    found = least
    while found < size:
        found = found * 3 // 2 if found * 3 // 2 >= size and found > 1 else found * 2
    return found


def prompts(
    tokens_of: Mapping[int, Sequence[int]], rows: int, parts: int, longest: int
) -> decode.Prompts:
    """What `decode.fill` wants.

    Args:
      tokens_of: row of the cache -> its prompt, of rows that are filled.
      rows: of the cache.
      parts: into how many the mesh splits them.
      longest: tokens of the longest prompt that is expected, so that others like these have the
        same shape.
    """
    length = bucket(max(longest, *map(len, tokens_of.values())), LEAST_TOKENS)
    # Prompts of more than half a row leave the rest of it empty; of a longer one, less.
    length *= 2 if length <= _SHORT_TOKENS else 1
    used: list[list[int]] = [[] for _ in range(parts)]  # places taken in each packed row
    begin, place = np.zeros(rows, np.int32), {}
    for row in sorted(tokens_of, key=lambda row: -len(tokens_of[row])):
        size, part = len(tokens_of[row]), used[row // (rows // parts)]
        packed = next((i for i, taken in enumerate(part) if taken + size <= length), len(part))
        if packed == len(part):
            part.append(0)
        place[row], begin[row] = (packed, part[packed]), packed * length + part[packed]
        part[packed] += size
    per_part = bucket(max(map(len, used)))
    tokens, segments, positions = np.zeros((3, per_part * parts, length), np.int32)
    is_new, tokens_of_row = np.zeros(rows, bool), np.ones(rows, np.int32)
    for row, (packed, at) in place.items():
        size = len(tokens_of[row])
        here = row // (rows // parts) * per_part + packed, slice(at, at + size)
        tokens[here], segments[here], positions[here] = tokens_of[row], row + 1, np.arange(size)
        is_new[row], tokens_of_row[row] = True, size
    return decode.Prompts(tokens, segments, positions, is_new, begin, tokens_of_row)
