# SPDX-License-Identifier: Apache-2.0
"""Set before anything imports jax: tests run on one CPU device; others need a process.

Programs are compiled once per session: the processes that tests start share a compilation cache.
"""

import atexit
import os
import shutil
import tempfile
import threading

import pytest
import quick_compilation

os.environ.setdefault("JAX_PLATFORMS", "cpu")
quick_compilation.begin()
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.mkdtemp(prefix="midjax-test-compiled-")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# TensorFlow, where a test imports it, says less about itself.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@pytest.fixture(autouse=True)
def nothing_compiles_into_the_next_test():
    """A run that was begun and not gone on with still compiles its step."""
    yield
    for thread in threading.enumerate():
        if thread.name == "compiling":
            thread.join()
