# SPDX-License-Identifier: Apache-2.0
import jax
import numpy as np
import pytest

from midjax.batches import batch


def row(fill, tokens=5):
    ints = {name: np.full(tokens, fill, np.int32) for name in batch.FIELDS if name != "weights"}
    return ints | {"weights": np.ones(tokens, np.float32), "row_id": fill}


def test_stack_keeps_rows_in_order_and_ignores_other_fields():
    stacked = batch.stack([row(3), row(1), row(2)])
    assert stacked.targets[:, 0].tolist() == [3, 1, 2]
    assert stacked.weights.dtype == np.float32 and stacked.weights.shape == (3, 5)


def test_a_batch_is_a_pytree_of_its_fields():
    leaves = jax.tree.leaves(batch.stack([row(1)]))
    assert len(leaves) == len(batch.FIELDS) == 6
    doubled = jax.tree.map(lambda x: 2 * x, batch.stack([row(4)]))
    assert isinstance(doubled, batch.Batch) and doubled.tokens.tolist() == [[8] * 5]


def test_fields_of_other_shapes_are_refused_in_tests():
    fields = {name: value[None] for name, value in row(1).items() if name != "row_id"}
    with pytest.raises(Exception, match="weights"):
        batch.Batch(**(fields | {"weights": np.ones((1, 4), np.float32)}))
