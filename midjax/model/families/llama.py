# SPDX-License-Identifier: Apache-2.0
"""Llama (LlamaForCausalLM): tensor names, config keys and the keys of its rotary embedding.

A Hugging Face matrix is [out, in]; ours is [*in, *out]. `inner` counts our input axes after the
layer axis: theirs = ours.reshape(prod(in), prod(out)).T, and 0 means that the two are the same.
Both use the half-split rotary layout, so no rows are permuted.

Rotary keys. transformers 4 reads `rope_theta` and `rope_scaling`; transformers 5 reads the same two
when `rope_scaling` is not null, else `rope_parameters`. We write all three with the same numbers.
"""

import math
from collections.abc import Mapping
from typing import Any

from midjax.model import rope, transformer

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
_DEFAULT_THETA = 10_000.0
_DEFAULT_INITIALIZER_STD = 0.02

# Their key -> the only values we compute. A missing key or null is fine.
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "attention_dropout": (0, 0.0),
    "partial_rotary_factor": (1, 1.0),
    "original_max_position_embeddings": (),
    "sliding_window": (),
    "quantization_config": (),
}

# Their rope_type -> (our kind, {their key: our field}). Any other key is refused: a number that is
# read by nobody changes the model in silence.
_KINDS: Mapping[str, tuple[rope.Kind, Mapping[str, str]]] = {
    "default": ("none", {}),
    "linear": ("pi", {"factor": "factor"}),
    "yarn": (
        "yarn",
        {
            "factor": "factor",
            "original_max_position_embeddings": "original_context_tokens",
            "beta_fast": "beta_fast",
            "beta_slow": "beta_slow",
            "attention_factor": "attention_factor",
            "truncate": "truncate",
        },
    ),
    "llama3": (
        "llama3",
        {
            "factor": "factor",
            "original_max_position_embeddings": "original_context_tokens",
            "low_freq_factor": "low_freq_factor",
            "high_freq_factor": "high_freq_factor",
        },
    ),
}


def rope_to_hf(config: rope.Rope, head_dim: int) -> tuple[float, dict[str, Any] | None]:
    """(`rope_theta`, `rope_scaling`): the numbers that make transformers compute our frequencies.

    NTK-aware scaling has no type of its own there (their "dynamic" changes with the length): it is
    written as the theta that it amounts to.
    """
    scaling = config.scaling
    if scaling.kind == "ntk":
        assert scaling.factor is not None
        return rope.ntk_theta(config.theta, scaling.factor, head_dim), None
    if scaling.kind == "none":
        return float(config.theta), None
    theirs, (_, keys) = next((name, row) for name, row in _KINDS.items() if row[0] == scaling.kind)
    found = {key: getattr(scaling, field) for key, field in keys.items()}
    return float(config.theta), {
        "rope_type": theirs,
        **{key: value for key, value in found.items() if value is not None},
    }


def _yarn_fields(theirs: dict[str, Any], context_tokens: int) -> dict[str, Any]:
    """Fills in what transformers fills in for YaRN, and folds `mscale` into the factor."""
    theirs.setdefault("original_max_position_embeddings", context_tokens)
    if theirs.get("factor") is None:
        theirs["factor"] = context_tokens / theirs["original_max_position_embeddings"]
    mscale, all_dim = theirs.pop("mscale", None), theirs.pop("mscale_all_dim", None)
    if theirs.get("attention_factor") is None and mscale and all_dim:
        log = math.log(max(theirs["factor"], 1.0))
        theirs["attention_factor"] = (0.1 * mscale * log + 1) / (0.1 * all_dim * log + 1)
    theirs["beta_fast"] = theirs.get("beta_fast") or 32.0
    theirs["beta_slow"] = theirs.get("beta_slow") or 1.0
    theirs.setdefault("truncate", True)
    return theirs


def _rope_of(theta: float, theirs: Mapping[str, Any], context_tokens: int) -> rope.Rope:
    fields = {key: value for key, value in theirs.items() if value is not None}
    fields.pop("rope_theta", None)
    # "type" is the key's name before transformers 4.45.
    old = fields.pop("type", "default")
    kind = fields.pop("rope_type", old)
    if kind not in _KINDS:
        raise ValueError(
            f"rope_type {kind!r} is not supported; supported: {', '.join(_KINDS)}. "
            "Import a checkpoint with one of these, or write the scaling in midjax/model/rope.py."
        )
    if fields.get("partial_rotary_factor") == 1:
        del fields["partial_rotary_factor"]
    if kind in ("yarn", "llama3"):
        fields.setdefault("original_max_position_embeddings", context_tokens)
    if kind == "yarn":
        fields = _yarn_fields(fields, context_tokens)
    ours, keys = _KINDS[kind]
    unknown = sorted(set(fields) - set(keys))
    if unknown:
        raise ValueError(
            f"The rotary embedding of type {kind!r} has keys that are not supported: "
            f"{', '.join(unknown)}; supported: {', '.join(keys) or 'none'}."
        )
    # JSON writers drop the point of 8.0; lengths are the only whole numbers here.
    whole = ("original_max_position_embeddings", "truncate")
    given: dict[str, Any] = {
        keys[key]: value if key in whole else float(value) for key, value in fields.items()
    }
    scaling = rope.RopeScaling(kind=ours, **given)
    return rope.Rope(theta=theta, scaling=scaling)


def rope_from_hf(theirs: Mapping[str, Any]) -> rope.Rope:
    """The rotary embedding of a config.json of transformers 4 or 5.

    Raises:
      ValueError: an unsupported type or key, or old and new keys that disagree.
    """
    context_tokens = theirs["max_position_embeddings"]
    old_theta, scaling = theirs.get("rope_theta"), theirs.get("rope_scaling")
    parameters = theirs.get("rope_parameters")
    readings: dict[str, rope.Rope] = {}
    if parameters:
        theta = parameters.get("rope_theta") or old_theta or _DEFAULT_THETA
        readings["rope_parameters"] = _rope_of(float(theta), parameters, context_tokens)
    if scaling or old_theta or not parameters:
        inner = (scaling or {}).get("rope_theta")
        theta = inner or old_theta or (parameters or {}).get("rope_theta") or _DEFAULT_THETA
        readings["rope_theta and rope_scaling"] = _rope_of(
            float(theta), scaling or {}, context_tokens
        )
    found = list(readings.values())
    if any(other != found[0] for other in found):
        both = "; ".join(f"{name}: {reading}" for name, reading in readings.items())
        raise ValueError(
            f"config.json describes two different rotary embeddings ({both}). "
            "Delete the wrong one: transformers 4 and 5 would compute different models."
        )
    return found[0]


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
    theta, scaling = rope_to_hf(config.rope, config.head_dim)
    theirs = {key: getattr(config, field) for field, key in _SAME.items()}
    if scaling and scaling["rope_type"] == "yarn":
        # Some releases of transformers 4 compute the factor as this key over the original length.
        theirs["max_position_embeddings"] = round(
            scaling["factor"] * scaling["original_max_position_embeddings"]
        )
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
        "rope_theta": theta,
        "rope_scaling": scaling,
        "rope_parameters": {"rope_theta": theta, **(scaling or {"rope_type": "default"})},
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
    return transformer.TransformerConfig(
        **same,
        kv_heads=theirs.get("num_key_value_heads") or same["heads"],
        head_dim=theirs.get("head_dim") or same["dim"] // same["heads"],
        tied_head=bool(theirs.get("tie_word_embeddings", False)),
        rope=rope_from_hf(theirs),
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
