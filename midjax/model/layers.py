# SPDX-License-Identifier: Apache-2.0
"""One layer and the model's two ends, as nnx modules that declare parameters and compute.

Shape suffixes: B batch, T length, D model width, N query heads, K key and value heads, H head size,
R rotated pairs, F mlp width, E experts, V vocabulary.

    x [B, T, D] --norm--> attend --norm--> + x --norm--> mlp or experts --norm--> + --> [B, T, D]

Which of the norms there are, and every other part that not all models have, is
`architecture.TransformerConfig`'s to say.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import ad_checkpoint
from jaxtyping import Array, Bool, Float, Float32, Int, PRNGKeyArray

from midjax.model import architecture, attention, moe, quantized, rotation, sharding
from midjax.model import context as context_lib

_ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}
_HIDDEN_AXES = ("batch", "length", None)
# Of one module, with room for more.
_MOST_MATRICES = 16

Product = Callable[[Array, Array], Array]


def activation(name: str) -> Callable[[Array], Array]:
    """The function behind `TransformerConfig.activation`."""
    return _ACTIVATIONS[name]


def scale_norm(
    x: Float[Array, "*rest D"], weight: Float[Array, "*some D"], eps: float, kind: str
) -> Float[Array, "*rest D"]:
    """x / sqrt(mean(x^2) + eps) over the last axis, times the weight, or 1 + the weight.

    The mean is in float32 and the result in x's dtype. In bfloat16 transformers' Llama multiplies
    after rounding to that dtype, as here for "rms", and its Gemma before, as here for
    "rms_plus_one". Its OLMo 2 multiplies before, too: there we are one rounding apart.

    The product itself is in float32 always: the weight's gradient, a sum over all tokens, is too.
    """
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    if kind == "rms_plus_one":
        return (x32 * (1 + weight.astype(jnp.float32))).astype(x.dtype)
    x32, weight32 = (value.astype(x.dtype).astype(jnp.float32) for value in (x32, weight))
    return (x32 * weight32).astype(x.dtype)


def layer_norm(
    x_BTD: Float[Array, "B T D"],
    weight_D: Float[Array, "D"],
    bias_D: Float[Array, "D"],
    eps: float,
) -> Float[Array, "B T D"]:
    """(x - mean) / sqrt(variance + eps) * weight + bias, in float32; the result in x's dtype."""
    x32 = x_BTD.astype(jnp.float32)
    x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return (x32 * weight_D + bias_D).astype(x_BTD.dtype)


def project(
    x: Float[Array, "B T *inner"],
    weights: Float[Array, "*inner_and_outer"],
    dtype: architecture.Dtype,
    product: Product = jnp.matmul,
) -> Float[Array, "B T *outer"]:
    """x times weights over all of x's axes but B and T, as one product of two matrices.

    For a TPU the axes stay apart: its compiler lays each out as the kernels beside it want, and to
    join heads with their size would copy queries, keys, values and their gradients, one by one.
    """
    inner = x.ndim - 2
    if product is jnp.matmul and sharding.platform() == "tpu":
        return jnp.tensordot(x, weights.astype(dtype), axes=inner)
    width = math.prod(x.shape[2:])
    flat = x.reshape(*x.shape[:2], width)
    y = by_token(flat, weights.astype(dtype).reshape(width, -1), product)
    return y.reshape(*x.shape[:2], *weights.shape[inner:])


def by_token(
    x_BTX: Float[Array, "B T X"], weights_XY: Float[Array, "X Y"], product: Product
) -> Float[Array, "B T Y"]:
    """x times weights.

    On a CPU the gradient of the product with B and T apart is more than twice as slow: XLA then
    lays an operand out transposed and leaves its fast kernel. But where the mesh splits T, B and T
    must stay apart: no device could hold its part of the two as one axis, and all would gather T.

    Args:
      x_BTX, weights_XY: the factors.
      product: [.., X] times [X, Y], for any axes in front.
    """
    if context_lib.split_here() > 1:
        return product(x_BTX, weights_XY)
    flat = product(x_BTX.reshape(-1, x_BTX.shape[2]), weights_XY)
    return flat.reshape(*x_BTX.shape[:2], -1)


