# SPDX-License-Identifier: Apache-2.0
"""SmolLM3: every fourth layer has no rotary embedding."""

from collections.abc import Mapping
from typing import Any

from midjax.model import architecture
from midjax.model.families import layer_kinds, rope_keys, table


def _read(theirs: Mapping[str, Any]) -> dict[str, Any]:
    layers, interval = theirs["num_hidden_layers"], theirs["no_rope_layer_interval"]
    turned = theirs.get("no_rope_layers")
    if turned is None:
        turned = [int((layer + 1) % interval != 0) for layer in range(layers)]
    if len(turned) < layers:
        raise ValueError(
            f"config.json has {len(turned)} no_rope_layers for {layers} layers; 1 means that a "
            "layer has a rotary embedding."
        )
    windowed = bool(theirs.get("use_sliding_window") and theirs.get("sliding_window"))
    types = ["sliding_attention" if windowed and not has else "full_attention" for has in turned]
    fields = layer_kinds.window_by_layer(theirs, types[:layers])
    if fields and not windowed:
        raise ValueError(
            "config.json has layers of type sliding_attention and use_sliding_window = false, "
            "which transformers computes in two ways. Make them agree."
        )
    pattern = fields.get("layer_pattern", ("full",))
    kinds: list[Any] = [
        pattern[layer % len(pattern)] + ("" if has else "_nope")
        for layer, has in enumerate(turned[:layers])
    ]
    bias = bool(theirs.get("attention_bias", False))
    return fields | {
        "layer_pattern": layer_kinds.pattern(kinds),
        "qkv_bias": bias,
        "out_bias": bias,
        "mlp_bias": bool(theirs.get("mlp_bias", False)),
    }


def _write(config: architecture.TransformerConfig) -> dict[str, Any]:
    return {
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "no_rope_layers": [
            int(not config.layer_type(layer).endswith("nope")) for layer in range(config.layers)
        ],
        "use_sliding_window": config.window_tokens is not None,
        "sliding_window": config.window_tokens,
        "layer_types": layer_kinds.layer_types(config),
    }


SMOLLM3 = table.Family(
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    read=_read,
    write=_write,
    defaults={
        "no_rope_layer_interval": 4,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    },
    dialect=rope_keys.Dialect(default_theta=2e6),
)
