# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy per token without the whole of the logits in memory.

Shape suffixes: B batch, T length, C tokens of one chunk, D model width, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from midjax.model import architecture, transformer


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
    flattened B*T a sharded batch would have to be reshuffled. With one chunk nothing is made twice.

    Args:
      config, params: the model; only the head (or the tied embedding) is used.
      hidden_BTD: result of `transformer.hidden`.
      targets_BT: token ids.

    Returns:
      (nll_BT, log_z_BT), both float32. The z-loss is log_z^2.
    """
    length, chunk = targets_BT.shape[1], config.loss_chunk_tokens
    if length <= chunk:
        return _of_chunk(config, params, hidden_BTD, targets_BT)
    # Only what the head needs goes through the scan: the rest would get gradients of zeros.
    head = {name: params[name] for name in transformer.head_names(config)}
    of_chunk = jax.checkpoint(
        lambda weights, hidden, targets: _of_chunk(config, weights, hidden, targets),
        prevent_cse=False,
    )
    whole = length // chunk

    def chunks(x: Array) -> Array:
        cut = x[:, : whole * chunk]
        return cut.reshape(x.shape[0], whole, chunk, *x.shape[2:]).swapaxes(0, 1)

    def unchunks(x: Array) -> Array:
        return x.swapaxes(0, 1).reshape(x.shape[1], whole * chunk)

    _, found = jax.lax.scan(
        lambda carry, piece: (carry, of_chunk(head, *piece)),
        None,
        (chunks(hidden_BTD), chunks(targets_BT)),
    )
    nll_BT, log_z_BT = unchunks(found[0]), unchunks(found[1])
    if length % chunk:
        last = of_chunk(head, hidden_BTD[:, whole * chunk :], targets_BT[:, whole * chunk :])
        nll_BT = jnp.concatenate((nll_BT, last[0]), axis=1)
        log_z_BT = jnp.concatenate((log_z_BT, last[1]), axis=1)
    return nll_BT, log_z_BT
