# SPDX-License-Identifier: Apache-2.0
"""Llama 2, 3, 3.1 and 3.2, and what has its shape (Yi, SmolLM2); Mistral, which adds a window."""

from collections.abc import Mapping
from typing import Any

from midjax.model import architecture
from midjax.model.families import layer_kinds, table


def _read_llama(theirs: Mapping[str, Any]) -> dict[str, Any]:
    bias = bool(theirs.get("attention_bias", False))
    return {"qkv_bias": bias, "out_bias": bias, "mlp_bias": bool(theirs.get("mlp_bias", False))}


def _write_llama(config: architecture.TransformerConfig) -> dict[str, Any]:
    return {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}


LLAMA = table.Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    read=_read_llama,
    write=_write_llama,
    only={"sliding_window": ()},
    even_width=True,
)

MISTRAL = table.Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    read=layer_kinds.uniform_window,
    write=lambda config: {"sliding_window": config.window_tokens},
    only={"layer_types": ()},
    defaults={"sliding_window": 4096, "num_key_value_heads": 8},
)
