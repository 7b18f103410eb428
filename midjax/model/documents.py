# SPDX-License-Identifier: Apache-2.0
"""How long the document is that each token of packed rows is in.

    segments  1 1 1 2 2 0          positions  0 1 2 0 1 0     ->     lengths  3 3 3 2 2 0

Shape suffixes: B batch, T length.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from midjax.model import context, sharding


def lengths(segments_BT: Int[Array, "B T"], positions_BT: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Tokens of the piece of a document that each token is in: its last position + 1.

    Args:
      segments_BT: 1.. per document, each in one run; 0 is padding.
      positions_BT: position within the document; of padding any number.

    Returns:
      Lengths in tokens; 0 for padding.
    """
    # Whole rows everywhere: scans over a split length cost a hundred small messages.
    segments_BT = sharding.constrain(segments_BT, ("batch", None))
    positions_BT = sharding.constrain(positions_BT, ("batch", None))
    # Two scans over runs, as pairs (a run starts here, the largest position so far): one gathers
    # the maximum at a run's end, the other carries it back to all of the run.
    Pair = tuple[Bool[Array, "B T"], Int[Array, "B T"]]

    def later(one: Pair, other: Pair) -> Pair:
        starts_BT, largest_BT = other
        largest_BT = jnp.where(starts_BT, largest_BT, jnp.maximum(one[1], largest_BT))
        return one[0] | starts_BT, largest_BT

    changes = segments_BT[:, 1:] != segments_BT[:, :-1]
    edge = jnp.ones_like(segments_BT[:, :1], bool)
    first_BT = jnp.concatenate([edge, changes], axis=1)
    last_BT = jnp.concatenate([changes, edge], axis=1)
    _, largest_BT = jax.lax.associative_scan(later, (first_BT, positions_BT), axis=1)
    _, largest_BT = jax.lax.associative_scan(later, (last_BT, largest_BT), axis=1, reverse=True)
    lengths_BT = jnp.where(segments_BT == 0, 0, largest_BT + 1)
    return sharding.constrain(lengths_BT, ("batch", None))


def lengths_on_mesh(
    segments_BT: Int[Array, "B T"], positions_BT: Int[Array, "B T"]
) -> Int[Array, "B T"]:
    """`lengths` of rows in the order that the mesh in force wants."""
    length, shards = segments_BT.shape[1], context.shards(jax.sharding.get_abstract_mesh().shape)
    if shards == 1:
        return lengths(segments_BT, positions_BT)
    # A document is one run of places in natural order only.
    back = context.natural(length, shards)
    lengths_BT = lengths(segments_BT[:, back], positions_BT[:, back])
    return sharding.constrain(lengths_BT[:, context.order(length, shards)], ("batch", "length"))
