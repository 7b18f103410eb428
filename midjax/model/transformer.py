# SPDX-License-Identifier: Apache-2.0
"""A decoder-only transformer of the Llama kind: RMSNorm, rotary positions, grouped queries, SwiGLU.

Shape suffixes: B batch, T length, S key length (= T), D model width, N query heads, K key and value
heads, H head size, R = H / 2 rotated pairs, F mlp width, V vocabulary, L layers.

The nnx modules declare parameters and compute one layer; outside of this file parameters are a
plain nested dict, with the layers stacked along a leading axis L:

  {"embed": [V, D], "layers": {"attn_norm": [L, D], "wq": [L, D, N, H], "wk": [L, D, K, H],
   "wv": [L, D, K, H], "wo": [L, N, H, D], "mlp_norm": [L, D], "w_gate": [L, D, F],
   "w_up": [L, D, F], "w_down": [L, F, D]}, "final_norm": [D], "head": [D, V] unless tied}
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, PRNGKeyArray

from midjax.model import architecture, attention, rope, sharding

Params = dict[str, Any]
TransformerConfig = architecture.TransformerConfig
Dtype = architecture.Dtype
# More layers than this stay a loop, so that compiling takes the time of one layer.
_MOST_FLAT_LAYERS = 8
# Fields that this decoder computes at their defaults only.
_NOT_YET = ("norm", "norm_placement", "qk_norm", "qkv_bias", "out_bias", "mlp_bias", "head_bias",
            "activation", "attention_softcap", "logits_softcap", "clip_qkv", "embed_scale",
            "layer_pattern", "window_tokens", "window_rope", "experts", "dense_layers")  # fmt: skip


def _check_computed(config: TransformerConfig) -> None:
    for field in dataclasses.fields(config):
        if field.name in _NOT_YET and getattr(config, field.name) != field.default:
            raise ValueError(
                f"TransformerConfig.{field.name} = {getattr(config, field.name)!r} is not computed "
                f"yet; leave it at {field.default!r}."
            )


def _matrix(
    config: TransformerConfig, rngs: nnx.Rngs, axes: tuple[str, ...], *shape: int
) -> nnx.Param:
    value = jax.random.normal(rngs.params(), shape, jnp.float32) * config.initializer_std
    return nnx.Param(value.astype(config.param_dtype), axes=axes)


def _norm(config: TransformerConfig) -> nnx.Param:
    return nnx.Param(jnp.ones(config.dim, config.param_dtype), axes=("norm",))


def rms_norm(
    x_BTD: Float[Array, "B T D"], weight_D: Float[Array, "D"], eps: float
) -> Float[Array, "B T D"]:
    """x / sqrt(mean(x^2) + eps) * weight; the mean in float32, the result in x's dtype."""
    x32_BTD = x_BTD.astype(jnp.float32)
    scale_BT1 = jax.lax.rsqrt(jnp.mean(jnp.square(x32_BTD), axis=-1, keepdims=True) + eps)
    return (x32_BTD * scale_BT1).astype(x_BTD.dtype) * weight_D.astype(x_BTD.dtype)


def project(
    x: Float[Array, "B T *inner"], weights: Float[Array, "*inner_and_outer"], dtype: Dtype
) -> Float[Array, "B T *outer"]:
    """x times weights over all of x's axes but B and T, as one product of two matrices.

    On a CPU the gradient of the same product with B and T apart is more than twice as slow: XLA
    then lays an operand out transposed and leaves its fast kernel.
    """
    inner = x.ndim - 2
    width = math.prod(x.shape[2:])
    flat = x.reshape(-1, width) @ weights.astype(dtype).reshape(width, -1)
    return flat.reshape(*x.shape[:2], *weights.shape[inner:])


@dataclasses.dataclass(frozen=True)
class Context:
    """What every layer shares, made once per step."""

    segments_BT: Int[Array, "B T"]
    cos_BT1R: Float32[Array, "B T 1 R"]
    sin_BT1R: Float32[Array, "B T 1 R"]


