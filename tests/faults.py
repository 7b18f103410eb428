# SPDX-License-Identifier: Apache-2.0
"""Faults put into a run on purpose: batches that are not what the data says."""

import dataclasses

import numpy as np

from midjax.batches import loader


def corrupt(monkeypatch, faults):
    """Batches of some steps get other loss weights.

    Args:
      faults: step -> (row of the batch, loss weight of all of its places).
    """
    real = loader.Loader.batches

    class Iterator:
        def __init__(self, inner, first_step):
            self._inner, self._step = inner, first_step
            self.close = inner.close

        def __iter__(self):
            return self

        def __next__(self):
            batch, row_ids = next(self._inner)
            self._step += 1
            if fault := faults.get(self._step):
                row, weight = fault
                weights = np.array(batch.weights)
                weights[row] = weight
                batch = dataclasses.replace(batch, weights=weights)
            return batch, row_ids

    def batches(self, *, next_row, **kwargs):
        return Iterator(real(self, next_row=next_row, **kwargs), kwargs["first_step"] - 1)

    monkeypatch.setattr(loader.Loader, "batches", batches)
