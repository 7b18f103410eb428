# SPDX-License-Identifier: Apache-2.0
"""Gemma 2 (soft caps, windows in every other layer) and Gemma 3 (five of six, normed heads).

Both scale embeddings by sqrt(dim), add 1 to the weight of a norm, have norms before and after each
part, and scale scores by 1 / sqrt(query_pre_attn_scalar). Of Gemma 3 the language model is meant,
gemma3_text; `hf` takes it out of a gemma3 that can see.
"""

import math
from collections.abc import Mapping
from typing import Any

from midjax.model import architecture
from midjax.model.families import layer_kinds, rope_keys, table

_NORMS: Mapping[tuple[str, ...], str] = {
    ("attn_post_norm",): "post_attention_layernorm.weight",
    ("mlp_norm",): "pre_feedforward_layernorm.weight",
    ("mlp_post_norm",): "post_feedforward_layernorm.weight",
}


def _read(theirs: Mapping[str, Any], windows_per_full: int, qk_norm: str) -> dict[str, Any]:
    period = windows_per_full + 1
    kinds = [
        "full_attention" if (layer + 1) % period == 0 else "sliding_attention"
        for layer in range(theirs["num_hidden_layers"])
    ]
    bias = bool(theirs.get("attention_bias", False))
    caps = {
        field: None if theirs.get(key) is None else float(theirs[key])
        for field, key in (
            ("attention_softcap", "attn_logit_softcapping"),
            ("logits_softcap", "final_logit_softcapping"),
        )
    }
    scalar = theirs["query_pre_attn_scalar"]
    head_dim = theirs.get("head_dim") or theirs["hidden_size"] // theirs["num_attention_heads"]
    return (
        layer_kinds.window_by_layer(theirs, kinds)
        | caps
        | {
            "norm": "rms_plus_one",
            "norm_placement": "both",
            "qk_norm": qk_norm,
            "qkv_bias": bias,
            "out_bias": bias,
            "embed_scale": math.sqrt(theirs["hidden_size"]),
            "attention_scale": None if scalar == head_dim else scalar**-0.5,
        }
    )


def _write(config: architecture.TransformerConfig) -> dict[str, Any]:
    scalar: float = config.head_dim
    if config.attention_scale is not None:
        scalar = config.attention_scale**-2
        if math.isclose(scalar, round(scalar), rel_tol=1e-12):
            scalar = round(scalar)
    return {
        "attention_bias": config.qkv_bias,
        "query_pre_attn_scalar": scalar,
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logits_softcap,
        "sliding_window": config.window_tokens,
        "layer_types": layer_kinds.layer_types(config),
        "hidden_act": "gelu_pytorch_tanh" if config.activation == "gelu_tanh" else "gelu",
    }


_DEFAULTS: Mapping[str, Any] = {
    "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "head_dim": 256,
    "sliding_window": 4096,
    "num_key_value_heads": 4,
}
# What transformers takes where a file has no such key; null means none.
_DEFAULTS2: Mapping[str, Any] = {
    **_DEFAULTS,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}

# Of the keys that files on the Hub leave out, what transformers then takes.
_DEFAULTS3: Mapping[str, Any] = {
    **_DEFAULTS,
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
}

GEMMA2 = table.Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    read=lambda theirs: _read(theirs, 1, "none"),
    write=_write,
    layer=_NORMS,
    defaults=_DEFAULTS2,
    activation_key="hidden_activation",
    even_width=True,
)

GEMMA3 = table.Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    read=lambda theirs: _read(theirs, theirs.get("sliding_window_pattern", 6) - 1, "head"),
    write=_write,
    layer=_NORMS,
    defaults=_DEFAULTS3,
    activation_key="hidden_activation",
    dialect=rope_keys.GEMMA3,
    rope_by_kind=True,
    even_width=True,
)
