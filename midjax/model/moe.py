# SPDX-License-Identifier: Apache-2.0
"""A mixture of experts that drops no token, on one device or many.

    x [B, T, D] --routing.route--> experts and weights of every token
        |                               |
        |     (token, slot) pairs, sorted by expert: "rows"
        |                               |
        +-- rows of x --matmul--> gate, up --> hidden --matmul--> summed per token --> y

Every device sorts its own tokens: the batch is never sorted across devices. With a mesh axis
`expert` the devices along it share their tokens: each gathers the tokens of all, computes its own
experts on the rows that chose them, and the sums go back to where the tokens live.

Memory per device, for n tokens of its own, k experts per token, F / t of the mlp's width on it:
  - the experts' weights, gathered over fsdp and context: 3 * E / expert * D * F / t values;
  - without `expert`: k * n rows of 2 * D + 3 * F / t values, whatever the routing;
  - with it: expert * n tokens of D values, twice (in `dtype` and, summed, in float32), and
    `_SLACK` * k * n rows as above at a time. Rows are worked off in as many such pieces as there
    are, most often one; all tokens on one expert cost time, not memory. The backward pass keeps
    nothing of the experts: it computes their gate and up again.
The backward pass holds gradients of the same sizes beside all of these.

Shape suffixes: B batch, T length, D model width, F experts' width, E experts (of this device),
K experts per token; N tokens of this device, M tokens of its expert group, P = M * K (token, slot)
pairs, R rows in the experts' order, C rows of one piece.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from midjax.model import architecture, grouped, routing, sharding

Aux = routing.Aux
balance_loss = routing.balance_loss
router_z_loss = routing.router_z_loss

Activation = Callable[[Array], Array]

_WEIGHTS: Mapping[str, sharding.Axes] = {
    "expert_gate": ("experts", "expert_embed", "mlp"),
    "expert_up": ("experts", "expert_embed", "mlp"),
    "expert_down": ("experts", "mlp", "expert_embed"),
}
_EXPERT, _TENSOR = sharding.TABLE["experts"], sharding.TABLE["mlp"]
_WIDTH = sharding.TABLE["expert_embed"]  # what splits D of the experts' weights
_TOKENS = (*sharding.TABLE["batch"], *sharding.TABLE["length"])
# Rows of a piece, in terms of those under even routing: somewhat uneven routing still is one piece.
_SLACK = 1.25


# ---- experts on rows ----


def _sort(chosen_MK: Array, first: Array | int, experts: int) -> tuple[Array, Array]:
    """(token, slot) pairs by expert, and how many went to each of `experts` from `first` on.

    Pairs of other experts come last.
    """
    place_P = (chosen_MK - first).reshape(-1)
    key_P = jnp.where((place_P >= 0) & (place_P < experts), place_P, experts)
    pairs_P = jnp.arange(key_P.size, dtype=jnp.int32)
    _, pair_P = jax.lax.sort((key_P, pairs_P), num_keys=1)
    sizes_E = jnp.sum(key_P[:, None] == jnp.arange(experts), axis=0, dtype=jnp.int32)
    return pair_P, sizes_E


def _resized(x: Array, size: int) -> Array:
    return jnp.pad(x, (0, max(0, size - x.size)))[:size]


def _take(x: Array, index: Array) -> Array:
    return x.at[index].get(mode="promise_in_bounds")


@jax.custom_vjp
def _spread(x: Array, index_R: Array, places: Array) -> Array:
    """x[index_R]. Its gradient is `_collect`: sums of few in float32, and no scatter."""
    return _take(x, index_R)


@jax.custom_vjp
def _collect(rows: Array, index_R: Array, places: Array) -> Array:
    """Sums over the first axis of `places` of the rows there; places past the last row are 0.

    The first axis, because a TPU would have to lay [N, K, D] out anew.
    """
    found = rows.at[places].get(mode="fill", fill_value=0)
    return jnp.sum(found, axis=0, dtype=jnp.float32).astype(rows.dtype)


_spread.defvjp(
    lambda x, index_R, places: (_spread(x, index_R, places), (index_R, places)),
    lambda kept, grad: (_collect(grad, *kept), None, None),
)
_collect.defvjp(
    lambda rows, index_R, places: (_collect(rows, index_R, places), (index_R, places)),
    lambda kept, grad: (_spread(grad, *kept), None, None),
)


def _through_experts(
    activation: Activation,
    kernel: grouped.Kernel,
    rows_RD: Array,
    weight_R: Array,
    experts: tuple[Array, Array, Array],
    own_R: Array,
    sizes_E: Array,
) -> Array:
    """Weighted results of rows, sorted by expert; those of rows that aren't own may be anything."""
    gate_EDF, up_EDF, down_EFD = experts
    # The product leaves the other rows unwritten: nothing of theirs may reach a sum over rows, and
    # a 0 times not a number is none.
    gate_RF, up_RF = (
        jnp.where(own_R[:, None], grouped.matmul(rows_RD, matrix, sizes_E, kernel), 0)
        for matrix in (gate_EDF, up_EDF)
    )
    weight_R1 = jnp.where(own_R, weight_R, 0)[:, None]

    # Only what goes in is kept: the float32 in between would be several times as much.
    @jax.checkpoint
    def hidden(gate_RF: Array, up_RF: Array, weight_R1: Array) -> Array:
        # The weight goes in here: it is one pass less over the rows than after `down`.
        wide_RF = activation(gate_RF.astype(jnp.float32)) * up_RF.astype(jnp.float32) * weight_R1
        return wide_RF.astype(rows_RD.dtype)

    return grouped.matmul(hidden(gate_RF, up_RF, weight_R1), down_EFD, sizes_E, kernel)


