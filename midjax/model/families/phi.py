# SPDX-License-Identifier: Apache-2.0
"""Phi-3, 3.5 and 4 (fused projections, LongRoPE, partial rotary); Phi-3.5-MoE (LayerNorm, biases).

Phi-4 itself, of 14 B parameters, is of type phi3. The noise on the router's input that Phi-3.5-MoE
was trained with (`input_jitter_noise`) is not applied.
"""

from collections.abc import Mapping
from typing import Any

from midjax.model import architecture
from midjax.model.families import layer_kinds, mixtral, rope_keys, table


def _read_moe(theirs: Mapping[str, Any]) -> dict[str, Any]:
    bias = bool(theirs.get("attention_bias", False))
    return layer_kinds.uniform_window(theirs) | {
        "norm": "layer",
        "qkv_bias": bias,
        "out_bias": bias,
        "head_bias": bool(theirs.get("lm_head_bias", False)),
        "experts": architecture.Experts(
            count=theirs["num_local_experts"],
            per_token=theirs["num_experts_per_tok"],
            ffn_dim=theirs["intermediate_size"],
            routing="sparsemixer",
            sparsemixer_eps=float(theirs["router_jitter_noise"]),
        ),
    }


def _write_moe(config: architecture.TransformerConfig) -> dict[str, Any]:
    experts = config.experts
    if experts is None:
        raise ValueError("A model of type 'phimoe' needs experts. Export it as 'phi3'.")
    return {
        "sliding_window": config.window_tokens,
        "attention_bias": config.qkv_bias,
        "lm_head_bias": config.head_bias,
        "num_local_experts": experts.count,
        "num_experts_per_tok": experts.per_token,
        "intermediate_size": experts.ffn_dim,
        "router_jitter_noise": experts.sparsemixer_eps,
        "input_jitter_noise": 0.0,
    }


PHI3 = table.Family(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    read=layer_kinds.uniform_window,
    write=lambda config: {"sliding_window": config.window_tokens},
    layer={
        ("wq", "wk", "wv"): "self_attn.qkv_proj.weight",
        ("w_gate", "w_up"): "mlp.gate_up_proj.weight",
    },
    only={"attention_bias": (False,)},
    dialect=rope_keys.PHI3,
)

PHIMOE = table.Family(
    model_type="phimoe",
    architecture="PhimoeForCausalLM",
    other_architectures=("PhiMoEForCausalLM",),  # that of the checkpoints on the Hub
    read=_read_moe,
    write=_write_moe,
    layer=mixtral.EXPERT_NAMES,
    dialect=rope_keys.PHIMOE,
    defaults={"router_jitter_noise": 0.01, "num_experts_per_tok": 2, "num_local_experts": 16},
)
