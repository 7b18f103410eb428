# SPDX-License-Identifier: Apache-2.0
"""Llama (LlamaForCausalLM): tensor names and config keys.

A Hugging Face matrix is [out, in]; ours is [*in, *out]. `inner` counts our input axes after the
layer axis: theirs = ours.reshape(prod(in), prod(out)).T, and 0 means that the two are the same.
Both use the half-split rotary layout, so no rows are permuted.
"""

from collections.abc import Mapping
from typing import Any

from midjax.model import transformer
from midjax.model.families import rope_keys

ARCHITECTURE = "LlamaForCausalLM"

# Ours -> (theirs, inner).
ENDS: Mapping[str, tuple[str, int]] = {
    "embed": ("model.embed_tokens.weight", 0),
    "final_norm": ("model.norm.weight", 0),
    "head": ("lm_head.weight", 1),
}
LAYER: Mapping[str, tuple[str, int]] = {
    "attn_norm": ("model.layers.{}.input_layernorm.weight", 0),
    "wq": ("model.layers.{}.self_attn.q_proj.weight", 1),
    "wk": ("model.layers.{}.self_attn.k_proj.weight", 1),
    "wv": ("model.layers.{}.self_attn.v_proj.weight", 1),
    "wo": ("model.layers.{}.self_attn.o_proj.weight", 2),
    "mlp_norm": ("model.layers.{}.post_attention_layernorm.weight", 0),
    "w_gate": ("model.layers.{}.mlp.gate_proj.weight", 1),
    "w_up": ("model.layers.{}.mlp.up_proj.weight", 1),
    "w_down": ("model.layers.{}.mlp.down_proj.weight", 1),
}
# Tensors of old checkpoints that hold nothing learned.
IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)

# Our field -> their key, for numbers that mean the same.
_SAME: Mapping[str, str] = {
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ffn_dim": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "context_tokens": "max_position_embeddings",
}
# Their default where a config.json leaves the key out (both major versions).
_DEFAULT_INITIALIZER_STD = 0.02

# Their key -> the only values we compute. A missing key or null is fine.
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "attention_dropout": (0, 0.0),
    "sliding_window": (),
    "quantization_config": (),
}


def config_to_hf(config: transformer.TransformerConfig) -> dict[str, Any]:
    """The architecture's part of a config.json.

    Raises:
      ValueError: transformers could not build this shape.
    """
    if config.dim % config.heads:
        raise ValueError(
            f"transformers refuses a Llama whose width is no multiple of its heads: dim "
            f"{config.dim}, heads {config.heads}."
        )
    theirs = {key: getattr(config, field) for field, key in _SAME.items()}
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "llama",
        **theirs,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": config.tied_head,
        "initializer_range": config.initializer_std,
        **rope_keys.written(config.rope, config.head_dim, config.context_tokens),
    }


def config_from_hf(
    theirs: Mapping[str, Any],
    *,
    param_dtype: transformer.Dtype,
    compute_dtype: transformer.Dtype,
    remat: str,
    loss_chunk_tokens: int | None,
) -> transformer.TransformerConfig:
    """Our config of a Llama config.json; the numerics, which it does not hold, are given.

    Raises:
      ValueError: a key is missing, or has a value that we don't compute.
    """
    missing = [key for key in _SAME.values() if theirs.get(key) is None]
    if missing:
        raise ValueError(f"config.json lacks {', '.join(missing)}, which a Llama needs.")
    for key, allowed in _ONLY.items():
        value = theirs.get(key)
        if value is not None and value not in allowed:
            raise ValueError(
                f"config.json has {key} = {value!r}, which midjax does not compute; supported: "
                f"{' or '.join(repr(x) for x in (*allowed, None))}."
            )
    architectures = theirs.get("architectures") or [ARCHITECTURE]
    if ARCHITECTURE not in architectures:
        raise ValueError(f"config.json is of {architectures}; supported: {ARCHITECTURE}.")
    same: dict[str, Any] = {field: theirs[key] for field, key in _SAME.items()}
    same["norm_eps"] = float(same["norm_eps"])
    std = theirs.get("initializer_range")
    head_dim = theirs.get("head_dim") or same["dim"] // same["heads"]
    return transformer.TransformerConfig(
        **same,
        kv_heads=theirs.get("num_key_value_heads") or same["heads"],
        head_dim=head_dim,
        tied_head=bool(theirs.get("tie_word_embeddings", False)),
        rope=rope_keys.from_hf(theirs, head_dim),
        initializer_std=_DEFAULT_INITIALIZER_STD if std is None else float(std),
        param_dtype=param_dtype,
        compute_dtype=compute_dtype,
        remat=remat,  # type: ignore[arg-type]
        loss_chunk_tokens=loss_chunk_tokens or same["context_tokens"],
    )


def names(config: transformer.TransformerConfig) -> dict[str, tuple[tuple[str, ...], int | None]]:
    """Their tensor name -> (path in our tree, layer or None), in the order of computation."""
    ends = {theirs: ((ours,), None) for ours, (theirs, _) in ENDS.items()}
    if config.tied_head:
        del ends[ENDS["head"][0]]
    found: dict[str, tuple[tuple[str, ...], int | None]] = {}
    for layer in range(config.layers):
        for ours, (theirs, _) in LAYER.items():
            found[theirs.format(layer)] = (("layers", ours), layer)
    embed = ENDS["embed"][0]
    return {embed: ends.pop(embed), **found, **ends}


def inner_axes(path: tuple[str, ...]) -> int:
    """How many input axes our array has (see the module's docstring)."""
    return (LAYER if len(path) == 2 else ENDS)[path[-1]][1]
