# SPDX-License-Identifier: Apache-2.0
"""Where a process's time goes: every moment since it began is in exactly one bucket.

    start       from the process's start to the loop: imports, recipe, restore (beside which, and
                beside a first evaluation, the train step compiles)
    compile     waiting for the train step's compilation, and calls of it that compile: the first
                with each other shape of batches
    step        the loop, but for what has a bucket of its own: dispatch, waiting for the device,
                and what the host does meanwhile (rows of metrics, the bar)
    data_wait   waiting for a batch that outlasted the device's work
    checkpoint  saving, as long as it keeps the loop; waiting at the end for what is still written
    eval        evaluating inside of a run, compiling for it too
    lost        work that was thrown away: steps that are done again after a rollback or a kill
    other       the rest: after the loop
    down        of a run of several processes: between two of them (see `sessions`)

JAX runs ahead of the host: the loop dispatches update n + 1, then waits for the numbers of update
n. So `step` on the host is not the time of one update on the device; but the loop never runs more
than two updates ahead, every wait for the device is in it, and what the device does while the host
waits for data or a file is not counted twice, as these are the host's seconds and each has one
bucket. Hence the sum is the time that passed, exactly. Nothing here asks the device to finish.
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator

BUCKETS = ("start", "compile", "step", "data_wait", "checkpoint", "eval", "lost", "other")


@dataclasses.dataclass
class Span:
    """A stretch of time that is being measured. Its bucket may be changed until it ends."""

    bucket: str
    seconds: float = 0.0


class Stopwatch:
    """Divides the time of a process among the buckets. For one thread.

    Args:
      age_seconds: how long the process had run before; the bucket is `start`.
      clock: seconds, rising.

    Attributes:
      began: when the process began, seconds since 1970.
    """

    def __init__(
        self, age_seconds: float = 0.0, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._last = clock() - age_seconds
        self._seconds = dict.fromkeys(BUCKETS, 0.0)
        self._open = [Span("start")]
        self._saved: dict[int, float] = {}
        self.began = time.time() - age_seconds

    def seconds(self) -> dict[str, float]:
        """Seconds of each bucket until now; their sum is the time since the process began."""
        self._charge()
        found = dict(self._seconds)
        for span in self._open:
            found[span.bucket] += span.seconds
        return found

    def enter(self, bucket: str) -> None:
        """From now on, what is in no `measure` is in this bucket."""
        assert len(self._open) == 1, "inside of a measure"
        self._charge()
        self._close(self._open.pop())
        self._open.append(Span(bucket))

    @contextlib.contextmanager
    def measure(self, bucket: str) -> Iterator[Span]:
        """Time inside is in this bucket, and not in that of the measure around it."""
        self._charge()
        span = Span(bucket)
        self._open.append(span)
        try:
            yield span
        finally:
            self._charge()
            assert self._open[-1] is span, "measures end in the order of a stack"
            self._close(self._open.pop())

    def saved(self, step: int) -> None:
        """What was done until here is in the checkpoint of `step`."""
        self._saved[step] = self.seconds()["step"]

    def rolled_back(self, step: int) -> None:
        """The state is that of an earlier `saved` again: `step` since then is `lost`.

        Of a step that another process saved: all of this one's `step`.
        """
        done = self.seconds()["step"] - self._saved.get(step, 0.0)
        self._seconds["step"] -= done
        self._seconds["lost"] += done
        self._saved = {at: seconds for at, seconds in self._saved.items() if at <= step}

    def _charge(self) -> None:
        now = self._clock()
        self._open[-1].seconds += now - self._last
        self._last = now

    def _close(self, span: Span) -> None:
        self._seconds[span.bucket] += span.seconds


def process_age_seconds() -> float:
    """How long this process has run; 0 where the system does not say."""
    try:
        with open("/proc/self/stat") as file:
            # The second field is the program's name, in brackets, and may hold anything.
            fields = file.read().rpartition(")")[2].split()
        began = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22, since the machine's start
        return max(time.clock_gettime(time.CLOCK_BOOTTIME) - began, 0.0)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
