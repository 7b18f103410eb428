# SPDX-License-Identifier: Apache-2.0
"""Programs -> verdicts: `open` a sandbox that has proved itself, then `run` programs in it.

programs --N workers--> bwrap [judge | player] --> verdicts, in the order of the programs
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import platform
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import IO, Any

from midjax.evals.sandbox import bubblewrap, program, seccomp
from midjax.evals.sandbox import limits as limits_lib

VERDICT_BYTES = 1 << 16
STDERR_LINES, STDERR_BYTES = 12, 2000
GRACE_SECONDS = 10.0  # for the kernel to end a killed tree


@functools.cache
def harness() -> str:
    """The source of `inside`, which runs in the sandbox."""
    return pathlib.Path(__file__).with_name("inside.py").read_text(encoding="utf-8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """What a command in the sandbox left.

    Attributes:
      status: exit status; of a signal, 128 and its number.
      stopped: why it was killed from outside, `time` or `output`; empty if it ended by itself.
    """

    stdout: bytes
    stderr: bytes
    status: int
    stopped: str
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sandbox:
    """Runs programs. Made by `selftest.open`, which refuses a machine where it does not hold.

    Attributes:
      bwrap: path of the binary.
      version: what it says of itself.
      limits: of every program.
      workers: programs that run at a time.
      site_packages: installed packages, such as numpy, can be imported inside.
      between: called after each of the items of `map`; what it raises ends it.
    """

    bwrap: str
    version: str
    limits: limits_lib.Limits
    workers: int
    site_packages: bool = False
    between: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers must be 1 or more, got {self.workers}.")

    @functools.cached_property
    def python(self) -> bubblewrap.Interpreter:
        return bubblewrap.interpreter(site_packages=self.site_packages)

    def describe(self) -> dict[str, Any]:
        """What results record: which sandbox, as whom, with which limits."""
        return {
            "sandbox": self.version,
            "identity": "root, rights dropped inside" if is_root() else "user namespace",
            "python": platform.python_version(),
            "site_packages": self.site_packages,
            "limits": dataclasses.asdict(self.limits),
        }

    def run(self, programs: Iterable[program.Program]) -> list[program.Verdict]:
        """The verdict of each program, in their order."""
        return self.map(self.judge, list(programs))

    def map(self, function: Callable, items: Sequence) -> list:
        """`[function(item) for item in items]`, `workers` at a time."""
        with concurrent.futures.ThreadPoolExecutor(self.workers) as pool:
            found = []
            try:
                for one in pool.map(function, items):
                    found.append(one)
                    self.between()
                return found
            finally:  # after an error or Ctrl-C, what has not begun does not begin
                pool.shutdown(wait=False, cancel_futures=True)

    def judge(self, item: program.Program) -> program.Verdict:
        """The verdict of one program."""
        job = {
            "solution": item.solution,
            "limits": dataclasses.asdict(self.limits),
            "processes": self.limits.processes + (1 if is_root() else 2),
            "uid": free_uid() if is_root() else None,
            "paths": self.python.paths,
        }
        tests = {"preamble": item.preamble, "tests": item.tests, "names": item.names}
        inside = [self.python.executable, "-I", "-S", "-X", "utf8", "-c", harness()]
        output = self.execute(inside, framed(job) + framed(tests))
        return verdict(output, self.limits)

    def execute(self, inside: list[str], stdin: bytes = b"") -> Output:
        """Runs one command; its whole tree is gone when this returns."""
        started = time.monotonic()
        with open_memory(stdin) as data, open_memory(seccomp.program(os.uname().machine)) as rules:
            command = bubblewrap.command(
                self.bwrap,
                self.python,
                self.limits,
                as_root=is_root(),
                seccomp=rules.fileno(),
                inside=inside,
            )
            process = subprocess.Popen(
                command,
                stdin=data,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(rules.fileno(),),
                env={},
                cwd="/",
            )
        with process:
            ends = started + self.limits.wall_seconds
            caps = {process.stdout: VERDICT_BYTES, process.stderr: self.limits.output_bytes}
            try:
                stdout, stderr, stopped = drain(process, caps, ends)
            except BaseException:
                end(process)
                process.kill()
                raise
        code = process.returncode
        return Output(
            stdout=stdout,
            stderr=stderr,
            status=code if code >= 0 else 128 - code,
            stopped=stopped,
            seconds=time.monotonic() - started,
        )


def drain(process: subprocess.Popen, caps: dict, ends: float) -> tuple[bytes, bytes, str]:
    """Both streams until every process that holds them is gone; kills it at a cap or at `ends`.

    Raises:
      RuntimeError: something of the tree outlives its death, which the sandbox must not allow.
    """
    kept = dict.fromkeys(caps, b"")
    stopped = ""
    with selectors.DefaultSelector() as selector:
        for stream in caps:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, ends - time.monotonic()))
            for key, _ in ready:
                part = os.read(key.fd, 1 << 16)
                if not part:
                    selector.unregister(key.fileobj)
                elif not stopped:
                    kept[key.fileobj] += part
                    if len(kept[key.fileobj]) > caps[key.fileobj]:
                        stopped = "output"
                        end(process)
                        ends = time.monotonic() + GRACE_SECONDS
            if not ready and time.monotonic() >= ends:
                if stopped:
                    raise RuntimeError(
                        f"Processes of the sandbox outlived it by {GRACE_SECONDS:.0f} s: it is not "
                        "safe to go on."
                    )
                stopped = "time"
                end(process)
                ends = time.monotonic() + GRACE_SECONDS
    return *kept.values(), stopped  # type: ignore[return-value]


def end(process: subprocess.Popen) -> None:
    """Kills the first process of a sandbox, whose death takes all others along; bwrap ends on it.

    Killing bwrap itself would do later, but not in its first moments: its child then waits for it
    and does not yet die with it. Bwrap is stopped while its children are read, so that none is new,
    and goes on to reap them: left to the machine's first process, they may stay as zombies.
    """
    if process.poll() is not None:
        return
    os.kill(process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    found = children(process.pid)
    for child in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    os.kill(process.pid, signal.SIGCONT if found else signal.SIGKILL)


def children(parent: int) -> list[int]:
    """Process ids, by the fourth field of /proc/PID/stat; the second, in (), may hold anything."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                stat = pathlib.Path("/proc", name, "stat").read_bytes()
                if int(stat.rpartition(b")")[2].split()[1]) == parent:
                    found.append(int(name))
    return found


