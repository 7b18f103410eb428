# SPDX-License-Identifier: Apache-2.0
"""Floating-point operations that a training step is worth, and how fast devices could do them.

The formula, for tokens that are not padding:

    FLOPs = 6 * P * tokens  +  12 * N * H * (sum over layers of the pairs that the layer sees)

    P       matrix entries that a token is multiplied with: attention's four matrices, the mlp's
            three, of experts the k that it goes through and the router, and the head. The
            embedding is looked up, not multiplied; a tied head counts as a head.
    pairs   (query, key) with the key in the query's document and not after it: L (L + 1) / 2 for a
            document of L tokens; at most `window_tokens` per query in a "window" layer.
    6, 12   forward 2 and 4 per entry and pair (a product and a sum; scores, then values), backward
            twice the forward.

This is the model FLOPs utilisation of PaLM (2204.02311, appendix B: 6 N + 12 L H Q T per token),
but that PaLM takes T keys for every query and all parameters for N. Against other formulas:

- MaxText halves PaLM's attention for causality and takes the row for one document, which is this
  formula with L for L + 1. Where documents are packed it counts pairs that no token sees.
- Nominal 6 N D leaves attention out and counts the embedding.
- Remat, logits that are made twice, blocks that a mask empties and padding are work of the
  hardware and not of the model: none is counted. Nor are norms, softmax, rope and the optimizer.
"""

from typing import Any

import numpy as np
from jaxtyping import Int

from midjax.model import architecture

# Of one JAX device, bfloat16 products, FLOP/s. Google Cloud's pages on each TPU, "peak compute per
# chip (bf16)": https://cloud.google.com/tpu/docs/v4 (275 TFLOPs), v5e (197), v5p (459), v6e (918).
# From v4 on a chip is one device. Before it, and on TPU7x, a chip is two: not in the table.
_PEAK = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}


def peak_flops_per_second(device_kind: str) -> float | None:
    """What one device could do in bfloat16; None for kinds that are not known.

    Args:
      device_kind: as `jax.Device.device_kind` says it.
    """
    return _PEAK.get(device_kind)


def matrix_entries(config: architecture.TransformerConfig) -> int:
    """P: entries of the matrices that one token is multiplied with, see the top of this file."""
    D, F, H = config.dim, config.ffn_dim, config.head_dim
    attention = 2 * D * H * (config.heads + config.kv_heads)
    total = config.vocab_size * D
    for layer in range(config.layers):
        total += attention
        if config.has_experts(layer):
            assert config.experts is not None
            total += D * config.experts.count
            total += 3 * D * config.experts.ffn_dim * config.experts.per_token
        else:
            total += 3 * D * F
    return total


def pairs(
    segments: Int[Any, "... T"], positions: Int[Any, "... T"], window_tokens: int | None
) -> int:
    """(query, key) pairs that see each other in packed rows.

    Args:
      segments: 0 is padding, as in `Batch`, on the host.
      positions: restart at 0 where a token does not see what stands before it, as in `Batch`.
      window_tokens: keys that a query sees at most, itself included; None for all.
    """
    seen = np.asarray(positions) + 1
    if window_tokens is not None:
        seen = np.minimum(seen, window_tokens)
    return int(seen.sum(dtype=np.int64, where=np.asarray(segments) > 0))


def of_rows(
    config: architecture.TransformerConfig,
    segments: Int[Any, "... T"],
    positions: Int[Any, "... T"],
) -> int:
    """FLOPs of a training step on packed rows, forward and backward.

    Args:
      config: the model.
      segments, positions: see `pairs`. The order of a row's places makes no difference.
    """
    windows = [config.window_of(config.layer_type(layer)) for layer in range(config.layers)]
    seen = {window: pairs(segments, positions, window) for window in set(windows)}
    tokens = int(np.count_nonzero(segments))
    attention = config.heads * config.head_dim * sum(seen[window] for window in windows)
    return 6 * matrix_entries(config) * tokens + 12 * attention
