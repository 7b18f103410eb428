# SPDX-License-Identifier: Apache-2.0
"""What a decoder is made of: one frozen config that every family of models is a setting of.

A field that is left at its default means that the model lacks the part. Nothing here computes.
"""

import dataclasses
from typing import Literal, get_args

from midjax.model import remat
from midjax.model import rope as rope_lib

Dtype = Literal["float32", "bfloat16"]
# What a layer sees, and whether it turns queries and keys by position. "window" layers see the
# newest `window_tokens` only; "nope" layers have no rotary embedding (SmolLM3).
LayerType = Literal["full", "window", "full_nope", "window_nope"]
Norm = Literal["rms", "rms_plus_one", "layer"]
NormPlacement = Literal["pre", "post", "both"]
QkNorm = Literal["none", "head", "whole"]
Activation = Literal["silu", "gelu", "gelu_tanh"]
AttentionKernel = Literal["auto", "blocked", "splash", "splash_interpret"]

Routing = Literal["softmax", "sparsemixer"]

QuantizedDtype = Literal["int8", "float8"]
QuantizedGradients = Literal["none", "inputs", "all"]
QuantizedPart = Literal["attention", "mlp"]

_SIZES = ("vocab_size", "dim", "layers", "heads", "kv_heads", "head_dim", "ffn_dim",
          "context_tokens", "loss_chunk_tokens")  # fmt: skip
_ABOVE_ZERO = ("norm_eps", "initializer_std", "attention_scale", "attention_softcap",
               "logits_softcap", "logits_scale", "clip_qkv", "embed_scale",
               "window_tokens")  # fmt: skip
