# SPDX-License-Identifier: Apache-2.0
import jax
import numpy as np
import pytest

from midjax.batches import batch


def row(fill, tokens=5):
    ints = {
        name: np.full((1, tokens), fill, np.int32) for name in batch.FIELDS if name != "weights"
    }
    return ints | {"weights": np.ones((1, tokens), np.float32)}


def test_a_batch_is_a_pytree_of_its_fields():
    leaves = jax.tree.leaves(batch.Batch(**row(1)))
    assert len(leaves) == len(batch.FIELDS) == 6
    doubled = jax.tree.map(lambda x: 2 * x, batch.Batch(**row(4)))
    assert isinstance(doubled, batch.Batch) and doubled.tokens.tolist() == [[8] * 5]


def test_fields_of_other_shapes_are_refused_in_tests():
    with pytest.raises(Exception, match="weights"):
        batch.Batch(**(row(1) | {"weights": np.ones((1, 4), np.float32)}))
