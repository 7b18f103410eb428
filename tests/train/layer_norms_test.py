# SPDX-License-Identifier: Apache-2.0
"""Norms by layer against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run as tiny

from midjax.model import transformer
from midjax.train import layer_norms


def test_norms_are_those_of_numpy_when_they_are_due_and_zero_otherwise():
    rng = np.random.default_rng(0)
    tree = {
        "embed": rng.standard_normal((5, 3), np.float32),
        "layers": {"wq": rng.standard_normal((2, 3, 4), np.float32), "norm": np.ones((2, 3))},
    }
    halved = jax.tree.map(lambda x: x.astype(jnp.bfloat16) / 2, tree)
    measure = jax.jit(layer_norms.measure)
    found = measure(True, {"grad": tree, "param": halved})
    for k in range(2):
        want = np.linalg.norm(tree["layers"]["wq"][k])
        assert found["grad"]["layers/wq"][k] == pytest.approx(want, rel=1e-6)
        assert found["param"]["layers/wq"][k] == pytest.approx(want / 2, rel=1e-2)
    assert found["grad"]["embed"] == pytest.approx(np.linalg.norm(tree["embed"]), rel=1e-6)
    assert {x.dtype.name for x in jax.tree.leaves(found)} == {"float32"}
    idle = measure(False, {"grad": tree, "param": halved})
    assert jax.tree.structure(idle) == jax.tree.structure(found)
    assert not any(x.any() for x in jax.tree.leaves(idle))


def test_rows_name_the_layers_that_have_a_parameter():
    found = {"grad": {"head": np.float32(2), "layers/w_up": np.array([0.5]),
                      "layers/wq": np.array([1.0, 3.0])}}  # fmt: skip
    assert layer_norms.row(7, found, {"w_up": (1,), "wq": (0, 1)}) == {
        "step": 7, "grad_norm/head": 2.0, "grad_norm/layers/1/w_up": 0.5,
        "grad_norm/layers/0/wq": 1.0, "grad_norm/layers/1/wq": 3.0,
    }  # fmt: skip


def test_every_parameter_of_a_model_has_its_layers():
    shapes = transformer.abstract(tiny.model())
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    found = jax.device_get(layer_norms.measure(True, {"param": zeros}))
    row = layer_norms.row(1, found, transformer.layers_of(tiny.model()))
    assert len(row) == 1 + 3 + 2 * len(shapes["layers"])
