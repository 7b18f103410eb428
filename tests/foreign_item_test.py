# SPDX-License-Identifier: Apache-2.0
"""Items that other code wrote, read by name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from midjax import checkpoint, foreign_item

HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A state as Optax chains it: named tuples in tuples, empty states among them."""
    params = {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(3, jnp.bfloat16)}
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(1e-3))
    )
    state = {"params": params, "opt_state": optimizer.init(params), "step": jnp.int32(7)}
    folder = tmp_path_factory.mktemp("orbax") / "items"
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(folder, state)
    return str(folder)


def test_items_of_others_by_name(foreign):
    item = foreign_item.ForeignItem(foreign)
    assert {"params/w", "params/b", "step"} <= set(item.arrays)
    (count,) = [n for n in item.arrays if n.endswith("0/count")]
    (nu,) = [n for n in item.arrays if n.endswith("nu/w")]
    assert item.arrays["params/w"].shape == (2, 3) == item.arrays[nu].shape
    assert item.arrays["params/b"].dtype == jnp.bfloat16
    found = item.read({"params/w": HERE, count: HERE, "step": HERE})
    assert set(found) == {"params/w", count, "step"}
    np.testing.assert_array_equal(found["params/w"], np.arange(6.0).reshape(2, 3))
    assert int(found[count]) == 0 and int(found["step"]) == 7


def test_what_is_no_item_of_orbax(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="holds no PyTree item of Orbax"):
        foreign_item.ForeignItem(str(tmp_path))
    with pytest.raises(checkpoint.CheckpointError, match="holds no PyTree item of Orbax"):
        foreign_item.ForeignItem(str(tmp_path / "nowhere"))