def _alone(
    activation: Activation,
    kernel: grouped.Kernel,
    x_ND: Array,
    chosen_NK: Array,
    weight_NK: Array,
    experts: tuple[Array, Array, Array],
) -> Array:
    """All experts on this device's tokens."""
    slots = chosen_NK.shape[1]
    pair_P, sizes_E = _sort(chosen_NK, 0, experts[0].shape[0])
    total, rows = jnp.sum(sizes_E), grouped.row_count(pair_P.size)
    place_P = jnp.argsort(pair_P)
    place_P = jnp.where(place_P < total, place_P, rows)
    pair_R, own_R = _resized(pair_P, rows), jnp.arange(rows) < total
    token_R, place_KN = pair_R // slots, place_P.reshape(-1, slots).T
    rows_RD = _spread(x_ND, token_R, place_KN)
    weight_R = _spread(weight_NK.reshape(-1), pair_R, place_P[None])
    out_RD = _through_experts(activation, kernel, rows_RD, weight_R, experts, own_R, sizes_E)
    return _collect(out_RD, token_R, place_KN)


# ---- some of the experts, on the rows of many tokens, piece by piece ----


@dataclasses.dataclass(frozen=True)
class _Pieces:
    """How sorted rows are cut: static, and equal on all devices; how many there are is not."""

    activation: Activation
    kernel: grouped.Kernel
    slots: int
    rows: int  # C

    def count(self, sizes_E: Array) -> Array:
        return (jnp.sum(sizes_E) + self.rows - 1) // self.rows

    def cut(self, piece: Array, pair_Q: Array, sizes_E: Array) -> tuple[Array, Array, Array]:
        """Pairs of a piece, which of them are own, and rows per expert."""
        start, ends_E = piece * self.rows, jnp.cumsum(sizes_E)
        pair_C = jax.lax.dynamic_slice(pair_Q, (start,), (self.rows,))
        own_C = start + jnp.arange(self.rows) < ends_E[-1]
        until_E = jnp.clip(ends_E - start, 0, self.rows)
        return pair_C, own_C, until_E - jnp.clip(ends_E - sizes_E - start, 0, self.rows)

    def add(self, sums: Array, index_C: Array, own_C: Array, values: Array) -> Array:
        own = own_C.reshape(-1, *[1] * (values.ndim - 1))
        values = jnp.where(own, values.astype(sums.dtype), 0)
        return sums.at[index_C].add(values, mode="promise_in_bounds")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum_of_pieces(
    how: _Pieces,
    x_MD: Array,
    weight_P: Array,
    experts: tuple[Array, Array, Array],
    pair_Q: Array,
    sizes_E: Array,
) -> Array:
    """Per token, the weighted results of those of its experts that are here.

    A loop over as many pieces as there are rows for, which is not known before it runs; hence the
    backward pass by hand.
    """

    def one(piece: Array, sum_MD: Array) -> Array:
        pair_C, own_C, sizes_E_of_piece = how.cut(piece, pair_Q, sizes_E)
        token_C = pair_C // how.slots
        out_CD = _through_experts(
            how.activation,
            how.kernel,
            _take(x_MD, token_C),
            _take(weight_P, pair_C),
            experts,
            own_C,
            sizes_E_of_piece,
        )
        return how.add(sum_MD, token_C, own_C, out_CD)

    zeros_MD = jnp.zeros(x_MD.shape, jnp.float32)
    return jax.lax.fori_loop(0, how.count(sizes_E), one, zeros_MD).astype(x_MD.dtype)


