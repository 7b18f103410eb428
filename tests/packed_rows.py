# SPDX-License-Identifier: Apache-2.0
"""Packed rows whose document lengths are known."""

import numpy as np


def make(lengths, padding, origin=0):
    """Segments and positions of a row, and every token's document length."""
    segments = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    positions = np.concatenate([np.arange(n) for n in lengths]) + origin
    of_token = np.repeat(np.array(lengths), lengths) + origin
    rest = np.zeros(padding, int)
    rows = (np.r_[segments, rest], np.r_[positions, rest - 99], np.r_[of_token, rest])
    return tuple(x.astype(np.int32)[None] for x in rows)
