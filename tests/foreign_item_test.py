# SPDX-License-Identifier: Apache-2.0
"""Items that other code wrote, against what Orbax itself reads of one."""

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from midjax import checkpoint, foreign_item


@pytest.fixture
def folder(tmp_path):
    tree = {"mu": {"w": np.arange(6.0).reshape(2, 3)}, "layers": [np.ones(2), np.zeros(3)], "n": 7}
    ocp.PyTreeCheckpointer().save(tmp_path / "item", tree)
    return str(tmp_path / "item")


def test_what_is_asked_for_is_read_by_name(folder):
    item = foreign_item.ForeignItem(folder)
    assert set(item.arrays) >= {"mu/w", "layers/0", "layers/1"}
    assert item.arrays["mu/w"].shape == (2, 3)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    found = item.read({"mu/w": here, "layers/1": here})
    assert set(found) == {"mu/w", "layers/1"}
    assert np.array_equal(found["mu/w"], np.arange(6.0).reshape(2, 3))
    assert np.array_equal(found["layers/1"], np.zeros(3))


def test_what_is_no_item_is_told(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="holds no PyTree item of Orbax"):
        foreign_item.ForeignItem(str(tmp_path / "nothing"))
