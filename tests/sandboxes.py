# SPDX-License-Identifier: Apache-2.0
"""One opened sandbox for all tests that run code; where none holds they are skipped, saying why."""

import functools

import pytest

from midjax.evals.sandbox import program, selftest
from midjax.evals.sandbox import run as run_lib


@functools.cache
def attempt() -> run_lib.Sandbox | program.SandboxUnavailable:
    try:
        return selftest.open(workers=2)
    except program.SandboxUnavailable as refusal:
        return refusal


def opened() -> run_lib.Sandbox:
    box = attempt()
    if isinstance(box, program.SandboxUnavailable):
        pytest.skip(str(box))
    return box


def asked(solution: str, tests: str = "assert f() == 1", **fields) -> program.Program:
    """A program whose tests use `f`."""
    return program.Program(solution=solution, tests=tests, names=("f",), **fields)
