# SPDX-License-Identifier: Apache-2.0
"""SIGTERM, by which a machine says that it will be taken away: the run saves and ends.

SIGTERM --> the update that is being made --Stop.reached--> a save, waited for --> PreemptedError,
exit code 42: the same command goes on, bit for bit

Of several processes one that gets it is enough: JAX makes all of them stop after the same update.
An evaluation of one process alone stops between two batches, or two programs of a code task, and
is made up for; several, which would have to agree about the batch, finish theirs.
A save in flight is waited for. More signals change nothing. Where the time does not suffice and the
process is killed, the checkpoint that it was writing is never listed, and the one before it holds.
"""

import signal
import threading
from typing import Any

from jax.experimental import multihost_utils

from midjax import log
from midjax.distributed import group


class PreemptedError(Exception):
    """The run was asked to end, and can go on. Not a ValueError: a list of jobs ends with it."""

    exit_code = 42
    is_everywhere = True  # as all processes stop at one step, none has to be told


class CutShortError(Exception):
    """What is being computed is to end now; the loop makes a `PreemptedError` of it."""


class Stop:
    """Whether a run has been asked to end. Use as a context: inside, SIGTERM only asks.

    Attributes:
      is_asked: what `reached` said last; it stays so.
      has_interrupted: `interrupt` has raised.
    """

    def __init__(self) -> None:
        self.is_asked = self.has_interrupted = self._is_signalled = False
        self._before: Any = None

    def __enter__(self) -> "Stop":
        # Where JAX connects several processes it takes the signal itself.
        alone, is_main = group.count() == 1, threading.current_thread() is threading.main_thread()
        if alone and is_main:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, *_: object) -> None:
        self._is_signalled = True

    def interrupt(self) -> None:
        """To be called between batches or programs of an evaluation.

        Raises:
          CutShortError: the run was asked to end.
        """
        if self._is_signalled:
            self.is_asked = self.has_interrupted = True
            raise CutShortError

    def reached(self, step: int) -> bool:
        """Whether the run is to end after update `step`. Asked once for each update, in order."""
        if group.count() > 1:
            found = multihost_utils.reached_preemption_sync_point(step)  # true once
        else:
            found = self._is_signalled
        self.is_asked = self.is_asked or found
        return self.is_asked


def end(run_dir: str, journal: log.Journal, step: int, saved_step: int | None) -> PreemptedError:
    """Writes the event `preempted`; returns what is to be raised.

    Args:
      run_dir, journal: of the run.
      step: its last update.
      saved_step: its newest checkpoint, whole; None where there is none.
    """
    journal.event("preempted", step=step, saved_step=saved_step)
    where = "the beginning" if saved_step is None else f"step {saved_step}, which is saved"
    return PreemptedError(
        f"{run_dir} was asked to end (SIGTERM) and did so after step {step}. The same command goes "
        f"on from {where}."
    )
