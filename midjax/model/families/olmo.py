# SPDX-License-Identifier: Apache-2.0
"""OLMo 2 (norms after each part, queries and keys normed over their whole width), OLMo 3, OLMoE.

OLMo 3 adds windows in three of four layers; its YaRN is for the other layers only.
"""

from collections.abc import Mapping
from typing import Any

from midjax.model import architecture
from midjax.model.families import layer_kinds, rope_keys, table

_POST_NORMS: Mapping[tuple[str, ...], str] = {
    ("attn_post_norm",): "post_attention_layernorm.weight",
    ("mlp_post_norm",): "post_feedforward_layernorm.weight",
}


def _read_olmo2(theirs: Mapping[str, Any]) -> dict[str, Any]:
    bias = bool(theirs.get("attention_bias", False))
    return {"norm_placement": "post", "qk_norm": "whole", "qkv_bias": bias, "out_bias": bias}


def _read_olmo3(theirs: Mapping[str, Any]) -> dict[str, Any]:
    kinds = [
        "full_attention" if (layer + 1) % 4 == 0 else "sliding_attention"
        for layer in range(theirs["num_hidden_layers"])
    ]
    return _read_olmo2(theirs) | layer_kinds.window_by_layer(theirs, kinds)


def _write_olmo3(config: architecture.TransformerConfig) -> dict[str, Any]:
    return {
        "attention_bias": config.qkv_bias,
        "sliding_window": config.window_tokens,
        "layer_types": layer_kinds.layer_types(config),
    }


def _read_olmoe(theirs: Mapping[str, Any]) -> dict[str, Any]:
    bias, clip = bool(theirs.get("attention_bias", False)), theirs.get("clip_qkv")
    return {
        "qk_norm": "whole",
        "qkv_bias": bias,
        "out_bias": bias,
        "clip_qkv": None if clip is None else float(clip),
        "experts": architecture.Experts(
            count=theirs["num_experts"],
            per_token=theirs["num_experts_per_tok"],
            ffn_dim=theirs["intermediate_size"],
            normalized=bool(theirs.get("norm_topk_prob", False)),
        ),
    }


def _write_olmoe(config: architecture.TransformerConfig) -> dict[str, Any]:
    experts = config.experts
    if experts is None:
        raise ValueError("A model of type 'olmoe' needs experts.")
    return {
        "attention_bias": config.qkv_bias,
        "clip_qkv": config.clip_qkv,
        "num_experts": experts.count,
        "num_experts_per_tok": experts.per_token,
        "intermediate_size": experts.ffn_dim,
        "norm_topk_prob": experts.normalized,
    }


OLMO2 = table.Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    read=_read_olmo2,
    write=lambda config: {"attention_bias": config.qkv_bias},
    layer=_POST_NORMS,
)

OLMO3 = table.Family(
    model_type="olmo3",
    architecture="Olmo3ForCausalLM",
    read=_read_olmo3,
    write=_write_olmo3,
    layer=_POST_NORMS,
    defaults={"sliding_window": 4096},
    dialect=rope_keys.OLMO3,
    rope_by_kind=True,
)

OLMOE = table.Family(
    model_type="olmoe",
    architecture="OlmoeForCausalLM",
    read=_read_olmoe,
    write=_write_olmoe,
    only={"sliding_window": ()},
    defaults={
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
    },
)
