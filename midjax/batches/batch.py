# SPDX-License-Identifier: Apache-2.0
"""The record that crosses from data to training and evaluation."""

import dataclasses
from typing import Any

import jax
from jaxtyping import Float, Int

FIELDS = ("tokens", "targets", "segments", "positions", "weights", "source")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Packed rows. B = rows, T = row length in tokens; microbatches add an axis in front.
    Arrays are NumPy's on the host, JAX's on devices.

    Attributes:
      tokens: inputs.
      targets: the token after each input, in the same document.
      segments: 1.. per document in the row, or 1 where the documents of a row see each other; 0 is
        padding.
      positions: restart at 0 in every segment.
      weights: loss weight; 0 on padding and masked text.
      source: index into the mixture's sorted source names.
    """

    tokens: Int[Any, "... B T"]
    targets: Int[Any, "... B T"]
    segments: Int[Any, "... B T"]
    positions: Int[Any, "... B T"]
    weights: Float[Any, "... B T"]
    source: Int[Any, "... B T"]
