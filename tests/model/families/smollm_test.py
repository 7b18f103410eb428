# SPDX-License-Identifier: Apache-2.0
"""SmolLM3 against transformers."""

import parity
import pytest

from midjax.model import hf


@pytest.mark.parametrize(
    ("seed", "settings"),
    [
        (0, {"num_hidden_layers": 4}),
        (1, {"no_rope_layers": [0, 1, 1], "tie_word_embeddings": False, "attention_bias": True}),
        (2, {"num_hidden_layers": 5, "mlp_bias": True, "num_key_value_heads": 1}),
        (3, {"use_sliding_window": True, "sliding_window": 6, "num_hidden_layers": 4}),
    ],
)
def test_smollm3(seed, settings, tmp_path):
    config, _, _ = parity.round_trip(tmp_path, "smollm3", seed, **settings)
    wanted = {
        0: ("full", "full", "full", "full_nope"),
        1: ("full_nope", "full", "full"),
        3: ("full", "full", "full", "window_nope"),
    }
    if seed in wanted:
        assert config.layer_pattern == wanted[seed]


def test_too_few_layers():
    theirs = parity.BASE | {"model_type": "smollm3", "rms_norm_eps": 1e-6, "no_rope_layers": [1]}
    with pytest.raises(ValueError, match="1 no_rope_layers for 3 layers"):
        hf.config_from_hf(theirs)
