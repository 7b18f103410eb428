# SPDX-License-Identifier: Apache-2.0
"""Qwen2, Qwen3 and Qwen3-MoE against transformers."""

import parity
import pytest

EXPERTS = {
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "head_dim": 20,
}


@pytest.mark.parametrize(
    ("seed", "settings"),
    [
        (0, {}),
        (1, {"tie_word_embeddings": True, "num_key_value_heads": 1}),
        (2, {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}),
        (3, {"num_attention_heads": 8, "num_key_value_heads": 1}),
    ],
)
def test_qwen2(seed, settings, tmp_path):
    config, _, _ = parity.round_trip(tmp_path, "qwen2", seed, **settings)
    assert config.qkv_bias and not config.out_bias
    if settings.get("use_sliding_window"):
        assert config.layer_pattern == ("full", "window", "window")


@pytest.mark.parametrize(
    ("seed", "settings"),
    [
        (0, {"head_dim": 20}),
        (1, {"head_dim": 16, "tie_word_embeddings": True, "attention_bias": True}),
        (
            2,
            {
                "head_dim": 12,
                "use_sliding_window": True,
                "sliding_window": 5,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
        ),
    ],
)
def test_qwen3(seed, settings, tmp_path):
    config, _, _ = parity.round_trip(tmp_path, "qwen3", seed, **settings)
    assert config.qk_norm == "head"


@pytest.mark.parametrize(
    ("seed", "settings"),
    [
        (0, {"norm_topk_prob": True}),
        (1, {"norm_topk_prob": False, "num_experts_per_tok": 1}),
        (2, {"norm_topk_prob": True, "mlp_only_layers": [0]}),
        (3, {"decoder_sparse_step": 2, "num_hidden_layers": 5, "num_experts_per_tok": 6}),
    ],
)
def test_qwen3_moe(seed, settings, tmp_path):
    config, _, _ = parity.round_trip(tmp_path, "qwen3_moe", seed, **(EXPERTS | settings))
    assert config.experts is not None
    dense = {2: (0,), 3: (0, 2, 4)}.get(seed, ())
    assert config.dense_layers == dense