_CHOICES = {
    "param_dtype": Dtype,
    "compute_dtype": Dtype,
    "remat": remat.Remat,
    "norm": Norm,
    "norm_placement": NormPlacement,
    "qk_norm": QkNorm,
    "activation": Activation,
    "attention_kernel": AttentionKernel,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experts:
    """A mixture of experts in place of a layer's mlp. No token is ever dropped.

    Attributes:
      count: E, experts per layer.
      per_token: k, how many of them each token goes through.
      ffn_dim: F of each expert.
      routing: "softmax": the k largest of softmax(router), weighted by it; "sparsemixer": k = 2,
        chosen one after the other, each weighted by a softmax over the experts whose score lies
        within 2 * sparsemixer_eps of the largest (2409.12136, as transformers' Phi-3.5-MoE
        computes it at inference).
      normalized: weights of the k are divided by their sum ("softmax" only).
      sparsemixer_eps: see there; None for "softmax".
    """

    count: int
    per_token: int
    ffn_dim: int
    routing: Routing = "softmax"
    normalized: bool = False
    sparsemixer_eps: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.per_token <= self.count or self.ffn_dim < 1:
            raise ValueError(
                "Experts need 1 <= per_token <= count and ffn_dim of 1 or more, got per_token "
                f"{self.per_token}, count {self.count}, ffn_dim {self.ffn_dim}."
            )
        if self.routing not in get_args(Routing):
            raise ValueError(
                f"Experts.routing is {self.routing!r}; allowed: {', '.join(get_args(Routing))}."
            )
        if (self.routing == "sparsemixer") != (self.sparsemixer_eps is not None):
            raise ValueError(
                "Experts.sparsemixer_eps belongs to routing 'sparsemixer' and to no other, got "
                f"{self.sparsemixer_eps} with {self.routing!r}."
            )
        if self.routing == "sparsemixer" and (self.per_token != 2 or self.normalized):
            raise ValueError(
                "Routing 'sparsemixer' chooses 2 experts per token and does not normalize, got "
                f"per_token {self.per_token}, normalized {self.normalized}."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantization:
    """Which products of a layer are computed in 8 bits in training; see `quantized`.

    Embedding, head, router, norms, scores and experts never are.

    Attributes:
      dtype: "int8"; "float8": e4m3 for weights and activations, e5m2 for gradients (2209.05433).
      gradients: what of the backward pass is in 8 bits. "none": nothing; "inputs": the gradients of
        a product's inputs, and those of the weights, which are sums over all tokens, are not
        (SwitchBack, 2304.13013); "all": both.
      parts: of a layer: "attention" is its four projections, "mlp" its three products.
    """

    dtype: QuantizedDtype
    gradients: QuantizedGradients = "inputs"
    parts: tuple[QuantizedPart, ...] = ("attention", "mlp")

    def __post_init__(self) -> None:
        allowed = {"dtype": QuantizedDtype, "gradients": QuantizedGradients}
        for name, choice in allowed.items():
            if getattr(self, name) not in get_args(choice):
                raise ValueError(
                    f"Quantization.{name} is {getattr(self, name)!r}; "
                    f"allowed: {', '.join(get_args(choice))}."
                )
        known = get_args(QuantizedPart)
        if not self.parts or sorted(set(self.parts) & set(known)) != sorted(self.parts):
            raise ValueError(
                f"Quantization.parts names parts of a layer, of {', '.join(known)}, each once; got "
                f"{self.parts}. For no part set TransformerConfig.quantization = None."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Shape and numerics of the model.

    Attributes:
      vocab_size: V.
      dim: D.
      layers: L.
      heads: N.
      kv_heads: K; divides N. N is plain multi-head attention.
      head_dim: H, even. Need not be D / N.
      ffn_dim: F.
      norm_eps: added to the mean square (or the variance) in norms.
      tied_head: the head is the embedding transposed.
      context_tokens: the longest row it is trained on. Nothing in the computation depends on it.
      rope: rotary embedding, that of the full-attention layers.
      initializer_std: of every matrix, embedding included; norms start as the identity.
      param_dtype: how parameters are held. bfloat16 loses small updates: for inference.
      compute_dtype: of matrix products and activations. Norms, softmax, rotation, routing and loss
        are float32 always.
      remat: what the backward pass makes again per layer; the policies are listed in `remat`.
      loss_chunk_tokens: positions per chunk of the loss; see `loss.token_losses`.
      family: whose names and keys an export writes; see `families`.
      norm: "rms"; "rms_plus_one", whose weight is added to 1 (Gemma); "layer", with bias (PhiMoE).
      norm_placement: "pre": before attention and mlp; "post": after each, before it is added
        (OLMo 2); "both" (Gemma 2).
      qk_norm: RMSNorm of queries and keys before the rotation: over each "head" (Qwen3) or over
        the "whole" width (OLMo 2).
      qkv_bias, out_bias, mlp_bias, head_bias: which products add a bias.
      activation: of the gate.
      attention_scale: on query-key products; None is 1 / sqrt(head_dim).
      attention_softcap, logits_softcap: c in c * tanh(x / c) on scores; None for none.
      logits_scale: the head's scores are multiplied by it, before their soft cap; None for none.
        MaxText divides those of a tied head by sqrt(dim).
      clip_qkv: queries, keys and values are clipped to +- this (OLMoE); None for none.
      embed_scale: embeddings are multiplied by it (Gemma: sqrt(dim)); None for none.
      layer_pattern: kinds of layers, repeated over the depth: layer i is of kind
        layer_pattern[i % len(layer_pattern)].
      window_tokens: tokens that "window" layers see, the query's own included.
      window_rope: rotary embedding of "window" layers; None is `rope`.
      experts: mixture of experts in place of the mlp; None for none.
      dense_layers: layers that have an mlp although there are experts.
      head_dtype: the head's weights are rounded to it; None is compute_dtype. MaxText rounds a tied
        head to bfloat16 whatever else it computes in.
      attention_kernel: "auto" is "splash" on TPU and "blocked" elsewhere.
      quantization: products in 8 bits, in training: what a checkpoint is evaluated and exported
        with is never quantized. None for none.
    """

    vocab_size: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_dim: int
    norm_eps: float
    tied_head: bool
    context_tokens: int
    rope: rope_lib.Rope
    initializer_std: float
    param_dtype: Dtype
    compute_dtype: Dtype
    remat: remat.Remat
    loss_chunk_tokens: int
    family: str = "llama"
    norm: Norm = "rms"
    norm_placement: NormPlacement = "pre"
    qk_norm: QkNorm = "none"
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    activation: Activation = "silu"
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logits_softcap: float | None = None
    logits_scale: float | None = None
    clip_qkv: float | None = None
    embed_scale: float | None = None
    layer_pattern: tuple[LayerType, ...] = ("full",)
    window_tokens: int | None = None
    window_rope: rope_lib.Rope | None = None
    experts: Experts | None = None
    dense_layers: tuple[int, ...] = ()
    attention_kernel: AttentionKernel = "auto"
    head_dtype: Dtype | None = None
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise ValueError(
                    f"TransformerConfig.{name} must be 1 or more, got {getattr(self, name)}."
                )
        for name in _ABOVE_ZERO:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"TransformerConfig.{name} must be over 0, got {value}.")
        for name, choice in _CHOICES.items():
            if getattr(self, name) not in get_args(choice):
                raise ValueError(
                    f"TransformerConfig.{name} is {getattr(self, name)!r}; "
                    f"allowed: {', '.join(get_args(choice))}."
                )
        if self.head_dtype not in (None, *get_args(Dtype)):
            raise ValueError(
                f"TransformerConfig.head_dtype is {self.head_dtype!r}; "
                f"allowed: None, {', '.join(get_args(Dtype))}."
            )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"TransformerConfig.kv_heads must divide heads, got {self.kv_heads} and "
                f"{self.heads}."
            )
        self._check_layers()
        for one in (self.rope, self.window_rope):
            if one is not None:
                rope_lib.check_head_dim(one, self.head_dim)
        if self.quantization and self.experts and "mlp" in self.quantization.parts:
            raise ValueError(
                f"Quantization.parts = {self.quantization.parts} with experts: their grouped "
                "products have no 8-bit kernel (JAX's megablox takes bfloat16 and float32). Set "
                "Quantization.parts = ('attention',)."
            )

    def _check_layers(self) -> None:
        known = get_args(LayerType)
        if not self.layer_pattern or not set(self.layer_pattern) <= set(known):
            raise ValueError(
                f"TransformerConfig.layer_pattern holds kinds of layers, of {', '.join(known)}; "
                f"got {self.layer_pattern}."
            )
        has_window = any(kind.startswith("window") for kind in self.layer_pattern)
        if has_window != (self.window_tokens is not None):
            raise ValueError(
                "TransformerConfig.window_tokens belongs to layers of the kinds 'window' and "
                f"'window_nope': got {self.window_tokens} with layer_pattern {self.layer_pattern}."
            )
        if self.window_rope is not None and "window" not in self.layer_pattern:
            raise ValueError(
                "TransformerConfig.window_rope is set and no layer is of the kind 'window'."
            )
        wrong = [i for i in self.dense_layers if not 0 <= i < self.layers]
        if wrong or (self.dense_layers and self.experts is None):
            raise ValueError(
                f"TransformerConfig.dense_layers = {self.dense_layers} names layers of a mixture "
                f"of experts that have an mlp; there are {self.layers} layers, experts: "
                f"{self.experts}."
            )

    def layer_type(self, layer: int) -> LayerType:
        """The kind of a layer."""
        return self.layer_pattern[layer % len(self.layer_pattern)]

    def has_experts(self, layer: int) -> bool:
        """Whether a layer has experts in place of an mlp."""
        return self.experts is not None and layer not in self.dense_layers

    def rope_of(self, kind: LayerType) -> rope_lib.Rope | None:
        """The rotary embedding of a kind of layers; None where there is none."""
        if kind.endswith("nope"):
            return None
        return self.window_rope or self.rope if kind == "window" else self.rope

    def window_of(self, kind: LayerType) -> int | None:
        """How many tokens a kind of layers sees; None for all."""
        return self.window_tokens if kind.startswith("window") else None
