# SPDX-License-Identifier: Apache-2.0
"""Phi-3 and Phi-3.5-MoE against transformers."""

import numpy as np
import parity
import pytest

from midjax.model import hf


def longrope(pairs, original, **more):
    return {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0 + 0.1 * i for i in range(pairs)],
        "long_factor": [2.0 + 0.7 * i for i in range(pairs)],
        "original_max_position_embeddings": original,
    } | more


@pytest.mark.parametrize(
    ("seed", "settings"),
    [
        (0, {}),
        (1, {"sliding_window": 7, "num_key_value_heads": 1, "tie_word_embeddings": True}),
        (
            2,
            {
                "hidden_size": 64,
                "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.75},
            },
        ),
        # Of the documents one is shorter than the original length and two are longer.
        (
            3,
            {
                "rope_parameters": longrope(6, 32, partial_rotary_factor=1.0),
                "original_max_position_embeddings": 32,
            },
        ),
        (
            4,
            {
                "num_attention_heads": 3,
                "num_key_value_heads": 3,
                "rope_parameters": longrope(6, 32, partial_rotary_factor=0.75),
                "original_max_position_embeddings": 32,
            },
        ),
    ],
)
def test_phi3(seed, settings, tmp_path):
    config, params, _ = parity.round_trip(tmp_path, "phi3", seed, **settings)
    assert {"wq", "wk", "wv", "w_gate", "w_up"} <= params["layers"].keys()
    assert (config.rope.scaling.kind == "longrope") == (seed >= 3)


@pytest.mark.parametrize(
    ("seed", "settings"),
    [
        (0, {"num_local_experts": 4}),
        (1, {"num_local_experts": 3, "attention_bias": True, "lm_head_bias": True}),
        (2, {"num_local_experts": 5, "router_jitter_noise": 0.3, "sliding_window": 6}),
    ],
)
def test_phimoe(seed, settings, tmp_path):
    config, _, _ = parity.round_trip(tmp_path, "phimoe", seed, **settings)
    assert config.norm == "layer" and config.experts is not None
    assert config.experts.routing == "sparsemixer"


def test_phimoe_longrope_within_the_original_length(tmp_path):
    """Beyond it, transformers 5.23 takes the short list with `long_mscale`: see the module."""
    scaling = longrope(6, 64, short_mscale=1.1, long_mscale=1.3)
    model = parity.torch_model("phimoe", num_local_experts=4, rope_parameters=scaling)
    model.save_pretrained(str(tmp_path))
    config, params = hf.load(str(tmp_path))
    parity.assert_same(config, params, model)
    long = parity.documents(config.vocab_size, (90,))
    (ours,) = parity.our_logits(config, params, long)
    assert np.isfinite(ours).all()
    assert np.abs(ours - parity.torch_logits(model, long[0])).max() > 1e-3
