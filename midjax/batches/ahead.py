# SPDX-License-Identifier: Apache-2.0
"""Batches that are made before they are asked for, in a thread or in processes.

Grain carries batches, not documents: element i of its dataset is batch i, made in one go by
arithmetic on its index. So Grain's cost is that of a batch. It is imported where batches begin, or
by `load`, and takes a third of a second: a step may be compiled meanwhile.
"""

import functools
import importlib
import signal
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from midjax.batches import batch as batch_lib
from midjax.batches import parent
from midjax.batches import starts as starts_lib

if TYPE_CHECKING:
    import grain

    from midjax.batches import loader as loader_lib

# Rows whose pieces are looked up at a time: arithmetic on arrays costs little more than on numbers.
_CHUNK_ROWS = 1024


def load() -> None:
    """Imports Grain, if batches are to come soon."""
    importlib.import_module("grain")


class Source:
    """`[i]` is a process's parts of batch i, their fields and `row_ids`: a source for Grain."""

    def __init__(
        self,
        loader: "loader_lib.Loader",
        starts: starts_lib.Starts,
        parts: tuple[int, ...],
        of: int,
    ) -> None:
        self._loader, self._starts, self._parts, self._of = loader, starts, parts, of
        batch_rows = starts[1] - starts[0] if len(starts) > 1 else 1
        self._per_chunk = max(1, _CHUNK_ROWS // int(batch_rows))
        self._chunks = functools.lru_cache(maxsize=2)(self._chunk)

    def __reduce__(self) -> tuple:
        return Source, (self._loader, self._starts, self._parts, self._of)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        first = index - index % self._per_chunk
        begin, end = int(self._starts[index]), int(self._starts[index + 1])
        size, at = (end - begin) // self._of, begin - int(self._starts[first])
        found = self._chunks(first)
        made = []
        for one, other in _stretches(self._parts):
            here = slice(at + one * size, at + other * size)
            batch = self._loader.batch(found, here.start, here.stop)
            # Plain arrays, which Grain passes between processes in shared memory.
            fields = {name: getattr(batch, name) for name in batch_lib.FIELDS}
            made.append(fields | {"row_ids": found.ids[here]})
        if len(made) == 1:
            return made[0]
        return {name: np.concatenate([each[name] for each in made]) for name in made[0]}

    def _chunk(self, first: int) -> "loader_lib.GlobalRows":
        """The rows of some batches from batch `first` on."""
        last = min(first + self._per_chunk, len(self))
        return self._loader.rows(int(self._starts[first]), int(self._starts[last]))


def _stretches(parts: Sequence[int]) -> list[tuple[int, int]]:
    """Rising numbers as ranges [begin, end)."""
    found: list[tuple[int, int]] = []
    for part in parts:
        if found and found[-1][1] == part:
            found[-1] = found[-1][0], part + 1
        else:
            found.append((part, part + 1))
    return found


def _dataset(batches: Source, workers: int, prefetch: int) -> "grain.IterDataset":
    """Batches that are made ahead, see `Loader.batches`."""
    import grain

    source = grain.MapDataset.source(batches)
    # Local rows: no reading threads of Grain's own, which cost more than they save.
    dataset = source.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    if workers and len(batches):
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads one of its own
        return dataset.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=workers, per_worker_buffer_size=max(prefetch, 1)
            ),
            worker_init_fn=_begin,
        )
    if prefetch:
        return grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=prefetch)
    return dataset


def _begin(*_: int) -> None:
    """Sets a worker up: it lives exactly as long as the process that reads its batches."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the reader gets it too, and decides
    parent.end_with_it()


class Batches(Iterator[tuple[batch_lib.Batch, np.ndarray]]):
    """What Grain gives, as (Batch, row ids)."""

    def __init__(self, source: Source, workers: int, prefetch: int) -> None:
        self._elements = iter(_dataset(source, workers, prefetch))

    def __next__(self) -> tuple[batch_lib.Batch, np.ndarray]:
        fields = next(self._elements)
        row_ids = fields.pop("row_ids")
        return batch_lib.Batch(**fields), row_ids

    def close(self) -> None:
        """Ends the thread or the processes that make batches ahead."""
        self._elements.close()
