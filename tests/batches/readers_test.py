# SPDX-License-Identifier: Apache-2.0
"""Which rows a process makes, in the abstract and with two real processes."""

import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from midjax.batches import batch, readers


class Device:
    def __init__(self, process_index):
        self.process_index = process_index


class Sharding:
    """Of rows over devices: `ranges` is (process, first row, row after the last) of each."""

    def __init__(self, *ranges):
        self._ranges = ranges

    def devices_indices_map(self, shape):
        return {Device(p): (slice(*rows), slice(None)) for p, *rows in self._ranges}


@pytest.mark.parametrize(
    ("ranges", "shares"),
    [
        ([(0, None, None)], [((0,), 1)]),
        ([(0, 0, 2), (0, 2, 4), (1, 4, 6), (1, 6, 8)], [((0, 1), 4), ((2, 3), 4)]),
        # Processes in another order than their rows.
        ([(1, 0, 4), (0, 4, 8)], [((1,), 2), ((0,), 2)]),
        # Two processes that split the length or the parameters hold the same rows.
        ([(0, 0, 4), (1, 0, 4), (2, 4, 8), (3, 4, 8)], [((0,), 2), ((0,), 2), ((1,), 2)]),
        ([(0, None, None), (1, None, None)], [((0,), 1), ((0,), 1)]),
        # Rows that are no neighbours, as on a TPU's square of chips.
        ([(0, 0, 2), (1, 2, 4), (1, 4, 6), (0, 6, 8)], [((0, 3), 4), ((1, 2), 4)]),
    ],
)
def test_shares(monkeypatch, ranges, shares):
    for process, (parts, of) in enumerate(shares):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        found = readers.share(Sharding(*ranges), (8, 16))
        assert found == readers.Share(parts=parts, of=of)


PROCESS = """
import sys
import jax, numpy as np
jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[1]), heartbeat_timeout_seconds=20)
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from midjax.batches import batch, readers
P, me = PartitionSpec, jax.process_index()
straight, crossed = [0, 1, 2, 3], [0, 2, 3, 1]  # devices 0 and 1 are process 0's
for order, shape, spec, want in (
    (straight, (4, 1), P("a"), ((0, 1), (2, 3))[me]),
    (crossed, (4, 1), P("a"), ((0, 3), (1, 2))[me]),
    (straight, (2, 2), P("b"), (0,)),  # copies: both hold all rows
    (straight, (2, 2), P("b", "a"), (0,)),  # and each a half of every row's length
    (crossed, (2, 2), P("a", "b"), (0,)),
):
    devices = np.array(jax.devices())[order].reshape(shape)
    mesh = jax.sharding.Mesh(devices, ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, spec)
    whole = np.arange(32, dtype=np.int32).reshape(8, 4)
    share = readers.share(sharding, whole.shape)
    assert share.parts == want, (share, want)
    mine = np.concatenate([np.split(whole, share.of)[part] for part in share.parts])
    fields = dict.fromkeys(batch.FIELDS, mine) | {"weights": mine.astype(np.float32)}
    placed = readers.place(batch.Batch(**fields), sharding, share)
    for array in jax.tree.leaves(placed):
        assert array.shape == (8, 4)
        for shard in array.addressable_shards:
            assert (np.asarray(shard.data) == whole[shard.index]).all()
jax.distributed.shutdown()
"""


def test_two_processes_make_one_batch():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = "--xla_force_host_platform_device_count=2"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(p), address],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for p in range(2)
    ]  # fmt: skip
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors


def test_place_on_one_process():
    fields = {f: np.arange(6, dtype=np.int32).reshape(2, 3) for f in batch.FIELDS}
    made = batch.Batch(**fields | {"weights": np.ones((2, 3), np.float32)})
    mesh = jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    placed = readers.place(made, sharding)
    for field in batch.FIELDS:
        array = getattr(placed, field)
        assert isinstance(array, jax.Array) and array.sharding == sharding
        assert (np.asarray(array) == getattr(made, field)).all()
