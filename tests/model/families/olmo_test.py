# SPDX-License-Identifier: Apache-2.0
"""OLMo 2, OLMo 3 and OLMoE against transformers."""

import parity
import pytest

YARN = {
    "rope_type": "yarn",
    "rope_theta": 50000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32,
    "beta_slow": 1,
}


@pytest.mark.parametrize(
    ("seed", "settings"),
    [
        (0, {}),
        (1, {"tie_word_embeddings": True, "num_key_value_heads": 4}),
        (2, {"attention_bias": True, "num_key_value_heads": 1, "head_dim": 20}),
    ],
)
def test_olmo2(seed, settings, tmp_path):
    config, params, _ = parity.round_trip(tmp_path, "olmo2", seed, **settings)
    assert config.norm_placement == "post" and config.qk_norm == "whole"
    assert "attn_norm" not in params["layers"]


@pytest.mark.parametrize(
    ("seed", "settings"),
    [
        (0, {"num_hidden_layers": 4, "sliding_window": 6}),
        (1, {"num_hidden_layers": 6, "sliding_window": 5, "num_key_value_heads": 4}),
        (
            2,
            {
                "num_hidden_layers": 4,
                "sliding_window": 8,
                "rope_parameters": {
                    "full_attention": YARN,
                    "sliding_attention": {"rope_type": "default", "rope_theta": 50000.0},
                },
            },
        ),
    ],
)
def test_olmo3(seed, settings, tmp_path):
    config, _, _ = parity.round_trip(tmp_path, "olmo3", seed, **settings)
    assert config.layer_pattern == ("window", "window", "window", "full")
    if seed == 2:  # YaRN on full-attention layers only
        assert config.rope.scaling.kind == "yarn" and config.window_rope is not None
        assert config.window_rope.scaling.kind == "none"


@pytest.mark.parametrize(
    ("seed", "settings"),
    [
        (0, {"num_experts": 6, "num_experts_per_tok": 3}),
        (1, {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True, "clip_qkv": 0.3}),
    ],
)
def test_olmoe(seed, settings, tmp_path):
    config, _, _ = parity.round_trip(tmp_path, "olmoe", seed, **settings)
    assert config.clip_qkv == settings.get("clip_qkv")
