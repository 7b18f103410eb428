# SPDX-License-Identifier: Apache-2.0
"""The table of families, and config.json files as they are published."""

import math

import pytest

from midjax.model import hf
from midjax.model.families import registry

BASE = {
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 32768, "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "vocab_size": 32000,
    "torch_dtype": "bfloat16", "use_cache": True, "eos_token_id": [2, 3],
}  # fmt: skip
LISTS = {
    "short_factor": [1.0 + 0.01 * i for i in range(48)],
    "long_factor": [1.0 + 0.1 * i for i in range(48)],
}
# What files on the Hub hold where they are not like BASE -> fields of the model.
PUBLISHED = {
    "Llama-3.1-8B": (
        {
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "rope_theta": 500000.0,
            "pretraining_tp": 1, "mlp_bias": False, "attention_bias": False, "vocab_size": 128256,
            "rope_scaling": {
                "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192, "rope_type": "llama3",
            },
        },
        {"head_dim": 128, "tied_head": False, "rope.scaling.kind": "llama3"},
    ),
    "Mistral-7B-v0.1": (
        {"model_type": "mistral", "sliding_window": 4096},
        {"window_tokens": 4096, "layer_pattern": ("window",)},
    ),
    "Mistral-7B-v0.3": (
        {"model_type": "mistral", "sliding_window": None, "head_dim": None, "rope_theta": 1e6},
        {"window_tokens": None, "layer_pattern": ("full",), "head_dim": 128},
    ),
    "Mistral without the key": ({"model_type": "mistral"}, {"window_tokens": 4096}),
    "Qwen2.5-7B": (
        {
            "model_type": "qwen2", "use_sliding_window": False, "sliding_window": 131072,
            "max_window_layers": 28, "use_mrope": False, "rope_theta": 1e6,
        },
        {"window_tokens": None, "qkv_bias": True, "out_bias": False},
    ),
    "Qwen3-0.6B": (
        {"model_type": "qwen3", "hidden_size": 1024, "num_attention_heads": 16, "head_dim": 128,
         "sliding_window": None, "use_sliding_window": False, "tie_word_embeddings": True},
        {"head_dim": 128, "qk_norm": "head", "tied_head": True},
    ),
    "Phi-4-mini": (
        {
            "model_type": "phi3", "hidden_size": 3072, "num_attention_heads": 24,
            "partial_rotary_factor": 0.75, "rope_scaling": {"type": "longrope", **LISTS},
            "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
            "tie_word_embeddings": True, "sliding_window": 262144, "attention_bias": False,
            "lm_head_bias": False, "mlp_bias": False, "interpolate_factor": 1,
        },
        {"rope.rotary_dims": 96, "rope.scaling.factor": 32.0, "tied_head": True},
    ),
    "Phi-3.5-MoE": (
        {
            "model_type": "phimoe", "architectures": ["PhiMoEForCausalLM"],
            "input_jitter_noise": 0.01, "router_jitter_noise": 0.01, "num_local_experts": 16,
            "num_experts_per_tok": 2, "attention_bias": True, "lm_head_bias": True,
            "sliding_window": 131072, "original_max_position_embeddings": 4096,
            "max_position_embeddings": 131072,
            "rope_scaling": {
                "type": "longrope", "short_mscale": 1.243163121016122,
                "long_mscale": 1.243163121016122, "original_max_position_embeddings": 4096,
                **{key: [*values, *values[:16]] for key, values in LISTS.items()},
            },
        },
        {"norm": "layer", "head_bias": True, "experts.routing": "sparsemixer"},
    ),
    "Olmo-3-7B": (
        {
            "model_type": "olmo3", "sliding_window": 4096, "rope_theta": 500000,
            "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 8,
            "rope_scaling": {
                "attention_factor": 1.2079441541679836, "beta_fast": 32, "beta_slow": 1,
                "factor": 8.0, "original_max_position_embeddings": 8192, "rope_type": "yarn",
            },
        },
        {"layer_pattern": ("window",) * 3 + ("full",), "rope.scaling.kind": "yarn",
         "window_rope.scaling.kind": "none"},
    ),
    "OLMoE without its epsilon": (
        {"model_type": "olmoe", "rms_norm_eps": None, "num_experts": 64, "num_experts_per_tok": 8,
         "norm_topk_prob": False, "clip_qkv": None, "intermediate_size": 1024},
        {"experts.count": 64, "experts.normalized": False, "qk_norm": "whole"},
    ),
    "gemma-2-2b, soft caps left out": (
        {"model_type": "gemma2", "hidden_size": 2304, "num_attention_heads": 8, "head_dim": 256,
         "num_key_value_heads": 4, "hidden_activation": "gelu_pytorch_tanh",
         "hidden_act": "gelu_pytorch_tanh", "cache_implementation": "hybrid"},
        {"attention_softcap": 50.0, "logits_softcap": 30.0, "activation": "gelu_tanh",
         "embed_scale": math.sqrt(2304), "tied_head": True},
    ),
    "SmolLM3-3B": (
        {"model_type": "smollm3", "no_rope_layers": [1, 1, 1, 0] * 8, "use_sliding_window": False,
         "layer_types": ["full_attention"] * 32, "sliding_window": None, "rope_theta": 5e6},
        {"layer_pattern": ("full", "full", "full", "full_nope"), "tied_head": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_read(name):
    theirs, fields = PUBLISHED[name]
    if "epsilon" in name:
        theirs = {key: value for key, value in theirs.items() if key != "rms_norm_eps"}
        base = {key: value for key, value in BASE.items() if key != "rms_norm_eps"}
    else:
        base = BASE
    config = hf.config_from_hf(base | theirs)
    for path, want in fields.items():
        found = config
        for part in path.split("."):
            found = getattr(found, part)
        assert found == want, path


def test_families():
    assert set(registry.FAMILIES) == {
        "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "phi3", "phimoe", "olmo2",
        "olmo3", "olmoe", "gemma2", "gemma3_text", "smollm3",
    }  # fmt: skip
    assert registry.family("olmo3").architecture == "Olmo3ForCausalLM"


def test_what_is_not_in_the_table_lists_what_is():
    with pytest.raises(ValueError, match="'mamba' is not supported; supported: gemma2, gemma3"):
        registry.family("mamba")
