# SPDX-License-Identifier: Apache-2.0
"""Caps met by shifting: who would break its cap is set to it, the rest grows in proportion."""

import numpy as np
from jaxtyping import Float

_TOLERANCE = 1e-12


class AllCappedError(ValueError):
    """Every source of a stage is at its cap, and rows are left.

    Attributes:
      rows: about how many.
    """

    def __init__(self, rows: float) -> None:
        super().__init__(f"every source is at its cap and {rows:.0f} rows are left")
        self.rows = rows


def shift(
    start: Float[np.ndarray, " sources"],
    end: Float[np.ndarray, " sources"],
    *,
    start_rows: float,
    end_rows: float,
    room: Float[np.ndarray, " sources"],
) -> tuple[Float[np.ndarray, " sources"], Float[np.ndarray, " sources"], np.ndarray]:
    """Shares of a stage, nearest to those asked, that draw no more than `room` of any source.

    A stage goes from `start` to `end` and stays there: it draws start_rows * start plus
    end_rows * end. Sources over their room are scaled down to it, in both; the others of each are
    scaled up by one factor, which may bring more of them over; until none is. Where `start` has no
    others, those of `end` fill it.

    Args:
      start, end: shares, each with the sum 1.
      start_rows, end_rows: weights of the two; without a ramp `start_rows` is 0.
      room: rows that each source has left.

    Returns:
      (start, end, which sources were set to their room [sources] bool).

    Raises:
      AllCappedError: rows are left for which there is no source.
    """
    start, end = start.copy(), end.copy()
    capped = np.zeros(len(end), bool)
    while True:
        drawn = start_rows * start + end_rows * end
        over = ~capped & (drawn > room * (1 + _TOLERANCE))
        if not over.any():
            return start, end, capped
        factor = np.where(over, np.maximum(room, 0) / np.where(over, drawn, 1), 1)
        start, end, capped = start * factor, end * factor, capped | over
        end = _filled(end, end, capped, end_rows)
        start = _filled(start, end, capped, start_rows)


def _filled(shares: np.ndarray, others: np.ndarray, capped: np.ndarray, rows: float) -> np.ndarray:
    """`shares` with the sum 1: those that are not capped grow, or those of `others` come in."""
    left = 1 - shares[capped].sum()
    free = np.where(capped, 0, shares)
    if not free.sum() > 0:
        free = np.where(capped, 0, others)
    if free.sum() > 0:
        return np.where(capped, shares, free * (max(left, 0) / free.sum()))
    if left * rows > 0.5:
        raise AllCappedError(left * rows)
    return shares / shares.sum() if shares.sum() > 0 else shares
