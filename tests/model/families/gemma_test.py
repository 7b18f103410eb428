# SPDX-License-Identifier: Apache-2.0
"""Gemma 2 and 3 against transformers."""

import parity
import pytest

BY_KIND = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}


@pytest.mark.parametrize(
    ("seed", "settings"),
    [
        (0, {"head_dim": 20, "sliding_window": 6}),
        (1, {"head_dim": 12, "query_pre_attn_scalar": 17, "sliding_window": 500}),
        (
            2,
            {
                "head_dim": 16,
                "sliding_window": 3,
                "attn_logit_softcapping": 2.0,
                "final_logit_softcapping": 3.0,
                "num_key_value_heads": 1,
                "tie_word_embeddings": False,
            },
        ),
    ],
)
def test_gemma2(seed, settings, tmp_path):
    config, _, _ = parity.round_trip(tmp_path, "gemma2", seed, **settings)
    assert config.layer_pattern == ("window", "full")
    assert config.attention_softcap == settings.get("attn_logit_softcapping", 50.0)


@pytest.mark.parametrize(
    ("seed", "settings"),
    [
        (0, {"head_dim": 20, "sliding_window": 6, "num_hidden_layers": 7}),
        (1, {"head_dim": 12, "sliding_window": 4, "rope_parameters": BY_KIND}),
        (
            2,
            {
                "head_dim": 16,
                "sliding_window": 5,
                "query_pre_attn_scalar": 48,
                "layer_types": ["full_attention", "sliding_attention", "full_attention"],
                "num_key_value_heads": 4,
            },
        ),
    ],
)
def test_gemma3(seed, settings, tmp_path):
    config, _, _ = parity.round_trip(tmp_path, "gemma3_text", seed, **settings)
    assert config.qk_norm == "head" and config.norm == "rms_plus_one" and config.tied_head
    if seed == 0:
        assert config.layer_pattern == ("window",) * 5 + ("full",)
    if "window" in config.layer_pattern:
        assert config.window_rope is not None and config.window_rope.theta == 1e4
