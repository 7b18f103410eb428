# SPDX-License-Identifier: Apache-2.0
import pytest

from midjax.evals.sandbox import program


def test_a_program_without_tests_is_refused():
    with pytest.raises(ValueError, match="'HumanEval/0' has no tests"):
        program.Program(id="HumanEval/0", solution="x = 1", tests=" \n", names=())


def test_names_are_identifiers():
    with pytest.raises(ValueError, match=r"a\.b"):
        program.Program(solution="", tests="assert 1", names=("a.b",))


def test_the_source_is_the_published_harnesses_program():
    made = program.Program(
        preamble="import math", solution="def f(): return 2", tests="assert f() == 2", names=("f",)
    )
    scope: dict = {}
    exec(made.source, scope)  # noqa: S102
    assert scope["f"]() == 2 and "math" in scope


def test_the_refusal_tells_every_reason():
    refusal = program.SandboxUnavailable(["network: open", "no bwrap"])
    assert refusal.reasons == ("network: open", "no bwrap")
    assert "  - network: open\n  - no bwrap" in str(refusal)
