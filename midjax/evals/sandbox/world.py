# SPDX-License-Identifier: Apache-2.0
"""A sandboxed system with a shell that lives as long as an episode: commands in, their output back.

    with world.World(box) as here:
        here.shell("cd /home && touch x")       # what an agent does
        here.alone(["bash", "-c", "test -e /home/x"]).status == 0    # what judges it

The host's commands are there read-only; /root, /home, /etc and the rest are empty, writable, in
memory and gone afterwards. Not there: a network, /proc and /sys (so no `ps`, no `<(...)` of bash),
real root (no `useradd`, `su`, `apt`), devices but null, zero and urandom.
"""

import base64
import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import time
from typing import Any

from midjax.evals.sandbox import bubblewrap, run, seccomp
from midjax.evals.sandbox import limits as limits_lib

# A shell starts processes all the time; wall_seconds is a command's, not the episode's.
LIMITS = limits_lib.Limits(
    cpu_seconds=10,
    wall_seconds=30.0,
    memory_bytes=256 << 20,
    processes=32,
    open_files=256,
    output_bytes=1 << 16,
)


@functools.cache
def harness() -> str:
    return pathlib.Path(__file__).with_name("supervisor.py").read_text(encoding="utf-8")


class WorldLost(RuntimeError):
    """The world ended, or answers no more: its processes were killed from inside, say."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reply:
    """What a command did.

    Attributes:
      output: both streams, at most `limits.output_bytes`.
      status: exit status, below 0 for a signal.
      stopped: empty, `time` when it was killed for it, `ended` when it ended the shell,
        `refused` when it could not be started.
    """

    output: str
    status: int
    stopped: str


class World:
    """A context manager; one for each episode."""

    def __init__(self, box: run.Sandbox, limits: limits_lib.Limits = LIMITS) -> None:
        self.box, self.limits = box, limits
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "World":
        root = run.is_root()
        with run.open_memory(seccomp.program(os.uname().machine)) as rules:
            line = bubblewrap.world(
                self.box.bwrap,
                self.box.python,
                self.limits,
                as_root=root,
                seccomp=rules.fileno(),
                inside=[
                    bubblewrap.world_python(self.box.python),
                    "-I",
                    "-S",
                    "-X",
                    "utf8",
                    "-c",
                    harness(),
                ],
            )
            self._process = subprocess.Popen(
                line,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=(rules.fileno(),),
                env={},
                cwd="/",
            )
        job = {
            "uid": run.free_uid() if root else None,
            "limits": dataclasses.asdict(self.limits),
            "processes": self.limits.processes + (1 if root else 2),
            "python": bubblewrap.world_python(self.box.python),
        }
        self._send(job)
        return self

    def __exit__(self, *error: object) -> None:
        process, self._process = self._process, None
        if process is not None:
            run.end(process)
            try:
                process.communicate(timeout=run.GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise RuntimeError("Processes of a world outlived it: it is not safe.") from None

    def shell(self, text: str) -> Reply:
        """Runs a command in the episode's shell.

        Raises:
          WorldLost: there is no answer.
        """
        return self._ask({"text": text})

    def alone(self, argv: list[str], folder: str = "/root") -> Reply:
        """Runs a process that the shell's state does not reach, though the files do."""
        return self._ask({"argv": argv, "folder": folder})

    def python(self, code: str, *arguments: str) -> Reply:
        """Runs Python like `alone`, by an interpreter that nobody in the world can replace."""
        libraries = f"LD_LIBRARY_PATH={bubblewrap.LIBRARIES}"
        interpreter = bubblewrap.world_python(self.box.python)
        return self.alone(["/usr/bin/env", libraries, interpreter, "-I", "-c", code, *arguments])

    def _send(self, message: dict[str, Any]) -> None:
        if self._process is None or self._process.stdin is None:
            raise WorldLost("The world is not open: use it in a with statement.")
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorldLost("The world has ended or answers no more: no one reads.") from None

    def _ask(self, request: dict[str, Any]) -> Reply:
        seconds = self.limits.wall_seconds
        self._send({**request, "seconds": seconds})
        assert self._process is not None
        ends = time.monotonic() + seconds + run.GRACE_SECONDS
        line = run.read_line(self._process, 2 * self.limits.output_bytes + 1000, ends)
        try:
            done = json.loads(line)
            output = base64.b64decode(done["output"]).decode("utf-8", "replace")
        except (ValueError, KeyError) as error:
            raise WorldLost(f"The world has ended or answers no more: {error}.") from None
        return Reply(output=output, status=done["status"], stopped=done["stopped"])
