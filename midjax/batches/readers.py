# SPDX-License-Identifier: Apache-2.0
"""Which part of every batch a process has to make, and how it reaches the devices.

A batch is cut in as many equal parts as devices hold different rows. A process makes those of its
own devices. On a TPU they are not neighbours: a host has a square of chips, and the mesh goes
through the slice line by line.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from midjax.batches import batch as batch_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """The rows that a process makes.

    Attributes:
      parts: which, rising.
      of: parts of a batch, all equal.
    """

    parts: tuple[int, ...] = (0,)
    of: int = 1


def share(sharding: jax.sharding.Sharding, shape: tuple[int, int]) -> Share:
    """What the devices of this process hold of a batch.

    Processes that hold the same rows, such as those of one tensor-parallel group, have one share.

    Args:
      sharding: of rows, `model.sharding.batch`.
      shape: (B, T) of the whole batch; B divides over the devices.
    """
    every, own = set(), set()
    device: jax.Device
    for device, index in sharding.devices_indices_map(shape).items():
        begin, _, _ = index[0].indices(shape[0])
        every.add(begin)
        if device.process_index == jax.process_index():
            own.add(begin)
    if own == every:
        return Share()
    ordered = sorted(every)
    return Share(parts=tuple(ordered.index(begin) for begin in sorted(own)), of=len(ordered))


WHOLE = Share()


def place(
    batch: batch_lib.Batch, sharding: jax.sharding.NamedSharding, share: Share = WHOLE
) -> batch_lib.Batch:
    """This process's rows -> arrays [B, T] over all processes.

    Each device is sent a view of its part: nothing is copied on the host.

    Args:
      batch: the parts of `share`, one after the other, whole rows; their places in the order that
        the mesh wants, see `model.context.arrange`.
      sharding: of rows, `model.sharding.batch`.
      share: of this process.
    """

    def one(x: np.ndarray) -> jax.Array:
        size = len(x) // len(share.parts)
        first_here = {part: size * number for number, part in enumerate(share.parts)}
        shape = (size * share.of, *x.shape[1:])

        def held(index: Any) -> np.ndarray:
            begin, end, _ = index[0].indices(shape[0])
            part, within = divmod(begin, size)
            at = first_here[part] + within
            return x[(slice(at, at + end - begin), *index[1:])]

        return jax.make_array_from_callback(shape, sharding, held)

    return jax.tree.map(one, batch)
