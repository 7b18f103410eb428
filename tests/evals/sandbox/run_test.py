# SPDX-License-Identifier: Apache-2.0
"""What programs try, and what they are told."""

import concurrent.futures
import dataclasses
import json
import pathlib
import re
import subprocess
import threading
import time
import uuid

import pytest
import sandboxes

from midjax.evals.sandbox import limits as limits_lib
from midjax.evals.sandbox import program, run


def limited(**limits) -> run.Sandbox:
    return dataclasses.replace(sandboxes.opened(), limits=limits_lib.Limits(**limits))


def judged(solution: str, tests: str = "assert f() == 1", **limits) -> program.Verdict:
    return limited(**limits).judge(sandboxes.asked(solution, tests))


def body(*lines: str) -> str:
    return "\n".join(["import os, signal, socket, sys", "def f():", *("    " + x for x in lines)])


def test_verdicts_come_in_the_order_of_the_programs():
    values = [1, 2, 1, 3, 1]
    verdicts = sandboxes.opened().run(sandboxes.asked(f"def f(): return {v}") for v in values)
    assert [verdict.passed for verdict in verdicts] == [value == 1 for value in values]
    assert verdicts[0] == dataclasses.replace(verdicts[0], status="passed", reason="", stderr="")
    assert verdicts[1].reason == "AssertionError in the tests: assert f() == 1"


# What a program tries -> (solution, status, what the reason says).
ATTEMPTS = {
    "reaches a port": (
        body("socket.create_connection(('127.0.0.1', 22), 1)"),
        "error",
        "ConnectionRefusedError",
    ),
    "reaches the net": (
        body("socket.create_connection(('192.0.2.1', 53), 1)"),
        "error",
        "Network is unreachable",
    ),
    "reaches the virtual machine's host": (
        body("socket.socket(40, socket.SOCK_STREAM)"),
        "error",
        "Address family not supported",
    ),
    "forks": (body("os.fork()"), "error", "the limit is 1 processes"),
    "threads": (
        body("import threading", "threading.Thread(target=print).start()"),
        "error",
        "the limit is 1 processes",
    ),
    "writes outside": (
        body("open('/usr/lib/written', 'w')"),
        "error",
        "(Read-only file system|Permission denied)",
    ),
    "reads a file of the host": (body("open('/etc/passwd')"), "error", "No such file"),
    "links to one": (
        body("os.symlink('/etc/passwd', '/tmp/x')", "open('/tmp/x')"),
        "error",
        "No such file",
    ),
    "reads the environment of others": (
        body("open('/proc/1/environ')"),
        "error",
        "No such file",
    ),
    "takes 8 GB": (body("bytearray(8 << 30)"), "memory", "1073741824 bytes"),
    "writes a large file": (
        body("open('/tmp/x', 'wb').write(bytes(65 << 20))"),
        "error",
        "File too large",
    ),
    "fills /tmp": (
        body("for i in range(9): open(f'/tmp/{i}', 'wb').write(bytes(8 << 20))"),
        "error",
        "No space left",
    ),
    "floods": (body("while True: print('x' * 9999)"), "error", "bytes of output"),
    "kills its parent": (body("os.kill(os.getppid(), 9)"), "error", "process was killed"),
    "kills all": (body("os.kill(-1, 9)"), "error", "process was killed"),
    "leaves early": (body("os._exit(0)"), "error", "exited with status 0 before the tests ended"),
    "leaves at once": ("import os\nos._exit(0)", "error", "exited with status 0 before"),
    "exits": (body("sys.exit(0)"), "error", "raised SystemExit: 0"),
    "prints a verdict": (
        body("print('passed')", 'print(\'["passed", ""]\', flush=True)', "os._exit(0)"),
        "error",
        "exited with status 0",
    ),
    "writes a verdict everywhere": (
        body(
            "for i in range(64):",
            '    try: os.write(i, b\'["passed", ""]\')',
            "    except OSError: pass",
            "os._exit(0)",
        ),
        "error",
        "the solution sent no value",
    ),
    "equals everything": (
        "class Yes(int):\n    __eq__ = lambda *_: True\ndef f(): return Yes(7)",
        "failed",
        "AssertionError",
    ),
    "is an object that equals everything": (
        "class Yes:\n    __eq__ = lambda *_: True\ndef f(): return Yes()",
        "failed",
        "AssertionError",
    ),
    "replaces builtins": (
        "import builtins\nclass AssertionError(Exception): pass\n"
        "builtins.AssertionError = AssertionError\ndef f(): return 2",
        "failed",
        "AssertionError in the tests: assert f",
    ),
    "reads the tests in memory": (
        body(
            "import gc",
            "seen = [sys._getframe()] + gc.get_objects()",
            "found = [x for x in seen if isinstance(x, str) and 'assert f()' in x]",
            "found += [x for x in seen if isinstance(x, dict) and 'tests' in x]",
            "return 1 if found else None",
        ),
        "failed",
        "AssertionError",
    ),
    "crashes": (body("os.abort()"), "error", "SIGABRT"),
    "lacks the function": ("g = 1", "error", "the solution defines no f"),
    "is not Python": ("def f() return 1", "error", "SyntaxError: expected ':'"),
    "is not text": ("x = 'a\0b'", "error", "null bytes"),
    "nests too deep": (
        body("x = []", "for _ in range(9999): x = [x]", "return x"),
        "error",
        "Recu",
    ),
}


