# SPDX-License-Identifier: Apache-2.0
"""MaxText's decoder blocks: what their arrays are called, and what they compute.

A new block is one row of `BLOCKS`. Read off MaxText 0.2.5 (src/maxtext/models/*.py, layers/
attentions.py, layers/nnx_decoders.py) and run against it. Names are those below
params/params/decoder/layers/; with {} the word that tells the layers of a unit apart.

Scores are scaled in two ways there. Some blocks multiply queries by 1 / sqrt(head_dim) as everyone
does. Others do not, and have the factor in the initialisation of the query weights: with them
TransformerConfig.attention_scale must be 1.0. Folding the factor into the weights would change
what Adam does to them.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

from midjax.model import architecture

Name = Literal[
    "llama2",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "gemma",
    "gemma2",
    "gemma3",
    "olmo3",
]


def _attention(prefix: str) -> dict[str, str]:
    return {
        "wq": f"{prefix}/query/kernel",
        "wk": f"{prefix}/key/kernel",
        "wv": f"{prefix}/value/kernel",
        "wo": f"{prefix}/out/kernel",
        "q_bias": f"{prefix}/query/bias",
        "k_bias": f"{prefix}/key/bias",
        "v_bias": f"{prefix}/value/bias",
        "out_bias": f"{prefix}/out/bias",
        "q_norm": f"{prefix}/query_norm/scale",
        "k_norm": f"{prefix}/key_norm/scale",
    }


def _mlp(prefix: str) -> dict[str, str]:
    kernels = {"w_gate": "wi_0", "w_up": "wi_1", "w_down": "wo"}
    return {ours: f"{prefix}/{theirs}/kernel" for ours, theirs in kernels.items()}


def _experts(prefix: str) -> dict[str, str]:
    stacks = {"expert_gate": "wi_0", "expert_up": "wi_1", "expert_down": "wo"}
    return {"router": f"{prefix}/gate/kernel"} | {
        ours: f"{prefix}/{theirs}" for ours, theirs in stacks.items()
    }


_PRE_NORMS = {
    "attn_norm": "pre_self_attention_layer_norm/scale",
    "mlp_norm": "post_self_attention_layer_norm/scale",
}
_LLAMA = _attention("self_attention") | _mlp("mlp") | _PRE_NORMS


def _gemma_norms(word: str = "") -> dict[str, str]:
    return {
        "attn_norm": f"pre_self_attention_norm{word}/scale",
        "attn_post_norm": f"post_self_attention_norm{word}/scale",
        "mlp_norm": f"pre_ffw_norm{word}/scale",
        "mlp_post_norm": f"post_ffw_norm{word}/scale",
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """One of MaxText's `decoder_block`s.

    Attributes:
      names: our name of a layer's parameter -> theirs.
      pattern: kinds of layers of one unit; its length is the number of layers in it.
      words: a unit's layers differ by a word in the names ("mlp_local"); empty where each has a
        folder of its own ("layers_0/mlp") or where a unit is one layer.
      scaled: queries are multiplied by 1 / sqrt(head_dim) as it runs.
      has_experts: in place of the mlp.
      norm_placement, qk_norm, softcap: what the block can compute; softcap is that of scores.
      norm_eps: None is the model's; a number where the block has its own.
    """

    names: Mapping[str, str]
    pattern: tuple[architecture.LayerType, ...] = ("full",)
    words: tuple[str, ...] = ()
    scaled: bool = False
    has_experts: bool = False
    norm_placement: tuple[architecture.NormPlacement, ...] = ("pre",)
    qk_norm: tuple[architecture.QkNorm, ...] = ("none",)
    softcap: bool = False
    norm_eps: float | None = None


_WINDOW: tuple[architecture.LayerType, ...] = ("window",)

BLOCKS: Mapping[str, Block] = {
    "llama2": Block(names=_LLAMA, softcap=True),
    "mistral": Block(names=_LLAMA),
    "mixtral": Block(
        names=_attention("self_attention") | _experts("MoeBlock_0") | _PRE_NORMS, has_experts=True
    ),
    "qwen2": Block(names=_LLAMA, scaled=True, qk_norm=("none", "head")),
    "qwen3": Block(names=_LLAMA, scaled=True, qk_norm=("none", "head")),
    "qwen3_moe": Block(
        names=_attention("self_attention") | _experts("moe_block") | _PRE_NORMS,
        scaled=True,
        has_experts=True,
        qk_norm=("none", "head"),
    ),
    "gemma": Block(
        names=_attention("self_attention") | _mlp("mlp") | _gemma_norms(), norm_eps=1e-6
    ),
    "gemma2": Block(
        names=_attention("self_attention_{}") | _mlp("mlp_{}") | _gemma_norms("_{}"),
        pattern=("window", "full"),
        words=("local", "global"),
        norm_placement=("both", "pre"),
        softcap=True,
        norm_eps=1e-6,
    ),
    "gemma3": Block(
        names=_attention("self_attention") | _mlp("mlp") | _gemma_norms(),
        pattern=(*_WINDOW * 5, "full"),
        scaled=True,
        norm_placement=("both", "pre"),
        qk_norm=("head",),
        softcap=True,
        norm_eps=1e-6,
    ),
    "olmo3": Block(
        names=_attention("attention")
        | _mlp("mlp")
        | {
            "attn_post_norm": "post_self_attention_layer_norm/scale",
            "mlp_post_norm": "post_mlp_layer_norm/scale",
        },
        pattern=(*_WINDOW * 3, "full"),
        scaled=True,
        norm_placement=("post",),
        qk_norm=("whole",),
    ),
}


def contradictions(
    name: str,
    model: architecture.TransformerConfig,
    *,
    model_name: str,
    normalize_embedding_logits: bool,
) -> list[str]:
    """What a model says that the block does not compute, as sentences; [] where they agree.

    Args:
      name: of the block.
      model: what the user gives.
      model_name, normalize_embedding_logits: of MaxText's config.
    """
    block, scale = BLOCKS[name], model.head_dim**-0.5
    if name == "gemma3" and model_name == "gemma3-27b":
        scale = (model.dim // model.heads) ** -0.5
    logits_scale = model.dim**-0.5 if model.tied_head and normalize_embedding_logits else None
    found = model.attention_scale or model.head_dim**-0.5
    wrong = []

    def must(field: str, *allowed: object) -> None:
        if (value := getattr(model, field)) not in allowed:
            wrong.append(f"{field} is {value}, and this block has {' or '.join(map(str, allowed))}")

    must("norm", "rms", "rms_plus_one")
    must("norm_placement", *block.norm_placement)
    must("qk_norm", *block.qk_norm)
    must("layer_pattern", block.pattern)
    must("activation", "silu", "gelu_tanh")
    for field in ("mlp_bias", "head_bias"):
        must(field, False)
    for field in ("clip_qkv", "embed_scale"):
        must(field, None)
    if block.norm_eps is not None:
        must("norm_eps", block.norm_eps)
    if not block.softcap:
        must("attention_softcap", None)
    if not model.tied_head:
        must("logits_softcap", None)
    if not math.isclose(found, scale if block.scaled else 1.0, rel_tol=1e-6):
        factor = f"{scale:.8g}" if block.scaled else "1.0: the factor is in the query weights"
        wrong.append(f"attention_scale is {model.attention_scale}, and this block has {factor}")
    if not math.isclose(model.logits_scale or 1.0, logits_scale or 1.0, rel_tol=1e-6):
        wrong.append(
            f"logits_scale is {model.logits_scale}, and a head with tied_head = {model.tied_head} "
            f"and normalize_embedding_logits = {normalize_embedding_logits} has {logits_scale}"
        )
    if (model.experts is not None) != block.has_experts or model.dense_layers:
        wrong.append(
            f"experts are {model.experts} with dense_layers {model.dense_layers}, and this block "
            f"has {'experts in every layer' if block.has_experts else 'none'}"
        )
    elif model.experts and (model.experts.routing, model.experts.normalized) != ("softmax", True):
        wrong.append(
            f"experts are {model.experts}, and MaxText routes by the softmax over the chosen ones: "
            "routing 'softmax', normalized True"
        )
    return wrong
