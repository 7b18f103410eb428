# SPDX-License-Identifier: Apache-2.0
"""Kinds of layers: the shortest pattern, and what a config.json may say of them."""

import pytest
import tiny_model

from midjax.model import hf
from midjax.model.families import layer_kinds


def test_the_shortest_pattern():
    assert layer_kinds.pattern(["full"] * 4) == ("full",)
    assert layer_kinds.pattern(["window", "full", "window"]) == ("window", "full")
    assert layer_kinds.pattern(["full", "window", "window"]) == ("full", "window", "window")


def test_layer_types_are_checked():
    theirs = hf.config_to_hf(
        tiny_model.config(
            family="olmo3",
            norm_placement="post",
            qk_norm="whole",
            layer_pattern=("window", "full"),
            window_tokens=4,
        )
    )
    assert theirs["layer_types"] == ["sliding_attention", "full_attention", "sliding_attention"]
    with pytest.raises(ValueError, match="needed are 3 of sliding_attention, full_attention"):
        hf.config_from_hf(theirs | {"layer_types": ["full_attention"]})
    with pytest.raises(ValueError, match="no sliding_window"):
        hf.config_from_hf(theirs | {"sliding_window": 0})
