# SPDX-License-Identifier: Apache-2.0
"""A process ends with the one that started it, also where that was killed."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest

# All that it starts holds its output, so that ends when the last of them does.
SCRIPT = """
import multiprocessing, multiprocessing.connection, os, signal, sys, threading
from midjax.batches import parent

def child(pipe, when):
    if when == "before":
        parent.end_with_it()
    print(parent.is_gone(), flush=True)
    pipe.send("ready")
    if when == "after":
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        print(parent.is_gone(), flush=True)
        parent.end_with_it()
    threading.Event().wait()

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=child, args=(there, sys.argv[1]))
    process.start()
    print(process.pid, flush=True)
    here.recv()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_process_does_not_outlive_its_parent(tmp_path, when):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    killed = subprocess.Popen(
        [sys.executable, str(script), when], stdout=subprocess.PIPE, text=True
    )
    pid = int(killed.stdout.readline())
    try:
        out, _ = killed.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        raise
    assert killed.returncode == -signal.SIGKILL
    assert out.split() == (["False"] if when == "before" else ["False", "True"])
