# SPDX-License-Identifier: Apache-2.0
"""Runs inside a sandboxed world: keeps a shell alive, and runs checks beside it.

    host --requests--> supervisor --text--> bash        what the agent does: its state stays
      ^                    |  +--argv--> process        what judges it: a fresh one, waited for
      +------answers-------+

This file is sent as text to a bare interpreter, like `inside`, and imports the standard library
only. A request and an answer are a line of JSON each. The shell's commands have neither descriptor.
"""

import base64
import json
import os
import resource
import selectors
import shlex
import signal
import subprocess
import sys
import time
import uuid
from typing import Any

# The shell's has /usr/local/bin first. Here the system's commands win over what an agent put there.
CHECK_PATH = "/usr/bin:/bin:/usr/sbin:/sbin:/usr/local/bin"


def drain(process: subprocess.Popen, seconds: float, most: int, marker: bytes) -> tuple:
    """What comes out of `process` up to the marker or its end: at most `most` bytes are kept.

    Returns:
      (output, what follows the marker on its line, why it stopped): the last is empty at the
      marker, else "ended" or "time".
    """
    kept, window = b"", b""
    overlap = len(marker) + 16  # a marker may come in two parts, its status after it
    assert process.stdout is not None
    ends = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            ready = selector.select(max(0.0, ends - time.monotonic()))
            if not ready or time.monotonic() > ends:
                return (kept + window)[:most], b"", "time"
            part = os.read(process.stdout.fileno(), 1 << 16)
            window += part
            before, found, after = window.partition(marker) if marker else (window, b"", b"")
            if found and b"\n" in after:
                return (kept + before)[:most], after.partition(b"\n")[0], ""
            if not part:
                return (kept + window)[:most], b"", "ended"
            if not found:
                cut = max(0, len(window) - overlap)
                kept, window = (kept + window[:cut])[:most], window[cut:]


class Shell:
    """A bash whose folder, variables and background processes outlive each command."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.bash: subprocess.Popen | None = None

    def run(self, text: str, seconds: float, most: int) -> dict[str, Any]:
        if self.bash is None or self.bash.poll() is not None:
            self.bash = subprocess.Popen(
                ["/bin/bash", "--norc", "--noprofile"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )
        marker = uuid.uuid4().hex
        # As one quoted word, so that broken syntax can't swallow the marker.
        line = f"eval {shlex.quote(text)} < /dev/null\nprintf '{marker}%d\\n' $?\n"
        assert self.bash.stdin is not None
        try:
            self.bash.stdin.write(line.encode("utf-8", "surrogateescape"))
            self.bash.stdin.flush()
        except BrokenPipeError:
            pass
        output, code, stopped = drain(self.bash, seconds, most, marker.encode())
        if not stopped and code.isdigit():
            return answer(output, int(code), "")
        os.killpg(self.bash.pid, signal.SIGKILL)
        status = self.bash.wait()
        self.bash = None
        return answer(output, status, stopped or "ended")


def alone(argv: list[str], folder: str, seconds: float, most: int, env: dict) -> dict[str, Any]:
    """One process that the shell's variables do not reach."""
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env={**env, "PATH": CHECK_PATH},
        start_new_session=True,
    )
    output, _, stopped = drain(process, seconds, most, b"")
    if stopped == "time":
        os.killpg(process.pid, signal.SIGKILL)
    return answer(output, process.wait(), "time" if stopped == "time" else "")


def answer(output: bytes, status: int, stopped: str) -> dict[str, Any]:
    return {"output": base64.b64encode(output).decode(), "status": status, "stopped": stopped}


def settle(job: dict) -> dict[str, str]:
    """Gives up rights, sets limits, makes the accounts' files; the variables of the children."""
    uid, limits = job["uid"], job["limits"]
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    own = os.getuid()
    with open("/etc/passwd", "w") as accounts:
        accounts.write(f"root:x:{own}:{own}:root:/root:/bin/bash\n")
    with open("/etc/group", "w") as groups:
        groups.write(f"root:x:{own}:\n")
    if not os.path.exists("/usr/bin/python3"):
        path = "/usr/local/bin/python3"
        libraries = os.environ.get("LD_LIBRARY_PATH", "")
        with open(path, "w") as script:
            script.write(f'#!/bin/sh\nLD_LIBRARY_PATH={libraries} exec {job["python"]} "$@"\n')
        os.chmod(path, 0o755)
    cpu = limits["cpu_seconds"]
    for what, bound in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["files_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_NPROC, job["processes"]),
    ):
        resource.setrlimit(what, (bound, bound))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    return {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}


def main() -> None:
    lines = sys.stdin.buffer
    job = json.loads(lines.readline())
    environment = settle(job)
    most = job["limits"]["output_bytes"]
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    shell = Shell(environment)
    for line in lines:
        request = json.loads(line)
        seconds = request["seconds"]
        try:
            if "text" in request:
                done = shell.run(request["text"], seconds, most)
            else:
                done = alone(request["argv"], request["folder"], seconds, most, environment)
        except OSError as error:  # such as no process left for a check
            done = answer(str(error).encode(), 126, "refused")
        channel.write(json.dumps(done).encode() + b"\n")
        channel.flush()


if __name__ == "__main__":
    main()