def read_line(process: subprocess.Popen, most: int, ends: float) -> bytes:
    """The next line of stdout, or what there is at its end, at `ends`, or past `most` bytes."""
    assert process.stdout is not None
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not line.endswith(b"\n") and len(line) <= most:
            if not selector.select(max(0.0, ends - time.monotonic())):
                break
            part = os.read(process.stdout.fileno(), 1 << 16)
            if not part:
                break
            line += part
    return line


def verdict(output: Output, limits: limits_lib.Limits) -> program.Verdict:
    """What the judge wrote, or why it wrote nothing."""
    tail = output.stderr[-STDERR_BYTES:].decode("utf-8", "replace")
    tail = "\n".join(tail.splitlines()[-STDERR_LINES:])

    def make(status: program.Status, reason: str) -> program.Verdict:
        return program.Verdict(status=status, reason=reason, stderr=tail, seconds=output.seconds)

    if output.stopped == "time":
        return make("timeout", f"{limits.wall_seconds:g} s elapsed")
    if output.stopped == "output":
        return make("error", f"more than {limits.output_bytes} bytes of output")
    if not output.stdout:
        if output.status == 128 + signal.SIGXCPU:
            return make("timeout", f"{limits.cpu_seconds} s of processor time of the tests")
        if output.status == 128 + signal.SIGKILL:
            return make("error", "the tests' process was killed")
        last = tail.splitlines()[-1] if tail else ""
        return make("error", f"no verdict, exit status {output.status}: {last}"[:300])
    try:
        status, reason = json.loads(output.stdout)
    except ValueError:
        return make("error", "the verdict can't be read")
    return make(status, reason)


def framed(job: dict) -> bytes:
    """A job as the harness reads it: 8 bytes of length, then JSON."""
    data = json.dumps(job).encode()
    return len(data).to_bytes(8, "big") + data


def open_memory(content: bytes) -> IO[bytes]:
    """A file in memory, at its start."""
    file = open(os.memfd_create("midjax"), "w+b", buffering=0)  # noqa: SIM115
    file.write(content)
    file.seek(0)
    return file


def is_root() -> bool:
    return os.geteuid() == 0


_UIDS = threading.Lock()
_LAST_UID = [os.getpid() * 64]


def free_uid() -> int:
    """A user id that no account has by convention, another each time.

    The kernel counts processes by user id, so that two runs with one id would share a limit.
    """
    with _UIDS:
        _LAST_UID[0] += 1
        return 50_000 + _LAST_UID[0] % 10_000