def _sum_of_pieces_fwd(how: _Pieces, *given: Any) -> Any:
    return _sum_of_pieces(how, *given), given


def _sum_of_pieces_bwd(how: _Pieces, given: Any, grad_MD: Array) -> Any:
    x_MD, weight_P, experts, pair_Q, sizes_E = given

    def one(piece: Array, sums: Any) -> Any:
        x_sum_MD, weight_sum_P, experts_sum = sums
        pair_C, own_C, sizes_E_of_piece = how.cut(piece, pair_Q, sizes_E)
        token_C = pair_C // how.slots

        def forward(rows_CD: Array, weight_C: Array, experts: Any) -> Array:
            return _through_experts(
                how.activation, how.kernel, rows_CD, weight_C, experts, own_C, sizes_E_of_piece
            )

        _, backward = jax.vjp(forward, _take(x_MD, token_C), _take(weight_P, pair_C), experts)
        of_rows_CD, of_weight_C, of_experts = backward(_take(grad_MD, token_C))
        return (
            how.add(x_sum_MD, token_C, own_C, of_rows_CD),
            how.add(weight_sum_P, pair_C, own_C, of_weight_C),
            jax.tree.map(jnp.add, experts_sum, of_experts),
        )

    zeros = jnp.zeros(x_MD.shape, jnp.float32), *jax.tree.map(jnp.zeros_like, (weight_P, experts))
    found = jax.lax.fori_loop(0, how.count(sizes_E), one, zeros)
    return found[0].astype(x_MD.dtype), found[1], found[2], None, None


_sum_of_pieces.defvjp(_sum_of_pieces_fwd, _sum_of_pieces_bwd)