@pytest.fixture(scope="module")
def verdicts() -> dict[str, program.Verdict]:
    programs = [sandboxes.asked(solution) for solution, _, _ in ATTEMPTS.values()]
    return dict(zip(ATTEMPTS, sandboxes.opened().run(programs), strict=True))


@pytest.mark.parametrize("name", ATTEMPTS)
def test_attempts_fail_and_are_reported_as_what_they_are(verdicts, name):
    _, status, reason = ATTEMPTS[name]
    assert verdicts[name].status == status, verdicts[name]
    assert re.search(reason, verdicts[name].reason), verdicts[name]


def test_the_last_lines_that_it_printed_are_kept():
    verdict = judged("def f():\n    print('hello')\n    return {}['key']")
    assert verdict.stderr.startswith("hello") and verdict.stderr.endswith("KeyError: 'key'")
    assert "return {}['key']" in verdict.stderr  # the traceback shows the solution's line


def test_the_environment_is_empty(monkeypatch):
    monkeypatch.setenv("MIDJAX_CANARY", "secret")
    verdict = judged(body("print(dict(os.environ))", "return 1"))
    assert verdict.passed and "HOME" in verdict.stderr and "CANARY" not in verdict.stderr


def test_loops_end_by_processor_time_and_by_the_clock():
    loop = body("for i in range(1, 65):", "    try: signal.signal(i, signal.SIG_IGN)")
    loop += "\n        except (OSError, ValueError): pass\n    while True: pass"
    stubborn = judged(loop, wall_seconds=0.7)
    assert (stubborn.status, stubborn.reason) == ("timeout", "0.7 s elapsed")
    plain = judged(body("while True: pass"), cpu_seconds=1)
    assert (plain.status, plain.reason) == ("timeout", "1 s of processor time")
    idle = judged(body("signal.pause()"), wall_seconds=0.7)
    assert idle.status == "timeout"


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_are_counted_exactly(processes):
    storm = body(
        "made = 0",
        "for _ in range(12):",
        "    try:",
        "        if not os.fork(): signal.pause()",
        "        made += 1",
        "    except BlockingIOError: pass",
        "return made",
    )
    assert judged(storm, f"assert f() == {processes - 1}", processes=processes).passed


def running(text: str) -> list[str]:
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            pass
    return found


def test_a_daemon_does_not_outlive_the_run():
    mark = uuid.uuid4().hex
    daemon = body(
        "if os.fork() == 0:",
        "    os.setsid()",
        "    if os.fork() == 0:",
        f"        os.execv(sys.executable, ['{mark}', '-I', '-S', '-c', 'input(); x = 1'])",
        "    os._exit(0)",
        "os.wait()",
        "return 1",
    )
    sleeper = daemon.replace("input(); x = 1", "import signal; signal.pause()")
    assert judged(sleeper, processes=4).passed
    assert not running(mark)


def test_kernel_interfaces_are_refused():
    calls = body(
        "import ctypes",
        "libc = ctypes.CDLL(None, use_errno=True)",
        "errors = []",
        "for call in (lambda: libc.ptrace(0x4206, os.getppid(), None, None),",
        "             lambda: libc.mount(b'none', b'/tmp', b'tmpfs', 0, None),",
        "             lambda: libc.unshare(0x10000000),",
        "             lambda: libc.chroot(b'/tmp')):",
        "    errors.append((call(), ctypes.get_errno()))",
        "return errors",
    )
    assert judged(calls, "assert f() == [(-1, 1)] * 4").passed  # EPERM


def test_a_bare_except_of_the_tests_is_not_the_last_word():
    tests = "try:\n    f()\nexcept:\n    pass"
    assert judged(body("os._exit(0)"), tests).reason.startswith("it exited with status 0")
    assert judged(body("raise KeyError"), tests).passed


