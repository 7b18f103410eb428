# SPDX-License-Identifier: Apache-2.0
"""What the exit code of a run says: done, stop, or start it again.

xpk restarts on the same codes, so that a run behaves the same under it.
"""

from typing import Literal

Verdict = Literal["done", "stop", "restart"]

MEANINGS = {
    0: "the target is reached",
    1: "a bug, with a traceback in the log",
    2: "a mistake in the recipe or the command",
    4: "the numbers gave up: diverged",
    5: "no checkpoint can be used: somebody must look",
    6: "more was forgotten than a gate allows",
    42: "asked to stop, with the state saved",
    134: "JAX lost another process",
    137: "killed (SIGKILL): out of memory, or out of grace",
    143: "ended by SIGTERM before it could save",
    171: "checkpoints could not be written or read, or the bucket not be reached",
    172: "the worker could not be set up",
}
RESTART = (42, *range(127, 256))


def verdict(code: int) -> Verdict:
    """What to do after an exit code; one that nobody knows stops, as somebody must look."""
    if code == 0:
        return "done"
    return "restart" if code in RESTART else "stop"


def endings() -> tuple[int, ...]:
    """Codes with which a trainer says why nobody should start it again."""
    return tuple(code for code in MEANINGS if verdict(code) == "stop")


def text(code: int) -> str:
    """`42 (asked to stop, with the state saved)`."""
    return f"{code} ({MEANINGS.get(code, 'not one of midjax')})"