def _shared(
    activation: Activation,
    kernel: grouped.Kernel,
    x_ND: Array,
    chosen_NK: Array,
    weight_NK: Array,
    experts: tuple[Array, Array, Array],
) -> Array:
    """This device's experts on the tokens of its expert group, then the sums of its own tokens."""
    gather = functools.partial(jax.lax.all_gather, axis_name=_EXPERT, tiled=True)
    x_MD, chosen_MK, weight_MK = (gather(x) for x in (x_ND, chosen_NK, weight_NK))
    here, slots = experts[0].shape[0], chosen_NK.shape[1]
    pair_P, sizes_E = _sort(chosen_MK, jax.lax.axis_index(_EXPERT) * here, here)
    most = grouped.row_count(x_MD.shape[0] * min(slots, here))
    rows = min(most, grouped.row_count(math.ceil(_SLACK * chosen_NK.size)))
    pair_Q = _resized(pair_P, -(-most // rows) * rows)
    how = _Pieces(activation, kernel, slots, rows)
    sum_MD = _sum_of_pieces(how, x_MD, weight_MK.reshape(-1), experts, pair_Q, sizes_E)
    return jax.lax.psum_scatter(sum_MD, _EXPERT, scatter_dimension=0, tiled=True)


# ---- on a mesh ----


@jax.custom_vjp
def _sum_over_tensor(x: Array) -> Array:
    """psum over the axis that splits F, without the second one that its gradient would be.

    shard_map gives each of the devices that share a result an equal part of its gradient, so
    their sum is a multiple of any of them.
    """
    return jax.lax.psum(x, _TENSOR)


_sum_over_tensor.defvjp(
    lambda x: (_sum_over_tensor(x), None),
    lambda _, grad: (grad * jax.lax.axis_size(_TENSOR),),
)


def _on_device(
    config: architecture.Experts,
    activation: Activation,
    kernel: grouped.Kernel,
    dtype: architecture.Dtype,
    mesh_shape: Mapping[str, int],
    x_BTD: Array,
    weights: Mapping[str, Array],
    valid_BT: Array,
) -> tuple[Array, Aux]:
    def is_split(axes: tuple[str, ...]) -> bool:
        return math.prod(mesh_shape.get(axis, 1) for axis in axes) > 1

    x_ND, valid_N = x_BTD.reshape(-1, x_BTD.shape[-1]), valid_BT.reshape(-1)
    chosen_NK, weight_NK, aux = routing.route(config, x_ND, weights["router"], valid_N)
    # Padding goes to no expert: all of it alike, it would overload some.
    chosen_NK = jnp.where(valid_N[:, None], chosen_NK, config.count)

    def whole(name: str) -> Array:
        matrix, axis = weights[name].astype(dtype), _WEIGHTS[name].index("expert_embed")
        if not is_split(_WIDTH):
            return matrix
        return jax.lax.all_gather(matrix, _WIDTH, axis=axis, tiled=True)

    experts = whole("expert_gate"), whole("expert_up"), whole("expert_down")
    mix = _shared if is_split(_EXPERT) else _alone
    y_ND = mix(activation, kernel, x_ND.astype(dtype), chosen_NK, weight_NK, experts)
    if is_split(_TENSOR):
        y_ND = _sum_over_tensor(y_ND)
    if is_split(_TOKENS):
        aux = jax.tree.map(lambda x: jax.lax.psum(x, _TOKENS), aux)
    return y_ND.reshape(x_BTD.shape), aux


def apply(
    config: architecture.Experts,
    activation: Activation,
    x_BTD: Float[Array, "B T D"],
    weights: Mapping[str, Float[Array, "..."]],
    valid_BT: Bool[Array, "B T"],
    dtype: architecture.Dtype,
) -> tuple[Float[Array, "B T D"], Aux]:
    """What the experts add to the stream: sum over the k chosen of weight * expert(x).

    An expert is down(activation(gate(x)) * up(x)). Every token goes through its k experts, however
    many others do. Memory: see the top of this file.

    Args:
      config: of the experts.
      activation: of the gate, on any shape.
      x_BTD: tokens.
      weights: of one layer: "router" [D, E], "expert_gate" and "expert_up" [E, D, F],
        "expert_down" [E, F, D].
      valid_BT: False on padding, which goes through no expert (y is 0 there) and counts in no sum.
      dtype: of the products and of y. Routing is float32.

    Returns:
      y [B, T, D], and the sums for the routers' losses over all tokens of all devices.

    Raises:
      ValueError: on a mesh whose axes don't divide the batch, its length, E, D or F.
    """
    assert weights["router"].shape[1] == weights["expert_gate"].shape[0] == config.count
    on_device = functools.partial(_on_device, config, activation, grouped.kernel(), dtype)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return on_device({}, x_BTD, weights, valid_BT)
    tokens: sharding.Axes = ("batch", "length")
    sharding.check_divides("The experts' input", x_BTD.shape, (*tokens, None), mesh.shape)
    for name, axes in _WEIGHTS.items():
        sharding.check_divides(name, weights[name].shape, axes, mesh.shape)
    split = {name: sharding.spec(axes) for name, axes in _WEIGHTS.items()}
    return jax.shard_map(
        functools.partial(on_device, mesh.shape),
        in_specs=(sharding.spec((*tokens, None)), {"router": P()} | split, sharding.spec(tokens)),
        out_specs=(sharding.spec((*tokens, None)), P()),
        check_vma=False,  # the kernels don't say over which axes their results vary
    )(x_BTD, {name: weights[name] for name in ("router", *_WEIGHTS)}, valid_BT)