def test_tests_see_values_objects_and_exceptions_of_the_solution():
    solution = """
import math
class Pair:
    def __init__(self, a, b): self.a, self.b = a, b
    def swap(self): return Pair(self.b, self.a)
class Odd(Exception): pass
def f(x):
    if isinstance(x, Pair): return x.a - x.b
    if x is None: raise Odd("none")
    if x == "gen": return (i * i for i in range(3))
    return [x]
"""
    tests = """
import math as trusted
assert f((1, 2)) == [(1, 2)] and type(f(True)[0]) is bool
pair = Pair(5, b=3)
assert f(pair) == 2 and pair.swap().a == 3
pair.a = 10
assert f(pair) == 7
assert list(f("gen")) == [0, 1, 4]
assert math is trusted
try:
    f(None)
    raise RuntimeError
except Exception as error:
    assert type(error).__name__ == "Odd" and str(error) == "none"
"""
    item = program.Program(solution=solution, tests=tests, names=("f", "Pair", "math"))
    assert sandboxes.opened().judge(item).passed


def test_the_tests_own_faults_are_not_the_solutions():
    verdict = judged("def f(): return 1", "print(len(f()))")
    assert verdict.status == "error"
    assert (
        verdict.reason
        == "TypeError: object of type 'int' has no len() in the tests: print(len(f()))"
    )
    assert judged("def f(): return 1", "while True: pass", cpu_seconds=1).status == "timeout"
    assert judged("def f(): return 1", "import sys; sys.exit(0)").status == "error"


def test_installed_packages_only_on_request():
    solution = "def f():\n    import numpy\n    return numpy.arange(3).sum() + numpy.float32(0.5)"
    assert "No module named 'numpy'" in judged(solution).reason
    box = dataclasses.replace(sandboxes.opened(), site_packages=True)
    assert box.judge(sandboxes.asked(solution, "assert f() == 3.5")).passed


def test_results_record_the_sandbox():
    record = json.loads(json.dumps(sandboxes.opened().describe()))
    assert record["sandbox"].startswith("bubblewrap ") and record["limits"]["cpu_seconds"] == 3


def test_after_an_error_what_has_not_begun_does_not_begin(monkeypatch):
    begun, cancelled = [], threading.Event()
    pool = concurrent.futures.ThreadPoolExecutor
    whole = pool.shutdown

    def shutdown(self, wait=True, *, cancel_futures=False):
        whole(self, wait=wait, cancel_futures=cancel_futures)
        cancelled.set()

    def work(item):
        begun.append(item)
        if item == 0:
            raise KeyError(item)
        cancelled.wait()

    monkeypatch.setattr(pool, "shutdown", shutdown)
    box = run.Sandbox(bwrap="", version="", limits=limits_lib.Limits(), workers=1)
    with pytest.raises(KeyError, match="0"):
        box.map(work, range(9))
    assert begun in ([0], [0, 1])


def test_every_program_can_be_the_last():
    calls = []

    def between():
        calls.append(len(calls))
        if len(calls) == 3:
            raise InterruptedError

    box = run.Sandbox(bwrap="", version="", limits=limits_lib.Limits(), workers=1, between=between)
    assert box.map(str, range(2)) == ["0", "1"]
    with pytest.raises(InterruptedError):
        box.map(str, range(2))
    assert calls == [0, 1, 2]


def test_a_tree_that_outlives_its_death_stops_everything(monkeypatch):
    monkeypatch.setattr(run, "GRACE_SECONDS", 0.2)
    process = subprocess.Popen(
        ["sh", "-c", "sh -c 'sleep 2 & wait' & wait"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with pytest.raises(RuntimeError, match="outlived"), process:
        caps = {process.stdout: 10, process.stderr: 10}
        run.drain(process, caps, time.monotonic() + 0.1)


def test_ending_it_in_its_first_moments_leaves_nothing():
    box = limited(wall_seconds=0.001)
    for _ in range(5):
        verdict = box.judge(sandboxes.asked("def f(): return 1"))
        assert (verdict.status, verdict.reason) == ("timeout", "0.001 s elapsed")


def test_user_ids_differ_from_run_to_run():
    ids = {run.free_uid() for _ in range(50)}
    assert len(ids) == 50 and min(ids) >= 50_000 and max(ids) < 60_000


def test_workers_are_at_least_one():
    with pytest.raises(ValueError, match="workers"):
        run.Sandbox(bwrap="", version="", limits=limits_lib.Limits(), workers=0)
