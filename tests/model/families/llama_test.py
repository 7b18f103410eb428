# SPDX-License-Identifier: Apache-2.0
"""Llama and Mistral against transformers."""

import parity
import pytest

from midjax.model import hf

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 50000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize(
    ("seed", "settings"),
    [
        (0, {}),
        (1, {"head_dim": 16, "num_key_value_heads": 1, "tie_word_embeddings": True}),
        (2, {"num_attention_heads": 8, "hidden_size": 64, "num_key_value_heads": 8}),
        (3, {"attention_bias": True, "mlp_bias": True, "head_dim": 20}),
        (4, {"num_attention_heads": 8, "num_key_value_heads": 1, "rope_parameters": LLAMA3}),
    ],
)
def test_llama(seed, settings, tmp_path):
    config, _, _ = parity.round_trip(tmp_path, "llama", seed, **settings)
    assert config.qkv_bias is bool(settings.get("attention_bias"))


@pytest.mark.parametrize(
    ("seed", "settings"),
    [
        (0, {"sliding_window": None}),
        (1, {"sliding_window": 9, "head_dim": 20}),
        (2, {"sliding_window": 1, "num_key_value_heads": 1}),
        (3, {"sliding_window": 4096, "num_attention_heads": 8, "num_key_value_heads": 1}),
    ],
)
def test_mistral(seed, settings, tmp_path):
    config, _, _ = parity.round_trip(tmp_path, "mistral", seed, **settings)
    assert config.window_tokens == settings["sliding_window"]


def test_a_width_that_transformers_refuses_is_refused():
    import tiny_model

    with pytest.raises(ValueError, match="no multiple of its heads: dim 34, heads 4"):
        hf.config_to_hf(tiny_model.config(dim=34))


def test_a_window_is_no_llama():
    theirs = parity.BASE | {"model_type": "llama", "rms_norm_eps": 1e-5, "sliding_window": 4096}
    with pytest.raises(ValueError, match="sliding_window = 4096, which midjax does not compute"):
        hf.config_from_hf(theirs)
