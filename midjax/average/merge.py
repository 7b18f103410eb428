# SPDX-License-Identifier: Apache-2.0
"""The weighted mean of checkpoints, one array at a time.

for each array: read it from an ingredient, add it to a float64 sum, ...; cast, place

The mesh holds the mean so far and one array of one ingredient; the host holds that array's sum in
float64, of its own shards only. No part of it grows with the number of ingredients.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from midjax import trees
from midjax.average import ingredients as ingredients_lib

# Numbers that are widened to float64 at a time.
_CHUNK = 1 << 20


def mean(
    ingredients: Sequence[ingredients_lib.Ingredient], weights: Sequence[float], targets: Any
) -> Any:
    """sum_i weights[i] * params_i / sum_i weights[i], in float64, rounded once at the end.

    Args:
      ingredients: checked; all hold the arrays of `targets`.
      weights: one for each. Equal ones are best given as 1, which adds no rounding of its own: the
        result is numpy's mean in float64, cast. A single one gives its ingredient back, bit for
        bit.
      targets: tree of `ShapeDtypeStruct` with shardings.

    Raises:
      CheckpointError, DamagedError: an ingredient cannot be read or is damaged; names it.
    """
    divisor = math.fsum(weights)
    readers = [ingredients_lib.Reader(one, targets) for one in ingredients]
    made = []
    for name, target in trees.named_leaves(targets):
        total = _Total(target)
        for reader, weight in zip(readers, weights, strict=True):
            total.add(reader.read(name, target.sharding), weight)
        made.append(total.placed(divisor))
    return jax.tree.unflatten(jax.tree.structure(targets), made)


class _Total:
    """A sum in float64 on the host: one part per distinct shard that this process holds."""

    def __init__(self, target: Any) -> None:
        self._target = target
        self._parts: dict[tuple[Any, ...], np.ndarray] = {}

    def add(self, array: jax.Array, weight: float) -> None:
        done = set()
        for shard in array.addressable_shards:
            key = self._key(shard.index)
            if key in done:  # a copy on another device
                continue
            done.add(key)
            here = np.asarray(shard.data)
            if key not in self._parts:
                # -0 is what adds nothing: 0 would make 0 of a -0.
                self._parts[key] = np.full(here.shape, -0.0, np.float64)
            _add(self._parts[key], here, weight)

    def placed(self, divisor: float) -> jax.Array:
        """The sum / divisor with the target's dtype, on its devices. Uses the parts up."""
        target, cast = self._target, {}
        with np.errstate(over="ignore"):  # the caller looks for infinities
            for key in list(self._parts):
                part = self._parts.pop(key)
                part /= divisor
                cast[key] = part.astype(target.dtype)
        return jax.make_array_from_callback(
            target.shape, target.sharding, lambda index: cast[self._key(index)]
        )

    def _key(self, index: tuple[slice, ...] | None) -> tuple[Any, ...]:
        sizes = self._target.shape
        assert index is not None
        return tuple(part.indices(size) for part, size in zip(index, sizes, strict=True))


def _add(total: np.ndarray, array: np.ndarray, weight: float) -> None:
    """total += weight * array, without a float64 copy of the whole."""
    sums, new = total.reshape(-1), np.ascontiguousarray(array).reshape(-1)
    for begin in range(0, sums.size, _CHUNK):
        here = slice(begin, begin + _CHUNK)
        sums[here] += weight * new[here].astype(np.float64)
