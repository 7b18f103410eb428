# SPDX-License-Identifier: Apache-2.0
"""Gemma 2 and 3 against transformers."""

import parity
import pytest

from midjax.model import hf

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


def test_the_language_model_of_a_gemma3_that_can_see(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    text = parity.BASE | {"head_dim": 20, "sliding_window": 6, "pad_token_id": 0}
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    settings = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=1
    )
    model = transformers.Gemma3ForConditionalGeneration(settings).float().eval()
    model.save_pretrained(str(tmp_path / "whole"))
    config, params = hf.load(str(tmp_path / "whole"))
    assert config.family == "gemma3_text"
    assert "tensors outside of language_model.* are left out" in capsys.readouterr().out
    parity.assert_same(config, params, model)
    hf.save(str(tmp_path / "text"), config, params, "float32")
    back = transformers.AutoModelForCausalLM.from_pretrained(
        str(tmp_path / "text"), attn_implementation="eager"
    )
    assert type(back).__name__ == "Gemma3ForCausalLM"
    parity.assert_same(config, params, back)


def test_keys_that_files_on_the_hub_leave_out():
    """The text_config of gemma-3-4b, as published."""
    theirs = {
        "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240,
        "num_hidden_layers": 34, "sliding_window": 1024,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    }  # fmt: skip
    config = hf.config_from_hf(theirs)
    assert (config.heads, config.kv_heads, config.head_dim) == (8, 4, 256)
    assert config.rope.theta == 1e6 and config.rope.scaling.kind == "pi"
    assert config.window_rope is not None and config.window_rope.scaling.kind == "none"
    assert config.layer_pattern == ("window",) * 5 + ("full",) and config.tied_head
