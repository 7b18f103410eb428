# SPDX-License-Identifier: Apache-2.0
"""What processes do together: alone nothing changes; of three, all hear of what each does."""

import os
import socket
import subprocess
import sys

import pytest

from midjax.distributed import group

HOST = socket.gethostname()

# Three processes go through all of it; each says what it got, a line for each call.
SCRIPT = """
import os, signal, sys, threading
from midjax import log
from midjax.distributed import group

me, how = int(os.environ["JAX_PROCESS_ID"]), sys.argv[1]
group._GRACE_SECONDS = 0.05

class Known(ValueError):
    def __init__(self, *told):
        super().__init__(f"known {told}")
        self.told = told

def attempt(call, *given, **named):
    try:
        print("GOT", call(*given, **named), flush=True)
    except Exception as error:
        code = getattr(error, "exit_code", None)
        print("GOT", type(error).__name__, error, code, flush=True)

def raising(error, *who):
    if me in who:
        raise error
    return me

def answered(errors):  # a known error, as that of a damaged checkpoint is
    try:
        group.together("trying", lambda: raising(errors[me], me), known=(Known,))
    except Known as error:
        return str(error), group.first("setting aside", lambda: "aside")

hosts = group.Hosts(start_seconds=60, heartbeat_seconds=3, wait_seconds=2)
try:
    with group.running(hosts):
        log.say("SAID")
        if how == "together":
            print("GOT", group.index(), group.count(), group.is_first())
            attempt(group.first, "asking", lambda: {"step": 7 + me})
            attempt(group.first, "asking", raising, ValueError("bad"), 0)
            attempt(group.together, "trying", raising, OSError("no disk"), 1)
            attempt(group.together, "trying", raising, Known(4, "x"), 2, known=(Known,))
            attempt(group.together, "trying", raising, None)
            attempt(group.same, "The start", {"step": 5, "row": 5 + (me == 2)})
            attempt(group.same, "The start", {"step": 5})
            attempt(answered, [Known(4), OSError("no disk"), ValueError("bad")])
            attempt(answered, [ValueError("bad"), KeyError("bug"), ValueError("bad")])
            attempt(answered, [Known(4), Known(5), Known(4)])
        elif how == "late":
            if me != 1:
                group.first("resting", int)
            else:
                group._group.client.blocking_key_value_get("done", 60_000)
        elif how == "fail" and me == 1:
            raise RuntimeError("a bug")
        elif how == "lost" and me == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            threading.Event().wait()  # as in a computation that process 1 never joins
except ValueError as error:
    print("ENDED", error, flush=True)
    sys.exit(getattr(error, "exit_code", 2))
"""


def run(how):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    env = os.environ | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "3"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, how],
            env=env | {"JAX_PLATFORMS": "cpu", "JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(3)
    ]  # fmt: skip
    said = [process.communicate(timeout=120) for process in processes]
    return [process.returncode for process in processes], said


def test_three_processes_hear_of_each_other():
    codes, said = run("together")
    assert codes == [0, 0, 0], said
    got = [[x[4:] for x in out.splitlines() if x.startswith("GOT")] for out, _ in said]
    assert [x[0] for x in got] == ["0 3 True", "1 3 False", "2 3 False"]
    assert {x[1] for x in got} == {"{'step': 7}"}
    assert got[0][2] == "ValueError bad None"
    assert got[1][2] == got[2][2] == f"ElsewhereError process 0 ({HOST}) failed: bad 2"
    assert got[1][3] == "OSError no disk None"
    assert got[0][3] == got[2][3] == f"ElsewhereError process 1 ({HOST}) failed: no disk 2"
    assert {x[4] for x in got} == {"Known known (4, 'x') None"}
    assert [x[5] for x in got] == ["0", "1", "2"]
    differ = f"DifferError The start differs: process 2 ({HOST}) has row 6, and process 0 ({HOST})"
    assert {x[6] for x in got} == {f"{differ} 5. None"}
    assert {x[7] for x in got} == {"None"}
    assert [x[8] for x in got] == [
        f"ElsewhereError process 1 ({HOST}) failed: no disk "
        f"(This one, process 0 ({HOST}), failed too: known (4,)) 2",
        "OSError no disk None",
        f"ElsewhereError process 1 ({HOST}) failed: no disk "
        f"(This one, process 2 ({HOST}), failed too: bad) 2",
    ]
    assert [x[9] for x in got] == [
        "ValueError bad None",
        f"ElsewhereError process 0 ({HOST}) failed: bad "
        f"(This one, process 1 ({HOST}), failed too: KeyError: 'bug') 2",
        "ValueError bad None",
    ]
    assert {x[10] for x in got} == {"('known (4,)', 'aside')"}
    assert ["SAID" in out for out, _ in said] == [True, False, False]


def test_who_does_not_come_is_named_and_all_end():
    codes, said = run("late")
    assert codes == [134, 134, 134], said
    missing = f"resting: waited 2 s (Hosts.wait_seconds) for process 1 ({HOST})."
    assert any(missing in out for out, _ in said)
    assert missing in said[1][1]  # it hears why it is ended


def test_one_that_fails_alone_ends_the_others():
    codes, said = run("fail")
    assert codes == [1, 1, 1], said
    for index in (0, 2):
        told = (
            f"midjax: process 1 ({HOST}) failed, which ends this process too: RuntimeError: a bug"
        )
        assert told in said[index][1]


def test_one_that_is_lost_ends_the_others():
    """JAX does it, by SIGABRT: a shell calls that 134."""
    codes, said = run("lost")
    assert codes == [-6, -9, -6], said


def test_alone_nothing_changes():
    with group.running(group.Hosts()):
        assert (group.count(), group.index(), group.is_first()) == (1, 0, True)
        same = object()
        assert group.first("asking", lambda x: x, same) is same
        assert group.together("asking", lambda x: x, same) is same
        group.same("The start", {"what": same})
        with pytest.raises(KeyError):
            group.together("trying", {}.__getitem__, "x")


def test_seconds_are_positive():
    with pytest.raises(ValueError, match="every number of seconds must be 1 or more"):
        group.Hosts(wait_seconds=0)
