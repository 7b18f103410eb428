# SPDX-License-Identifier: Apache-2.0
"""The TPU's compiler, in a test's own process, without a TPU."""

import importlib.util
import os

import pytest


def devices(topology: str) -> list:
    """Devices of a described topology, such as "v5e:2x2".

    Skips the test where libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install 'midjax[tpu]'")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from midjax.hardware import slices
    from midjax.plan import program

    return program.devices(slices.parse(topology))
