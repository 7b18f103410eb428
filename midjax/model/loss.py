# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy per token without the whole of the logits in memory.

Shape suffixes: B batch, T length, C tokens of one chunk, D model width, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from midjax.model import architecture, context, fsdp, transformer


def _of_chunk(
    config: architecture.TransformerConfig,
    params: Any,
    hidden_BCD: Float[Array, "B C D"],
    targets_BC: Int[Array, "B C"],
) -> tuple[Float32[Array, "B C"], Float32[Array, "B C"]]:
    logits_BCV = transformer.logits(config, params, hidden_BCD)
    # The gradient through the maximum cancels. `jax.nn.logsumexp` gives the same numbers, but its
    # guards against infinities cost more than the head's products on a CPU.
    top_BC = jax.lax.stop_gradient(logits_BCV.max(axis=-1))
    log_z_BC = top_BC + jnp.log(jnp.exp(logits_BCV - top_BC[..., None]).sum(axis=-1))
    # A comparison and a sum, not a gather: it stays local where the vocabulary is sharded, and its
    # gradient is not a scatter.
    hit_BCV = jnp.arange(config.vocab_size) == targets_BC[..., None]
    target_BC = jnp.where(hit_BCV, logits_BCV, 0.0).sum(axis=-1)
    return log_z_BC - target_BC, log_z_BC


def token_losses(
    config: architecture.TransformerConfig,
    params: Any,
    hidden_BTD: Float[Array, "B T D"],
    targets_BT: Int[Array, "B T"],
) -> tuple[Float32[Array, "B T"], Float32[Array, "B T"]]:
    """Negative log likelihood of every target in nats, and the log of the softmax's denominator.

    Logits are made for `config.loss_chunk_tokens` positions of every row at a time, and made again
    in the backward pass, so [B, T, V] in float32 never exists. The chunks run along T: along the
    flattened B*T a sharded batch would have to be reshuffled. Where the mesh in force splits T over
    `context`, every chunk takes its part from every shard, so that all of them work on it. With one
    chunk nothing is made twice.

    Args:
      config, params: the model; only the head (or the tied embedding) is used.
      hidden_BTD: result of `transformer.hidden`.
      targets_BT: token ids.

    Returns:
      (nll_BT, log_z_BT), both float32. The z-loss is log_z^2.
    """
    # Only what the head needs goes through the scan: the rest would get gradients of zeros.
    head = {name: params[name] for name in transformer.head_names(config)}
    if not fsdp.applies():
        return _in_chunks(config, head, hidden_BTD, targets_BT)
    axes, dtype = transformer.head_axes(config), config.head_dtype or config.compute_dtype
    # Of the backward pass: the whole gradient of the head is not kept beside the layers'.
    hidden_BTD, head = jax.lax.optimization_barrier((hidden_BTD, head))

    def on_rows(hidden_BTD: Array, part: dict[str, Array], targets_BT: Array) -> Any:
        # Once for all chunks; their gradients are added up in float32 before they travel.
        whole = fsdp.whole(part, axes, dtype)
        whole = {name: leaf.astype(jnp.float32) for name, leaf in whole.items()}
        return _in_chunks(config, whole, hidden_BTD, targets_BT)

    return fsdp.on_rows(on_rows, axes, hidden_BTD, head, targets_BT)


def _in_chunks(
    config: architecture.TransformerConfig,
    head: Any,
    hidden_BTD: Float[Array, "B T D"],
    targets_BT: Int[Array, "B T"],
) -> tuple[Float32[Array, "B T"], Float32[Array, "B T"]]:
    (rows, length), shards = targets_BT.shape, _shards()
    if length <= config.loss_chunk_tokens:
        return _of_chunk(config, head, hidden_BTD, targets_BT)
    of_chunk = jax.checkpoint(
        lambda weights, hidden, targets: _of_chunk(config, weights, hidden, targets),
        prevent_cse=False,
    )
    chunk = max(config.loss_chunk_tokens // shards, 1)
    whole, rest = divmod(length // shards, chunk)

    def chunks(x: Array, first: int, count: int, size: int) -> Array:
        cut = x.reshape(rows, shards, -1, *x.shape[2:])[:, :, first : first + count * size]
        cut = jnp.moveaxis(cut.reshape(rows, shards, count, size, *x.shape[2:]), 2, 0)
        return cut.reshape(count, rows, shards * size, *x.shape[2:])

    def unchunks(x: Array, size: int) -> Array:
        return jnp.moveaxis(x.reshape(-1, rows, shards, size), 0, 2).reshape(rows, shards, -1)

    _, found = jax.lax.scan(
        lambda carry, piece: (carry, of_chunk(head, *piece)),
        None,
        tuple(chunks(x, 0, whole, chunk) for x in (hidden_BTD, targets_BT)),
    )
    found = [unchunks(x, chunk) for x in found]
    if rest:
        last = of_chunk(
            head, *(chunks(x, whole * chunk, 1, rest)[0] for x in (hidden_BTD, targets_BT))
        )
        ends = [unchunks(x[None], rest) for x in last]
        found = [jnp.concatenate(pair, axis=2) for pair in zip(found, ends, strict=True)]
    nll_BT, log_z_BT = (x.reshape(rows, length) for x in found)
    return nll_BT, log_z_BT


def _shards() -> int:
    """Into how many parts the mesh in force splits T."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else context.shards(mesh.shape)
