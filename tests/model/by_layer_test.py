# SPDX-License-Identifier: Apache-2.0
"""Layer by layer is what the whole pass computes. On four devices: e2e/export_mesh_test."""

import jax
import numpy as np
import pytest
import tiny_model as tiny

from midjax.model import architecture, by_layer, hf_rows, sharding, transformer

EXPERTS = architecture.Experts(count=4, per_token=2, ffn_dim=24, normalized=True)


@pytest.mark.parametrize(
    "settings",
    [
        {"tied_head": True, "embed_scale": 3.0, "logits_softcap": 5.0},
        {"layers": 5, "layer_pattern": ("window", "full"), "window_tokens": 7, "head_bias": True},
        {"experts": EXPERTS, "dense_layers": (0,)},
    ],
    ids=["tied", "windows", "experts"],
)
def test_the_same_logits(settings, monkeypatch):
    monkeypatch.setattr(hf_rows, "PIECE_BYTES", 4 * 32 * 40)  # of 96 tokens, 40 at a time
    config = tiny.config(**settings)
    params = tiny.params(config)
    rows = tiny.rows(2, 24)
    want = jax.jit(transformer.apply, static_argnums=0)(config, params, *rows)
    mesh = sharding.make(sharding.Mesh(data=1, fsdp=1, tensor=1))
    hidden = by_layer.hidden(config, params, np.asarray(rows[0]), rows[1], rows[2], mesh)
    pieces = list(by_layer.logits(config, params, hidden))
    assert [begin for begin, _ in pieces] == [0, 40, 80]
    found = np.concatenate([piece for _, piece in pieces], axis=-1)
    np.testing.assert_allclose(found, want, atol=1e-5)
