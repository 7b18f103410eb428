# SPDX-License-Identifier: Apache-2.0
"""Qwen2 and 2.5 (biases of queries, keys and values), Qwen3 (norms of heads), Qwen3-MoE."""

from collections.abc import Mapping
from typing import Any

from midjax.model import architecture
from midjax.model.families import layer_kinds, table


def _windows(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Windows from layer `max_window_layers` on, where they are switched on at all."""
    if not (theirs.get("use_sliding_window") and theirs.get("sliding_window")):
        return {}
    first = theirs["max_window_layers"]
    kinds = [
        "sliding_attention" if layer >= first else "full_attention"
        for layer in range(theirs["num_hidden_layers"])
    ]
    return layer_kinds.window_by_layer(theirs, kinds)


def _window_keys(config: architecture.TransformerConfig) -> dict[str, Any]:
    types = layer_kinds.layer_types(config)
    first = types.index("sliding_attention") if config.window_tokens else config.layers
    return {
        "use_sliding_window": config.window_tokens is not None,
        "sliding_window": config.window_tokens,
        "max_window_layers": first,
        "layer_types": types,
    }


def _read_qwen3(theirs: Mapping[str, Any]) -> dict[str, Any]:
    bias = bool(theirs.get("attention_bias", False))
    return {"qk_norm": "head", "qkv_bias": bias, "out_bias": bias}


def _sparse_layers(theirs: Mapping[str, Any]) -> list[bool]:
    step, dense = theirs.get("decoder_sparse_step", 1), theirs.get("mlp_only_layers") or []
    return [
        layer not in dense and (layer + 1) % step == 0
        for layer in range(theirs["num_hidden_layers"])
    ]


def _read_moe(theirs: Mapping[str, Any]) -> dict[str, Any]:
    fields = _read_qwen3(theirs)
    if theirs.get("use_sliding_window", False):
        fields |= layer_kinds.uniform_window(theirs)
    # Later files have the second name.
    count, sparse = theirs.get("num_local_experts", theirs["num_experts"]), _sparse_layers(theirs)
    if any(sparse):
        fields["experts"] = architecture.Experts(
            count=count,
            per_token=theirs["num_experts_per_tok"],
            ffn_dim=theirs["moe_intermediate_size"],
            normalized=bool(theirs.get("norm_topk_prob", False)),
        )
        fields["dense_layers"] = tuple(i for i, has in enumerate(sparse) if not has)
    return fields


def _write_moe(config: architecture.TransformerConfig) -> dict[str, Any]:
    experts = config.experts
    if experts is None:
        raise ValueError("A model of type 'qwen3_moe' needs experts. Export it as 'qwen3'.")
    return {
        "attention_bias": config.qkv_bias,
        "use_sliding_window": config.window_tokens is not None,
        "sliding_window": config.window_tokens,
        "num_experts": experts.count,
        "num_experts_per_tok": experts.per_token,
        "moe_intermediate_size": experts.ffn_dim,
        "norm_topk_prob": experts.normalized,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(config.dense_layers),
    }


QWEN2 = table.Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    read=lambda theirs: {"qkv_bias": True} | _windows(theirs),
    write=_window_keys,
    defaults={"max_window_layers": 28, "sliding_window": 4096, "num_key_value_heads": 32},
)

QWEN3 = table.Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    read=lambda theirs: _read_qwen3(theirs) | _windows(theirs),
    write=lambda config: {"attention_bias": config.qkv_bias} | _window_keys(config),
    defaults={
        "max_window_layers": 28,
        "sliding_window": 4096,
        "num_key_value_heads": 32,
        "head_dim": 128,
    },
)

QWEN3_MOE = table.Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    read=_read_moe,
    write=_write_moe,
    only={"layer_types": ()},
    defaults={
        "sliding_window": 4096,
        "num_key_value_heads": 4,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
    },
)