class Layer(nnx.Module):
    """Pre-norm attention, then pre-norm SwiGLU, each added to the stream."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs) -> None:
        _check_computed(config)
        self.config = config
        D, N, K, H, F = (
            config.dim, config.heads, config.kv_heads, config.head_dim, config.ffn_dim,
        )  # fmt: skip
        matrix = functools.partial(_matrix, config, rngs)
        self.attn_norm = _norm(config)
        self.wq = matrix(("embed", "heads", "head_dim"), D, N, H)
        self.wk = matrix(("embed", "kv_heads", "head_dim"), D, K, H)
        self.wv = matrix(("embed", "kv_heads", "head_dim"), D, K, H)
        self.wo = matrix(("heads", "head_dim", "embed"), N, H, D)
        self.mlp_norm = _norm(config)
        self.w_gate = matrix(("embed", "mlp"), D, F)
        self.w_up = matrix(("embed", "mlp"), D, F)
        self.w_down = matrix(("mlp", "embed"), F, D)

    def __call__(self, x_BTD: Float[Array, "B T D"], context: Context) -> Float[Array, "B T D"]:
        x_BTD = x_BTD + self.attend(x_BTD, context)
        return sharding.constrain(x_BTD + self.mlp(x_BTD), ("batch", "length", None))

    def attend(self, x_BTD: Float[Array, "B T D"], context: Context) -> Float[Array, "B T D"]:
        """Attention's addition to the stream."""
        dtype = self.config.compute_dtype
        heads, kv_heads = (("batch", "length", n, "head_dim") for n in ("heads", "kv_heads"))
        y_BTD = rms_norm(x_BTD, self.attn_norm[...], self.config.norm_eps)
        q_BTNH = project(y_BTD, self.wq[...], dtype)
        k_BTKH = project(y_BTD, self.wk[...], dtype)
        v_BTKH = project(y_BTD, self.wv[...], dtype)
        q_BTNH = rope.rotate(sharding.constrain(q_BTNH, heads), context.cos_BT1R, context.sin_BT1R)
        k_BTKH = rope.rotate(
            sharding.constrain(k_BTKH, kv_heads), context.cos_BT1R, context.sin_BT1R
        )
        out_BTNH = attention.blocked(
            q_BTNH,
            k_BTKH,
            sharding.constrain(v_BTKH, kv_heads),
            context.segments_BT,
            self.config.attention_scale or 1 / math.sqrt(self.config.head_dim),
        )
        return project(out_BTNH, self.wo[...], dtype)

    def mlp(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """SwiGLU's addition to the stream."""
        dtype = self.config.compute_dtype
        y_BTD = rms_norm(x_BTD, self.mlp_norm[...], self.config.norm_eps)
        gate_BTF = project(y_BTD, self.w_gate[...], dtype)
        up_BTF = project(y_BTD, self.w_up[...], dtype)
        hidden_BTF = sharding.constrain(jax.nn.silu(gate_BTF) * up_BTF, ("batch", "length", "mlp"))
        return project(hidden_BTF, self.w_down[...], dtype)


class Ends(nnx.Module):
    """What stands before and after the layers."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs) -> None:
        self.embed = _matrix(config, rngs, ("vocab", "embed"), config.vocab_size, config.dim)
        self.final_norm = _norm(config)
        if not config.tied_head:
            self.head = _matrix(config, rngs, ("embed", "vocab"), config.dim, config.vocab_size)


def init(config: TransformerConfig, key: PRNGKeyArray) -> Params:
    """Fresh parameters; every layer has a key of its own.

    The values depend on the key alone: under `jax.jit(..., out_shardings=...)` they are the same on
    every mesh.
    """
    ends_key, layers_key = jax.random.split(key)

    def pure(module: type[nnx.Module], key: PRNGKeyArray) -> Params:
        return nnx.to_pure_dict(nnx.split(module(config, rngs=nnx.Rngs(params=key)))[1])

    layers = jax.vmap(functools.partial(pure, Layer))(jax.random.split(layers_key, config.layers))
    return {**pure(Ends, ends_key), "layers": layers}


def abstract(config: TransformerConfig) -> Params:
    """The parameters' shapes and dtypes: a tree of ShapeDtypeStruct."""
    return jax.eval_shape(functools.partial(init, config), jax.random.key(0))


@functools.cache
def _declared(config: TransformerConfig, module: type[nnx.Module]) -> tuple[nnx.GraphDef, Any]:
    """A module's structure, and the logical axes of its parameters."""
    made = nnx.eval_shape(lambda: module(config, rngs=nnx.Rngs(params=0)))
    graph, state = nnx.split(made)
    return graph, {path[0]: leaf.get_metadata("axes") for path, leaf in state.flat_state()}


def logical_axes(config: TransformerConfig) -> Params:
    """The parameters' logical axes, for `sharding.tree`: a tree of tuples."""
    layers = {name: ("layers", *axes) for name, axes in _declared(config, Layer)[1].items()}
    return {**_declared(config, Ends)[1], "layers": layers}


def parameter_count(config: TransformerConfig) -> int:
    """Number of parameters; a tied head counts once."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract(config)))


def head_names(config: TransformerConfig) -> tuple[str, ...]:
    """Which parameters `logits` reads."""
    return ("embed",) if config.tied_head else ("head",)


def placed(config: TransformerConfig, params: Params, name: str) -> Array:
    """A parameter outside the layers, held to its sharding.

    A constraint on a parameter is one on its gradient: without it the compiler leaves every device
    the whole gradient, summed over the mesh, instead of the device's share of it.
    """
    return sharding.constrain(params[name], _declared(config, Ends)[1][name])


def hidden(
    config: TransformerConfig,
    params: Params,
    tokens_BT: Int[Array, "B T"],
    segments_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T"],
) -> Float[Array, "B T D"]:
    """The stream after the last layer and the final norm, in the compute dtype.

    Args:
      config, params: the model.
      tokens_BT: token ids.
      segments_BT: 1.. per document; tokens see their own document only. 0 is padding.
      positions_BT: position within the document.
    """
    freqs_R, factor = rope.frequencies(config.rope, config.head_dim)
    cos_BT1R, sin_BT1R = rope.angles(positions_BT, freqs_R, factor)
    context = Context(segments_BT, cos_BT1R, sin_BT1R)
    # The table is whole in width for the lookup: rows of the batch are split over the mesh axis
    # that splits the width, and the two can't be in one array.
    table_VD = sharding.constrain(placed(config, params, "embed"), ("vocab", None))
    x_BTD = jnp.take(table_VD, tokens_BT, axis=0).astype(config.compute_dtype)
    x_BTD = sharding.constrain(x_BTD, ("batch", "length", None))
    graph, axes = _declared(config, Layer)

    def layer(x_BTD: Array, weights: Params) -> tuple[Array, None]:
        # For the gradient's sake: see `placed`.
        weights = {name: sharding.constrain(leaf, axes[name]) for name, leaf in weights.items()}
        return nnx.merge(graph, weights)(x_BTD, context), None

    if config.remat != "none":
        policies = jax.checkpoint_policies
        policy = (
            policies.nothing_saveable
            if config.remat == "full"
            else policies.dots_with_no_batch_dims_saveable
        )
        layer = jax.checkpoint(layer, policy=policy, prevent_cse=False)
    # Laid out flat, a small model saves the copies into and out of the stack: a sixth of a step on
    # a CPU. With remat it must stay a loop, or the compiler would keep what it should make again.
    flat = config.remat == "none" and config.layers <= _MOST_FLAT_LAYERS
    x_BTD, _ = jax.lax.scan(layer, x_BTD, params["layers"], unroll=config.layers if flat else 1)
    return rms_norm(x_BTD, placed(config, params, "final_norm"), config.norm_eps)


def logits(
    config: TransformerConfig, params: Params, hidden_BTD: Float[Array, "B T D"]
) -> Float32[Array, "B T V"]:
    """The head's scores of every next token, float32."""
    weights_DV = placed(config, params, *head_names(config))
    if config.tied_head:
        weights_DV = weights_DV.T
    # Flat for the same reason as in `project`.
    logits_BTV = jnp.matmul(
        hidden_BTD.reshape(-1, config.dim),
        weights_DV.astype(config.head_dtype or config.compute_dtype),
        preferred_element_type=jnp.float32,
    ).reshape(*hidden_BTD.shape[:2], config.vocab_size)
    if config.logits_scale is not None:
        logits_BTV *= config.logits_scale
    return sharding.constrain(logits_BTV, ("batch", "length", "vocab"))


def apply(
    config: TransformerConfig,
    params: Params,
    tokens_BT: Int[Array, "B T"],
    segments_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T"],
) -> Float32[Array, "B T V"]:
    """Logits [B, T, V] in float32: `hidden`, then `logits`. Holds all of them in memory."""
    return logits(config, params, hidden(config, params, tokens_BT, segments_BT, positions_BT))