# (options, queries, keys, values) -> what the queries saw, and what the caller wants kept.
Attend = Callable[[attention.Options, Array, Array, Array], tuple[Array, Any]]


@dataclasses.dataclass(frozen=True)
class Context:
    """What the layers share, made once per step.

    Attributes:
      segments_BT: 1.. per document; 0 is padding.
      turns: kind of layer -> (cos, sin) of its rotary embedding, each [B, T, 1, R].
      attend: what queries look at; None is the row that they stand in, of which nothing is kept.
    """

    segments_BT: Int[Array, "B T"]
    turns: Mapping[str, tuple[Float32[Array, "B T 1 R"], Float32[Array, "B T 1 R"]]]
    attend: Attend | None = None

    @property
    def valid_BT(self) -> Bool[Array, "B T"]:
        """False on padding."""
        return self.segments_BT > 0


def within_rows(
    config: architecture.TransformerConfig,
    segments_BT: Int[Array, "B T"],
    options: attention.Options,
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
) -> tuple[Float[Array, "B T N H"], None]:
    """An `Attend`: queries see the keys of their document in their own row."""
    told = dataclasses.asdict(options)
    return attention.attend(
        config.attention_kernel, q_BTNH, k_BTKH, v_BTKH, segments_BT, **told
    ), None


class Keys:
    """Keys of a module's matrices, one after the other: those that `nnx.Rngs(params=key)` gives.

    (By JAX's default, `jax_threefry_partitionable`.) They are made all at once: one by one they
    take the compiler as long as the numbers drawn.
    """

    def __init__(self, key: PRNGKeyArray) -> None:
        self._left = list(jax.random.split(key, _MOST_MATRICES))[::-1]

    def __call__(self) -> PRNGKeyArray:
        return self._left.pop()


def _matrix(
    config: architecture.TransformerConfig,
    keys: Keys,
    axes: tuple[str | None, ...],
    *shape: int,
) -> nnx.Param:
    value = jax.random.normal(keys(), shape, jnp.float32) * config.initializer_std
    return nnx.Param(value.astype(config.param_dtype), axes=axes)


def _filled(
    config: architecture.TransformerConfig,
    value: float,
    axes: tuple[str | None, ...],
    *shape: int,
) -> nnx.Param:
    return nnx.Param(jnp.full(shape, value, config.param_dtype), axes=axes)


