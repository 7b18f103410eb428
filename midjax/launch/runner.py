# SPDX-License-Identifier: Apache-2.0
"""Commands as lists of arguments: run, or printed so that they can be pasted."""

import dataclasses
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from typing import Protocol

from midjax.launch import spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """One command.

    Attributes:
      argv: its words; no shell reads them.
      why: for people.
    """

    argv: tuple[str, ...]
    why: str = ""

    @property
    def line(self) -> str:
        """As a shell would have to be given it."""
        return shlex.join(self.argv)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Done:
    """What a command gave.

    Attributes:
      code: its exit code.
      out, err: what it wrote.
    """

    code: int
    out: str = ""
    err: str = ""


class Runner(Protocol):
    """Runs commands. Tests have one that records."""

    def run(self, argv: Sequence[str]) -> Done: ...

    def has(self, program: str) -> bool: ...


class Local:
    """Runs commands on this machine."""

    def run(self, argv: Sequence[str]) -> Done:
        try:
            done = subprocess.run(
                list(argv),
                check=False,
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
            )
        except FileNotFoundError:
            return Done(code=127, err=f"{argv[0]} is not installed")
        return Done(code=done.returncode, out=done.stdout, err=done.stderr)

    def has(self, program: str) -> bool:
        return shutil.which(program) is not None


def must(runner: Runner, command: Command) -> Done:
    """Runs a command that has to succeed.

    Raises:
      LaunchError: with the command and the end of what it said.
    """
    done = runner.run(command.argv)
    if done.code:
        said = "\n  ".join((done.err or done.out).strip().splitlines()[-8:])
        raise spec.LaunchError(f"{command.line}\nended with code {done.code}:\n  {said}")
    return done


def script(commands: Sequence[Command]) -> str:
    """Lines with their reasons, which can be pasted into a shell."""
    lines = []
    for command in commands:
        lines += [f"# {command.why}"] if command.why else []
        lines.append(command.line)
    return "\n".join(lines)
