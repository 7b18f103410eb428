# SPDX-License-Identifier: Apache-2.0
"""Which part of every batch a process has to make."""

import itertools

import jax


def share(sharding: jax.sharding.Sharding, shape: tuple[int, int]) -> tuple[int, int]:
    """(reader, readers) of this process: which equal part of a batch its devices hold.

    Processes that hold the same rows, such as those of one tensor-parallel group, are one reader.

    Args:
      sharding: of rows, `model.sharding.batch`.
      shape: (B, T) of the whole batch.

    Raises:
      ValueError: the processes' rows are no equal parts, each in one piece.
    """
    found: dict[int, set[tuple[int, int]]] = {}
    device: jax.Device
    for device, index in sharding.devices_indices_map(shape).items():
        begin, end, _ = index[0].indices(shape[0])
        found.setdefault(device.process_index, set()).add((begin, end))
    whole = {process: _joined(parts) for process, parts in found.items()}
    readers = len(set(whole.values()))
    size = shape[0] // readers
    equal = [(i * size, (i + 1) * size) for i in range(readers)]
    if set(whole.values()) != set(equal):
        raise ValueError(
            f"The processes' devices hold these rows of a batch of {shape[0]}: {whole}, which are "
            "not equal parts in one piece each. Order the mesh so that each process has "
            "neighbouring data shards."
        )
    return equal.index(whole[jax.process_index()]), readers


def _joined(parts: set[tuple[int, int]]) -> tuple[int, int]:
    """Ranges that follow each other as one; (-1, -1) where they do not."""
    ordered = sorted(parts)
    if any(end != begin for (_, end), (begin, _) in itertools.pairwise(ordered)):
        return -1, -1
    return ordered[0][0], ordered[-1][1]
