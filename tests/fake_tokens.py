# SPDX-License-Identifier: Apache-2.0
"""A token source in memory, with what `assemble.batch` asks of one."""

import numpy as np

STRIDE = 100_000  # token t of document d is STRIDE * d + t, so that every token is its own


class Documents:
    """Documents of these lengths; `masks` are those of what bears loss, by document."""

    def __init__(self, lengths, masks=None):
        self.lengths = np.array(lengths, np.int64)
        self._masks = masks or {}
        self.has_loss = bool(masks)

    def read(self, document, start, count):
        assert start >= 0 and start + count <= self.lengths[document]
        return (STRIDE * document + start + np.arange(count)).astype(np.uint32)

    def loss(self, document, start, count):
        mask = self._masks.get(document)
        if mask is None:
            return np.ones(count, np.uint8)
        return np.array(mask, np.uint8)[start : start + count]


def pairs_of(lengths, keep=lambda document, pair: True):
    """(input, target) of every pair of these documents that `keep` keeps."""
    return {
        (STRIDE * d + t, STRIDE * d + t + 1)
        for d, n in enumerate(lengths)
        for t in range(max(n - 1, 0))
        if keep(d, t)
    }
