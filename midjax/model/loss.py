# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy per token without the whole of the logits in memory.

Shape suffixes: B batch, T length, C tokens of one chunk, D model width, V vocabulary.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from midjax.model import architecture, context, fsdp, transformer

Losses = tuple[Float32[Array, "B T"], Float32[Array, "B T"]]


def token_losses(
    config: architecture.TransformerConfig,
    params: Any,
    hidden_BTD: Float[Array, "B T D"],
    targets_BT: Int[Array, "B T"],
) -> Losses:
    """Negative log likelihood of every target in nats, and the log of the softmax's denominator.

    Logits are made for `config.loss_chunk_tokens` positions of every row at a time, so [B, T, V] in
    float32 never exists. The chunks run along T: along the flattened B*T a sharded batch would have
    to be reshuffled. Where the mesh in force splits T over `context`, every chunk takes its part
    from every shard, so that all of them work on it.

    For evaluation: `objective` has a gradient that holds no more.

    Args:
      config, params: the model; only the head (or the tied embedding) is used.
      hidden_BTD: result of `transformer.hidden`.
      targets_BT: token ids.

    Returns:
      (nll_BT, log_z_BT), both float32. The z-loss is log_z^2.
    """

    def on_rows(hidden_BTD: Array, head: Any, targets_BT: Array) -> Losses:
        def of_chunk(carry: None, piece: tuple[Array, Array]) -> tuple[None, Losses]:
            return carry, _of_chunk(config, head, *piece)

        return _in_chunks(config, of_chunk, None, (hidden_BTD, targets_BT))[1]

    return _by_device(config, on_rows, params, hidden_BTD, targets_BT)


def objective(
    config: architecture.TransformerConfig,
    params: Any,
    hidden_BTD: Float[Array, "B T D"],
    targets_BT: Int[Array, "B T"],
    weights_BT: Float32[Array, "B T"],
    z_loss_weight: float,
) -> tuple[Float32[Array, ""], Losses]:
    """sum(weights * (nll + z_loss_weight * log_z^2)), and `token_losses`.

    Each chunk's gradients are made with its logits, and nothing is made twice: it is the gradient
    of a sum, so it is known before the backward pass but for one factor, the sum's own gradient.

    Args:
      config, params, hidden_BTD, targets_BT: see `token_losses`.
      weights_BT: of each token in the sum. Where 0, the loss may be infinite and the sum is not;
        gradients then are no numbers, and `train` skips such an update.
      z_loss_weight: of the z-loss (2204.02311, section 5); 0 for none.

    Returns:
      The sum, through which alone gradients go, to `params` and `hidden_BTD`; (nll_BT, log_z_BT).
    """

    def on_rows(hidden_BTD: Array, head: Any, given: tuple[Array, Array]) -> Any:
        total, losses = _objective(config, z_loss_weight, head, hidden_BTD, *given)
        # With B and T in front, as all that a device returns.
        return total[None, None], losses

    totals, losses = _by_device(config, on_rows, params, hidden_BTD, (targets_BT, weights_BT))
    return totals.sum(), jax.lax.stop_gradient(losses)


def _by_device(
    config: architecture.TransformerConfig,
    function: Callable[[Array, Any, Any], Any],
    params: Any,
    hidden_BTD: Array,
    given: Any,
) -> Any:
    """function(hidden, head, given), by each device of its own rows where FSDP has them."""
    # Only what the head needs goes through the scan: the rest would get gradients of zeros.
    head = {name: params[name] for name in transformer.head_names(config)}
    if not fsdp.applies():
        return function(hidden_BTD, head, given)
    axes, dtype = transformer.head_axes(config), config.head_dtype or config.compute_dtype
    # Of the backward pass: the whole gradient of the head is not kept beside the layers'.
    hidden_BTD, head = jax.lax.optimization_barrier((hidden_BTD, head))

    def on_rows(hidden_BTD: Array, part: dict[str, Array], given: Any) -> Any:
        # Once for all chunks; their gradients are added up in float32 before they travel.
        whole = fsdp.whole(part, axes, dtype)
        whole = {name: leaf.astype(jnp.float32) for name, leaf in whole.items()}
        return function(hidden_BTD, whole, given)

    return fsdp.on_rows(on_rows, axes, hidden_BTD, head, given)


def _of_chunk(
    config: architecture.TransformerConfig,
    head: Any,
    hidden_BCD: Float[Array, "B C D"],
    targets_BC: Int[Array, "B C"],
) -> tuple[Float32[Array, "B C"], Float32[Array, "B C"]]:
    logits_BCV = transformer.logits(config, head, hidden_BCD)
    # The gradient through the maximum cancels. `jax.nn.logsumexp` gives the same numbers, but its
    # guards against infinities cost more than the head's products on a CPU.
    top_BC = jax.lax.stop_gradient(logits_BCV.max(axis=-1))
    log_z_BC = top_BC + jnp.log(jnp.exp(logits_BCV - top_BC[..., None]).sum(axis=-1))
    # A comparison and a sum, not a gather: it stays local where the vocabulary is sharded, and its
    # gradient is not a scatter.
    hit_BCV = jnp.arange(config.vocab_size) == targets_BC[..., None]
    target_BC = jnp.where(hit_BCV, logits_BCV, 0.0).sum(axis=-1)
    return log_z_BC - target_BC, log_z_BC


