# SPDX-License-Identifier: Apache-2.0
"""What a config may say, and what it answers about its layers."""

import dataclasses

import pytest
import tiny_model

from midjax.model import architecture

EXPERTS = architecture.Experts(count=4, per_token=2, ffn_dim=8)


def test_layers_by_pattern():
    config = tiny_model.config(
        layers=5,
        layer_pattern=("window", "full_nope", "full"),
        window_tokens=7,
        window_rope=tiny_model.PI,
        rope=tiny_model.YARN,
        experts=EXPERTS,
        dense_layers=(0, 3),
    )
    kinds = [config.layer_type(i) for i in range(5)]
    assert kinds == ["window", "full_nope", "full", "window", "full_nope"]
    assert [config.has_experts(i) for i in range(5)] == [False, True, True, False, True]
    assert config.rope_of("window") == tiny_model.PI and config.window_of("window") == 7
    assert config.rope_of("full") == tiny_model.YARN and config.window_of("full") is None
    assert config.rope_of("full_nope") is None and config.rope_of("window_nope") is None
    without = dataclasses.replace(config, window_rope=None)
    assert without.rope_of("window") == tiny_model.YARN


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": 0}, r"layers must be 1 or more, got 0"),
        ({"kv_heads": 3}, "kv_heads must divide heads, got 3 and 4"),
        ({"attention_softcap": 0.0}, r"attention_softcap must be over 0, got 0\.0"),
        ({"layer_pattern": ()}, "kinds of layers"),
        ({"layer_pattern": ("window",)}, "window_tokens belongs to layers of the kinds 'window'"),
        ({"window_tokens": 8}, "got 8 with layer_pattern"),
        ({"window_rope": tiny_model.PI}, "no layer is of the kind 'window'"),
        ({"dense_layers": (0,)}, "names layers of a mixture of experts"),
        ({"experts": EXPERTS, "dense_layers": (9,)}, r"dense_layers = \(9,\)"),
        ({"head_dim": 15}, "must be even"),
    ],
)
def test_refusals(changes, words):
    with pytest.raises(ValueError, match=words):
        tiny_model.config(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"per_token": 5}, "1 <= per_token <= count"),
        ({"routing": "sparsemixer"}, "sparsemixer_eps belongs to routing 'sparsemixer'"),
        ({"sparsemixer_eps": 0.1}, "sparsemixer_eps belongs"),
        (
            {"routing": "sparsemixer", "sparsemixer_eps": 0.1, "per_token": 1},
            "chooses 2 experts per token",
        ),
    ],
)
def test_experts_refusals(changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(EXPERTS, **changes)
