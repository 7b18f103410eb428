# SPDX-License-Identifier: Apache-2.0
"""Trackers at arm's length: a queue and a thread for each, and a count of every row.

The run puts rows into bounded queues and never waits. A tracker that raises, is slow, or hangs
costs its own rows; they are counted, and the first error and the totals are said once each. At the
end the run waits `CLOSE_SECONDS` in all, then leaves what still hangs behind: the threads are
daemons.
"""

import dataclasses
import math
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from midjax import log
from midjax.trackers import tools as tools_lib

QUEUE_ROWS = 1000  # kept for a tracker that is slow
CLOSE_SECONDS = 20.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """What became of the rows that a tracker was given; together, all of them.

    Attributes:
      written: the tracker took them.
      failed: it raised.
      dropped: it could not be opened, or its queue was full.
      left: it had not got to them when the run ended.
    """

    written: int
    failed: int
    dropped: int
    left: int


class Sink:
    """One tracker, in a thread of its own."""

    def __init__(self, tool: tools_lib.Tool, run: tools_lib.Run, *, queue_rows: int) -> None:
        self.name = type(tool).__name__
        self.error: str | None = None  # the first
        self._tool, self._run = tool, run
        self._given = self._written = self._failed = self._dropped = 0
        self._is_open = True
        # One place more than rows: the end always fits.
        self._most = queue_rows
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(queue_rows + 1)
        self._thread = threading.Thread(target=self._work, name=f"tracker {self.name}", daemon=True)
        self._thread.start()

    def put(self, row: dict[str, Any]) -> None:
        """Takes a row, which nobody changes afterwards. Never waits."""
        self._given += 1
        if self._is_open and self._queue.qsize() < self._most:
            self._queue.put_nowait(row)
        else:
            self._dropped += 1

    def end(self) -> None:
        """Says that no row follows. Never waits."""
        self._queue.put_nowait(None)

    def join(self, seconds: float) -> Counts:
        """Waits until all is written, but so long at most; after `end`."""
        self._thread.join(max(seconds, 0.0))
        # Each is read once: a thread that hangs may yet wake up.
        written, failed, dropped = self._written, self._failed, self._dropped
        if not self._is_open:  # what was in the queue when it could not be opened
            dropped = self._given - written - failed
        left = self._given - written - failed - dropped
        return Counts(written=written, failed=failed, dropped=dropped, left=left)

    def _work(self) -> None:
        # BaseException: what a program raises to end itself must not end its thread unseen.
        try:
            writer = self._tool.open(self._run)
        except BaseException as error:
            self._is_open = False
            self._note(error)
            return
        while (row := self._queue.get()) is not None:
            try:
                writer.write(row["step"], _numbers(row))
                self._written += 1
            except BaseException as error:
                self._failed += 1
                self._note(error)
        try:
            writer.close()
        except BaseException as error:
            self._note(error)

    def _note(self, error: BaseException) -> None:
        self.error = self.error or f"{type(error).__name__}: {error}"


class Trackers:
    """All trackers of a run. Use as a context: leaving ends them.

    Args:
      tools: of the recipe.
      run: what they are told.
      journal: gets an event for each first error, and one with the counts at the end.
    """

    def __init__(
        self, tools: Sequence[tools_lib.Tool], run: tools_lib.Run, journal: log.Journal
    ) -> None:
        self._sinks = [Sink(tool, run, queue_rows=QUEUE_ROWS) for tool in tools]
        self._journal = journal
        self._said: set[int] = set()

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, *_: object) -> None:
        until = time.monotonic() + CLOSE_SECONDS
        for sink in self._sinks:
            sink.end()
        counts = [sink.join(until - time.monotonic()) for sink in self._sinks]
        self._say_errors()
        for sink, count in zip(self._sinks, counts, strict=True):
            found = dataclasses.asdict(count)
            self._journal.event("tracker_end", tracker=sink.name, **found)
            missing = {what: rows for what, rows in found.items() if rows and what != "written"}
            if missing:
                listed = ", ".join(f"{rows} {what}" for what, rows in missing.items())
                log.say(
                    f"tracker {sink.name}: {count.written} rows written, {listed}; "
                    "metrics.jsonl has them all"
                )

    def put(self, row: dict[str, Any]) -> None:
        """Hands a row of metrics on. Never waits."""
        for sink in self._sinks:
            sink.put(row)
        self._say_errors()

    def _say_errors(self) -> None:
        for index, sink in enumerate(self._sinks):
            if sink.error is not None and index not in self._said:
                self._said.add(index)
                self._journal.event("tracker_error", tracker=sink.name, error=sink.error)
                log.say(f"tracker {sink.name}: {sink.error} (said once; the run goes on)")


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a row, which is all that trackers plot."""
    return {
        name: value
        for name, value in row.items()
        if isinstance(value, int | float) and name != "step" and math.isfinite(value)
    }
