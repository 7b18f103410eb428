# SPDX-License-Identifier: Apache-2.0
"""For tests that compile much and compute little: of a folder (conftest.py) or of a file."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def quick_compilation() -> Iterator[None]:
    """Programs are compiled without most of the optimisations."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
