# SPDX-License-Identifier: Apache-2.0
"""A program to be tested, and what became of it."""

import dataclasses
import typing

Status = typing.Literal["passed", "failed", "timeout", "memory", "error"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A model's code and the tests that judge it. The two run in separate processes.

    Attributes:
      solution: Python source of the model. It never sees the other fields.
      tests: Python source of the data set, which asserts. It calls into the solution by name.
      names: what of the solution the tests may use. Every other name is the tests' own or a
        builtin, so a solution can't replace `math.isclose` or `AssertionError` under them.
      preamble: Python source that runs before the tests, in their process: imports, helpers.
      id: for reports.
    """

    solution: str
    tests: str
    names: tuple[str, ...]
    preamble: str = ""
    id: str = ""

    def __post_init__(self) -> None:
        wrong = [name for name in self.names if not name.isidentifier()]
        if wrong:
            raise ValueError(f"names must be identifiers of the solution, got {wrong}.")
        if not self.tests.strip():
            raise ValueError(f"Program {self.id!r} has no tests, so that anything would pass them.")

    @property
    def source(self) -> str:
        """All of it as one program, as the published harnesses run it; for people."""
        return "\n".join(part for part in (self.preamble, self.solution, self.tests) if part)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a program.

    Attributes:
      status: `passed`: every test ran to its end. `failed`: an assertion of the tests did not hold.
        `timeout`, `memory`: a limit was met. `error`: anything else, such as an exception of the
        solution, its exit before the tests' end, or too much output.
      reason: one line; empty when passed.
      stderr: the last lines of what the program printed, on either stream.
      seconds: elapsed, start-up included.
    """

    status: Status
    reason: str = ""
    stderr: str = ""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return self.status == "passed"


class SandboxUnavailable(RuntimeError):
    """No sandbox that holds on this machine: model-written code is not run at all.

    Attributes:
      reasons: one line for each thing that is missing or was not contained.
      exit_code: of the command line, where this is a mistake, not a bug.
    """

    exit_code = 2

    def __init__(self, reasons: typing.Sequence[str]) -> None:
        self.reasons = tuple(reasons)
        lines = "\n".join(f"  - {reason}" for reason in self.reasons)
        super().__init__(
            "Tasks that run model-written code are refused here, since no sandbox holds:\n" + lines
        )
