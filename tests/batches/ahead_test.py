# SPDX-License-Identifier: Apache-2.0
"""Batches made ahead, by a thread or by processes, whole or in parts: always the same."""

import dataclasses
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest
import tiny_run as tiny

from midjax.batches import batch as batch_lib
from midjax.batches import loader as loader_lib


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ahead")
    tiny.write_tokens(folder)
    return tiny.data(folder, batch_rows=8)


def loader(data, total_rows):
    return loader_lib.Loader(data, loader_lib.Opened(data), total_rows=total_rows)


def test_processes_make_the_same_batches(data):
    alone = list(loader(data, 160).batches(next_row=96))
    busy = loader(dataclasses.replace(data, workers=2), 160)
    batches = busy.batches(next_row=96)
    made = list(batches)
    batches.close()
    assert len(made) == len(alone) == 8
    for (one, one_ids), (other, other_ids) in zip(alone, made, strict=True):
        assert (one_ids == other_ids).all()
        for field in batch_lib.FIELDS:
            assert (getattr(one, field) == getattr(other, field)).all()


def test_processes_that_make_batches_survive_sigterm(data):
    """A whole group of processes may get it, when its machine is taken away."""
    batches = loader(dataclasses.replace(data, workers=1), 400).batches(next_row=0)
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGTERM)
    assert len(list(batches)) == 49
    batches.close()


def test_processes_that_make_batches_end_with_one_that_is_killed(data, tmp_path):
    """They hold its output, so that ends when the last of them does."""
    code = (
        "import multiprocessing, os, pathlib, pickle, signal, sys\n"
        "loader = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "batches = loader.batches(next_row=0)\n"
        "next(batches)\n"
        "print(*(x.pid for x in multiprocessing.active_children()), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    given = tmp_path / "loader"
    given.write_bytes(pickle.dumps(loader(dataclasses.replace(data, workers=1), 8000)))
    killed = subprocess.Popen([sys.executable, "-c", code, given], stdout=subprocess.PIPE)
    (worker,) = map(int, killed.stdout.readline().split())
    try:
        killed.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.kill(worker, signal.SIGKILL)
        raise
    assert killed.returncode == -signal.SIGKILL


def test_parts_that_are_no_neighbours(data):
    """As a host of a TPU's slice holds them: its rows one after the other."""
    made = loader(data, 160)
    whole = list(made.batches(next_row=16, prefetch=0))
    parts = list(made.batches(next_row=16, prefetch=0, parts=(0, 2, 3), of=4))
    assert len(whole) == len(parts) == 18
    rows = np.array([0, 1, 4, 5, 6, 7])
    for (batch, ids), (part, part_ids) in zip(whole, parts, strict=True):
        assert (part_ids == ids[rows]).all()
        for field in batch_lib.FIELDS:
            assert (getattr(part, field) == getattr(batch, field)[rows]).all()
