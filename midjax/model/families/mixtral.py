# SPDX-License-Identifier: Apache-2.0
"""Mixtral: Mistral with experts, the weights of the chosen ones normalized."""

from collections.abc import Mapping
from typing import Any

from midjax.model import architecture
from midjax.model.families import layer_kinds, rope_keys, table

EXPERT_NAMES: Mapping[tuple[str, ...], str] = {
    ("router",): "block_sparse_moe.gate.weight",
    ("expert_gate",): "block_sparse_moe.experts.{expert}.w1.weight",
    ("expert_up",): "block_sparse_moe.experts.{expert}.w3.weight",
    ("expert_down",): "block_sparse_moe.experts.{expert}.w2.weight",
}


def _read(theirs: Mapping[str, Any]) -> dict[str, Any]:
    experts = architecture.Experts(
        count=theirs["num_local_experts"],
        per_token=theirs["num_experts_per_tok"],
        ffn_dim=theirs["intermediate_size"],
        normalized=True,
    )
    return layer_kinds.uniform_window(theirs) | {"experts": experts}


def _write(config: architecture.TransformerConfig) -> dict[str, Any]:
    experts = config.experts
    if experts is None:
        raise ValueError("A model of type 'mixtral' needs experts. Export it as 'mistral'.")
    return {
        "sliding_window": config.window_tokens,
        "num_local_experts": experts.count,
        "num_experts_per_tok": experts.per_token,
        "intermediate_size": experts.ffn_dim,
    }


MIXTRAL = table.Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    read=_read,
    write=_write,
    layer=EXPERT_NAMES,
    dialect=rope_keys.Dialect(default_theta=1e6),
    # Noise on the router's input while training: no released checkpoint has it.
    only={"layer_types": (), "router_jitter_noise": (0, 0.0)},
    defaults={"num_local_experts": 8, "num_experts_per_tok": 2, "num_key_value_heads": 8},
)
