# SPDX-License-Identifier: Apache-2.0
"""Pieces of our arrays, put together, are the tensors of a checkpoint. On four devices: e2e/."""

import jax.numpy as jnp
import numpy as np
import pytest

from midjax.model import hf_rows
from midjax.model.families import table

D, N, H, V = 6, 4, 2, 10


def numbers(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("piece_bytes", [1, 100, 1 << 25])
@pytest.mark.parametrize("on_device", [True, False])
def test_a_fused_tensor(piece_bytes, on_device, monkeypatch):
    """q, k below it: matrices of theirs are [out, in]."""
    monkeypatch.setattr(hf_rows, "PIECE_BYTES", piece_bytes)
    q, k = numbers(3, D, N, H), -numbers(3, D, 2, H)
    parts = tuple(table.Part(("layers", n), (1,), x.shape[1:]) for n, x in (("wq", q), ("wk", k)))
    params = {"layers": {"wq": q, "wk": k}}
    if on_device:
        params = {"layers": {name: jnp.asarray(x) for name, x in params["layers"].items()}}
    pieces = list(hf_rows.theirs(table.Tensor("qkv", parts), params))
    want = np.concatenate([x[1].reshape(D, -1).T for x in (q, k)])
    np.testing.assert_array_equal(np.concatenate(pieces), want)
    assert len(pieces) == {1: N + 2, 100: 2 + 1, 1 << 25: 2}[piece_bytes]


@pytest.mark.parametrize(
    ("name", "index", "ours", "want"),
    [
        ("embed", (), numbers(V, D), numbers(V, D)),
        ("q_bias", (2,), numbers(3, N, H), numbers(3, N, H)[2].reshape(-1)),
        ("wo", (0,), numbers(3, N, H, D), numbers(3, N, H, D)[0].reshape(-1, D).T),
        ("expert_up", (1, 2), numbers(2, 3, D, V), numbers(2, 3, D, V)[1, 2].T),
    ],
)
def test_other_layouts(name, index, ours, want, monkeypatch):
    monkeypatch.setattr(hf_rows, "PIECE_BYTES", 24)
    path = (name,) if name == "embed" else ("layers", name)
    part = table.Part(path, index, ours.shape[len(index) :])
    params = {name: jnp.asarray(ours)} if name == "embed" else {"layers": {name: jnp.asarray(ours)}}
    pieces = list(hf_rows.theirs(table.Tensor("x", (part,)), params))
    assert len(pieces) > 1 and max(piece.nbytes for piece in pieces) <= 40
    np.testing.assert_array_equal(np.concatenate(pieces), want)