def _sum_of_chunk(
    config: architecture.TransformerConfig,
    z_loss_weight: float,
    head: Any,
    hidden_BCD: Array,
    targets_BC: Array,
    weights_BC: Array,
) -> tuple[Array, Losses]:
    nll_BC, log_z_BC = _of_chunk(config, head, hidden_BCD, targets_BC)
    terms_BC = nll_BC + z_loss_weight * jnp.square(log_z_BC) if z_loss_weight else nll_BC
    # Selected, not multiplied: the loss of a place without weight may be infinite, and 0 * inf is
    # not a number.
    return jnp.where(weights_BC > 0, weights_BC * terms_BC, 0.0).sum(), (nll_BC, log_z_BC)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _objective(
    config: architecture.TransformerConfig,
    z_loss_weight: float,
    head: Any,
    hidden_BTD: Array,
    targets_BT: Array,
    weights_BT: Array,
) -> tuple[Array, Losses]:
    def add(total: Array, piece: Any) -> tuple[Array, Losses]:
        here, losses = _sum_of_chunk(config, z_loss_weight, head, *piece)
        return total + here, losses

    return _in_chunks(config, add, jnp.float32(0), (hidden_BTD, targets_BT, weights_BT))


def _objective_forward(
    config: architecture.TransformerConfig,
    z_loss_weight: float,
    head: Any,
    hidden_BTD: Array,
    targets_BT: Array,
    weights_BT: Array,
) -> tuple[Any, Any]:
    def add(carry: Any, piece: tuple[Array, Array, Array]) -> tuple[Any, Any]:
        total, of_head = carry
        hidden_BCD, *given = piece
        here, pullback, losses = jax.vjp(
            lambda head, hidden_BCD: _sum_of_chunk(config, z_loss_weight, head, hidden_BCD, *given),
            head,
            hidden_BCD,
            has_aux=True,
        )
        of_head_here, of_hidden_BCD = pullback(jnp.ones_like(here))
        of_head = jax.tree.map(jnp.add, of_head, of_head_here)
        return (total + here, of_head), (*losses, of_hidden_BCD)

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), head)
    (total, of_head), (nll_BT, log_z_BT, of_hidden_BTD) = _in_chunks(
        config, add, (jnp.float32(0), zeros), (hidden_BTD, targets_BT, weights_BT)
    )
    of_head = jax.tree.map(lambda grad, leaf: grad.astype(leaf.dtype), of_head, head)
    return (total, (nll_BT, log_z_BT)), (of_head, of_hidden_BTD)


def _objective_backward(
    config: architecture.TransformerConfig, z_loss_weight: float, kept: Any, cotangent: Any
) -> tuple[Any, Any, None, None]:
    of_total, _ = cotangent
    of_head, of_hidden_BTD = jax.tree.map(lambda grad: of_total.astype(grad.dtype) * grad, kept)
    return of_head, of_hidden_BTD, None, None


_objective.defvjp(_objective_forward, _objective_backward)


def _in_chunks(
    config: architecture.TransformerConfig,
    function: Callable[[Any, Any], tuple[Any, tuple[Array, ...]]],
    carry: Any,
    pieces: tuple[Array, ...],
) -> tuple[Any, Any]:
    """Folds `function(carry, pieces [B, C, ...])` over chunks of T.

    Returns:
      The last carry; what was found of each chunk, side by side: arrays [B, T, ...].
    """
    (rows, length), shards = pieces[0].shape[:2], context.split_here()
    of_mesh = context.shards(jax.sharding.get_abstract_mesh().shape)
    chunk = max(config.loss_chunk_tokens // of_mesh, 1)  # of each part of a row
    if length // shards <= chunk:
        return function(carry, pieces)
    whole, rest = divmod(length // shards, chunk)

    def chunks(x: Array, first: int, count: int, size: int) -> Array:
        cut = x.reshape(rows, shards, -1, *x.shape[2:])[:, :, first : first + count * size]
        cut = jnp.moveaxis(cut.reshape(rows, shards, count, size, *x.shape[2:]), 2, 0)
        return cut.reshape(count, rows, shards * size, *x.shape[2:])

    def unchunks(x: Array, size: int) -> Array:
        x = jnp.moveaxis(x.reshape(-1, rows, shards, size, *x.shape[3:]), 0, 2)
        return x.reshape(rows, shards, -1, *x.shape[4:])

    carry, found = jax.lax.scan(function, carry, tuple(chunks(x, 0, whole, chunk) for x in pieces))
    found = tuple(unchunks(x, chunk) for x in found)
    if rest:
        carry, last = function(carry, tuple(chunks(x, whole * chunk, 1, rest)[0] for x in pieces))
        ends = [unchunks(x[None], rest) for x in last]
        found = tuple(jnp.concatenate(pair, axis=2) for pair in zip(found, ends, strict=True))
    return carry, tuple(x.reshape(rows, length, *x.shape[3:]) for x in found)
