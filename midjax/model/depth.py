# SPDX-License-Identifier: Apache-2.0
"""The layers one after the other, as a loop over those that are alike.

dense | window window full | window window full | ... | window
first   period               `repeats` times in a loop   the rest
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from midjax.model import architecture

# More layers than this stay a loop, so that compiling takes the time of one layer.
_MOST_FLAT_LAYERS = 8
# How many layers may stand before the repeating part: some models begin with a few dense ones.
_MOST_FIRST_LAYERS = 4


@dataclasses.dataclass(frozen=True)
class _Depth:
    """Layers as first, then `repeats` times a block of `period` layers, then the rest.

    Layers of a block differ in kind; blocks are alike, so that they can be one loop.
    """

    first: int
    period: int
    repeats: int


@functools.cache
def _depth(config: architecture.TransformerConfig) -> _Depth:
    """The split that leaves the fewest layers to be written out."""
    kinds = [(config.layer_type(i), config.has_experts(i)) for i in range(config.layers)]

    def repeats(first: int, period: int) -> int:
        count = 1
        while kinds[first : first + period] == kinds[first + count * period :][:period]:
            count += 1
        return count

    best = None
    for first in range(min(_MOST_FIRST_LAYERS, config.layers - 1) + 1):
        for period in range(1, config.layers - first + 1):
            split = _Depth(first, period, repeats(first, period))
            written = config.layers - (split.repeats - 1) * period
            if best is None or written < best[0]:
                best = written, split
    assert best is not None
    return best[1]


def flat(config: architecture.TransformerConfig) -> bool:
    """Whether layers are written out, not a loop.

    A small model then saves the copies into and out of the stack: a sixth of a step on a CPU. With
    remat it must stay a loop, or the compiler would keep what it should make again.
    """
    return config.remat == "none" and config.layers <= _MOST_FLAT_LAYERS


def fold(
    config: architecture.TransformerConfig,
    members: Mapping[str, Sequence[int]],
    stacks: Mapping[str, Array],
    each: Callable[[int, Any, dict[str, Array]], tuple[Any, Any]],
    carry: Any,
) -> tuple[Any, Any]:
    """Folds a function over the layers.

    Args:
      config: the model.
      members: name of a weight -> the layers that have it.
      stacks: the weights, stacked in this order.
      each: (layer, which stands for all of its kind; carry; its weights) -> (carry, found).
      carry: a tree, which each layer gets from the one before it.

    Returns:
      The last carry; what was found along a new first axis, of those layers that did not return
      None; None if all did.
    """
    depth = _depth(config)
    first, period, repeats = depth.first, depth.period, depth.repeats

    def step(layer: int, carry: Any, take: Callable[[str], Array]) -> tuple[Any, list[Any]]:
        weights = {name: take(name) for name, having in members.items() if layer in having}
        carry, found = each(layer, carry, weights)
        return carry, [] if found is None else [found]

    def alone(layer: int, carry: Any) -> tuple[Any, list[Any]]:
        return step(layer, carry, lambda name: stacks[name][members[name].index(layer)])

    def block(carry: Any, pieces: dict[str, Array]) -> tuple[Any, Any]:
        taken = dict.fromkeys(pieces, 0)
        found: list[Any] = []

        def take(name: str) -> Array:
            taken[name] += 1
            return pieces[name][taken[name] - 1] if name in several else pieces[name]

        for layer in range(first, first + period):
            carry, here = step(layer, carry, take)
            found += here
        return carry, _stacked(found)

    parts: list[Any] = []  # each with an axis of layers in front
    for layer in range(first):
        carry, found = alone(layer, carry)
        parts += [_stacked(found)] if found else []
    end = first + period * repeats
    pieces, several = {}, set()
    for name, having in members.items():
        begin = sum(layer < first for layer in having)
        inside = sum(first <= layer < end for layer in having)
        if inside:
            pieces[name] = stacks[name][begin : begin + inside]
        # What the loop is given is at hand for the backward pass; of a part of it there would be
        # a second stack.
        if inside > repeats:
            several.add(name)
            pieces[name] = pieces[name].reshape(repeats, inside // repeats, *pieces[name].shape[1:])
    carry, of_blocks = jax.lax.scan(block, carry, pieces, unroll=repeats if flat(config) else 1)
    if of_blocks is not None:
        parts.append(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), of_blocks))
    for layer in range(end, config.layers):
        carry, found = alone(layer, carry)
        parts += [_stacked(found)] if found else []
    return carry, jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts) if parts else None


def _stacked(found: list[Any]) -> Any:
    """Along a new first axis; None for none."""
    return jax.tree.map(lambda *xs: jnp.stack(xs), *found) if found else None