class _Normed(nnx.Module):
    """A module that has norms over the model's width."""

    def _add_norm(self, name: str) -> None:
        config = self.config
        identity = 0.0 if config.norm == "rms_plus_one" else 1.0
        setattr(self, name, _filled(config, identity, ("norm",), config.dim))
        if config.norm == "layer":
            setattr(self, f"{name}_bias", _filled(config, 0.0, ("norm",), config.dim))

    def _norm(self, name: str, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """The norm of that name; where the model has none there, x itself."""
        weight = getattr(self, name, None)
        if weight is None:
            return x_BTD
        if self.config.norm == "layer":
            bias = getattr(self, f"{name}_bias")
            return layer_norm(x_BTD, weight[...], bias[...], self.config.norm_eps)
        return scale_norm(x_BTD, weight[...], self.config.norm_eps, self.config.norm)


class Layer(_Normed):
    """Attention, then an mlp or experts, each added to the stream.

    Args:
      config: the model.
      kind: what the layer sees.
      has_experts: experts in place of the mlp.
      keys: of its matrices.
    """

    def __init__(
        self,
        config: architecture.TransformerConfig,
        kind: architecture.LayerType,
        has_experts: bool,
        *,
        keys: Keys,
    ) -> None:
        self.config, self.kind, self.has_experts = config, kind, has_experts
        for part in ("attn", "mlp"):
            if config.norm_placement in ("pre", "both"):
                self._add_norm(f"{part}_norm")
            if config.norm_placement in ("post", "both"):
                self._add_norm(f"{part}_post_norm")
        self._add_attention(keys)
        if has_experts:
            self._add_experts(keys)
        else:
            self._add_mlp(keys)

    def _add_attention(self, keys: Keys) -> None:
        config = self.config
        D, N, K, H = config.dim, config.heads, config.kv_heads, config.head_dim
        matrix = functools.partial(_matrix, config, keys)
        filled = functools.partial(_filled, config)
        self.wq = matrix(("embed", "heads", "head_dim"), D, N, H)
        self.wk = matrix(("embed", "kv_heads", "head_dim"), D, K, H)
        self.wv = matrix(("embed", "kv_heads", "head_dim"), D, K, H)
        self.wo = matrix(("heads", "head_dim", "embed"), N, H, D)
        if config.qkv_bias:
            self.q_bias = filled(0.0, ("heads", "head_dim"), N, H)
            self.k_bias = filled(0.0, ("kv_heads", "head_dim"), K, H)
            self.v_bias = filled(0.0, ("kv_heads", "head_dim"), K, H)
        if config.out_bias:
            self.out_bias = filled(0.0, ("norm",), D)
        identity = 0.0 if config.norm == "rms_plus_one" else 1.0
        if config.qk_norm == "head":
            self.q_norm = filled(identity, ("head_dim",), H)
            self.k_norm = filled(identity, ("head_dim",), H)
        if config.qk_norm == "whole":
            self.q_norm = filled(identity, ("heads", "head_dim"), N, H)
            self.k_norm = filled(identity, ("kv_heads", "head_dim"), K, H)

    def _add_mlp(self, keys: Keys) -> None:
        D, F = self.config.dim, self.config.ffn_dim
        self.w_gate = _matrix(self.config, keys, ("embed", "mlp"), D, F)
        self.w_up = _matrix(self.config, keys, ("embed", "mlp"), D, F)
        self.w_down = _matrix(self.config, keys, ("mlp", "embed"), F, D)
        if self.config.mlp_bias:
            self.gate_bias = _filled(self.config, 0.0, ("mlp",), F)
            self.up_bias = _filled(self.config, 0.0, ("mlp",), F)
            self.down_bias = _filled(self.config, 0.0, ("norm",), D)

    def _add_experts(self, keys: Keys) -> None:
        experts = self.config.experts
        assert experts is not None
        D, E, F = self.config.dim, experts.count, experts.ffn_dim
        inward, outward = ("experts", "expert_embed", "mlp"), ("experts", "mlp", "expert_embed")
        self.router = _matrix(self.config, keys, ("embed", None), D, E)
        self.expert_gate = _matrix(self.config, keys, inward, E, D, F)
        self.expert_up = _matrix(self.config, keys, inward, E, D, F)
        self.expert_down = _matrix(self.config, keys, outward, E, F, D)

    def __call__(
        self, x_BTD: Float[Array, "B T D"], context: Context
    ) -> tuple[Float[Array, "B T D"], moe.Aux | None, Any]:
        """The stream after this layer, what its router did, and what `context.attend` kept."""
        added_BTD, kept = self._attend(self._norm("attn_norm", x_BTD), context)
        x_BTD = x_BTD + self._norm("attn_post_norm", added_BTD)
        y_BTD, aux = self._norm("mlp_norm", x_BTD), None
        if self.has_experts:
            y_BTD, aux = self._mix(y_BTD, context)
        else:
            y_BTD = self._mlp(y_BTD)
        x_BTD = x_BTD + self._norm("mlp_post_norm", y_BTD)
        return sharding.constrain(x_BTD, _HIDDEN_AXES), aux, kept

    def _project(
        self, part: architecture.QuantizedPart, x: Array, weights: nnx.Param, bias: str
    ) -> Array:
        product = quantized.product(self.config.quantization, part)
        y = project(x, weights[...], self.config.compute_dtype, product)
        added = getattr(self, bias, None)
        # Added in float32: the bias's gradient, a sum over all tokens, is too.
        return y if added is None else (y.astype(jnp.float32) + added[...]).astype(y.dtype)

    def _qk_norm(self, x: Array, weight: nnx.Param) -> Array:
        """RMSNorm of queries or keys [B, T, heads, H], over each head or over all of them."""
        scale, eps, kind = weight[...], self.config.norm_eps, self.config.norm
        if self.config.qk_norm == "head":
            return scale_norm(x, scale, eps, kind)
        flat = scale_norm(x.reshape(*x.shape[:2], -1), scale.reshape(-1), eps, kind)
        return flat.reshape(x.shape)

    def _attend(
        self, y_BTD: Float[Array, "B T D"], context: Context
    ) -> tuple[Float[Array, "B T D"], Any]:
        config = self.config
        heads, kv_heads = (("batch", "length", n, "head_dim") for n in ("heads", "kv_heads"))
        q_BTNH = self._project("attention", y_BTD, self.wq, "q_bias")
        k_BTKH = self._project("attention", y_BTD, self.wk, "k_bias")
        v_BTKH = self._project("attention", y_BTD, self.wv, "v_bias")
        if config.qk_norm != "none":
            q_BTNH = self._qk_norm(q_BTNH, self.q_norm)
            k_BTKH = self._qk_norm(k_BTKH, self.k_norm)
        if config.clip_qkv is not None:
            q_BTNH, k_BTKH, v_BTKH = (
                jnp.clip(x, -config.clip_qkv, config.clip_qkv) for x in (q_BTNH, k_BTKH, v_BTKH)
            )
        q_BTNH = sharding.constrain(q_BTNH, heads)
        k_BTKH = sharding.constrain(k_BTKH, kv_heads)
        v_BTKH = sharding.constrain(v_BTKH, kv_heads)
        options = attention.options(config, self.kind)
        if self.kind in context.turns:
            cos_BT1R, sin_BT1R = context.turns[self.kind]
            # Splash does not scale: with the rotation that costs no pass of its own.
            kernel = attention.chosen(config.attention_kernel)
            here = options.scale if kernel.startswith("splash") else 1.0
            q_BTNH = rotation.rotate(q_BTNH, cos_BT1R, sin_BT1R, here)
            k_BTKH = rotation.rotate(k_BTKH, cos_BT1R, sin_BT1R)
            options = dataclasses.replace(options, scale=options.scale / here)
        attend = context.attend or functools.partial(within_rows, config, context.segments_BT)
        out_BTNH, kept = attend(
            options,
            ad_checkpoint.checkpoint_name(q_BTNH, "query"),
            ad_checkpoint.checkpoint_name(k_BTKH, "key"),
            ad_checkpoint.checkpoint_name(v_BTKH, "value"),
        )
        return self._project("attention", out_BTNH, self.wo, "out_bias"), kept

    def _mlp(self, y_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        gate_BTF = self._project("mlp", y_BTD, self.w_gate, "gate_bias")
        up_BTF = self._project("mlp", y_BTD, self.w_up, "up_bias")
        gate_BTF = ad_checkpoint.checkpoint_name(gate_BTF, "gate")
        up_BTF = ad_checkpoint.checkpoint_name(up_BTF, "up")
        hidden_BTF = activation(self.config.activation)(gate_BTF) * up_BTF
        hidden_BTF = sharding.constrain(hidden_BTF, ("batch", "length", "mlp"))
        return self._project("mlp", hidden_BTF, self.w_down, "down_bias")

    def _mix(
        self, y_BTD: Float[Array, "B T D"], context: Context
    ) -> tuple[Float[Array, "B T D"], moe.Aux]:
        config, names = self.config, ("router", "expert_gate", "expert_up", "expert_down")
        assert config.experts is not None
        return moe.apply(
            config.experts,
            activation(config.activation),
            y_BTD,
            {name: getattr(self, name)[...] for name in names},
            context.valid_BT,
            config.compute_dtype,
        )


class Ends(_Normed):
    """What stands before and after the layers."""

    def __init__(self, config: architecture.TransformerConfig, *, keys: Keys) -> None:
        self.config = config
        self.embed = _matrix(config, keys, ("vocab", "embed"), config.vocab_size, config.dim)
        self._add_norm("final_norm")
        if not config.tied_head:
            self.head = _matrix(config, keys, ("embed", "vocab"), config.dim, config.vocab_size)
        if config.head_bias:
            self.head_bias = _filled(config, 0.0, ("vocab",), config.vocab_size)

    def normed(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """The final norm."""
        return self._norm("final_norm", x_BTD)
