# SPDX-License-Identifier: Apache-2.0
"""Tests compile much and compute little: programs are compiled without most of the optimisations.

That is so in all tests and the processes that they start. Where it matters which program the
compiler makes, or two programs are to give the same bits, a file or folder imports the fixture
`thorough_compilation`.
"""

import importlib.metadata
import os
from collections.abc import Iterator

import pytest

# jaxlib 0.10 can still emit loops in its older way, for which it takes half as long.
_IS_OLD = importlib.metadata.version("jaxlib").startswith("0.10.")
XLA_FLAGS = ("--xla_cpu_use_fusion_emitters=false",) if _IS_OLD else ()

_JAX_VARIABLE = "JAX_DISABLE_MOST_OPTIMIZATIONS"


def begin() -> None:
    """To be called before JAX is imported."""
    os.environ.setdefault(_JAX_VARIABLE, "1")
    given = os.environ.get("XLA_FLAGS", "").split()
    os.environ["XLA_FLAGS"] = " ".join([*given, *(one for one in XLA_FLAGS if one not in given)])


@pytest.fixture(scope="module", autouse=True)
def thorough_compilation() -> Iterator[None]:
    """Programs of this process are optimised as those of users are; on a CPU with jaxlib 0.10 loops
    are still emitted in the older way, which is chosen once for a process."""
    import jax

    jax.config.update("jax_disable_most_optimizations", False)
    yield
    is_quick = os.environ[_JAX_VARIABLE].lower() in ("1", "true")
    jax.config.update("jax_disable_most_optimizations", is_quick)
