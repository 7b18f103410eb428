# SPDX-License-Identifier: Apache-2.0
"""What a run says: the terminal, `metrics.jsonl` (a row per update), `events.jsonl`.

`layer_norms.jsonl` has a row now and then, where a recipe asks for it.

Only process 0 writes; into a bucket through local files, see `spool`. A `Journal` is opened at a
step: rows of later steps, left by a run that was killed after its last checkpoint, are removed
(they will be computed again) and counted.
"""

import json
import math
import sys
import time
from typing import Any

from rich import console as rich_console
from rich import progress as rich_progress

from midjax import files, spool, units

# So long a checkpoint waits for the rows behind it, in the background, and the end for the rest.
_BEHIND_SECONDS, _CLOSE_SECONDS = 300.0, 60.0
_console = rich_console.Console(highlight=False, soft_wrap=True)


def quiet(is_quiet: bool) -> None:
    """Whether this process says nothing on the terminal: of many, one speaks."""
    _console.quiet = is_quiet


def say(text: str) -> None:
    """Prints one line for people."""
    _console.print(text, markup=False)


class Journal:
    """The append-only files of one run directory. Use as a context, or close it.

    Attributes:
      newest_step: of the rows that were there when it was opened, removed ones included; 0 of none.

    Raises:
      files.OutageError: the run directory is in a bucket that cannot be reached.
    """

    def __init__(self, run_dir: str, *, step: int, is_writer: bool) -> None:
        self._is_writer, self.newest_step, self._run_dir = is_writer, 0, run_dir
        self._spool: spool.Spool | None = None
        if not is_writer:
            return
        folder = files.path(run_dir)
        names = ("metrics.jsonl", "layer_norms.jsonl", "events.jsonl")
        uploads = spool.Spool(run_dir, names, say) if files.is_remote(run_dir) else None
        if uploads is not None:
            folder = files.path(uploads.folder)
        self._metrics, self._layer_norms, self._events = (folder / name for name in names)
        folder.mkdir(parents=True, exist_ok=True)
        self._mend_events()
        self._truncate(self._layer_norms, step)
        removed, self.newest_step = self._truncate(self._metrics, step)
        if removed:
            self.event("rows_redone", step=step, rows=removed)
        if uploads is not None:
            uploads.start()
            self._spool = uploads

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def settle(self) -> None:
        """Waits until all that was written so far is where the run directory is. May be called from
        another thread than the one that writes.

        Raises:
          files.OutageError: it did not come there in time.
        """
        if self._spool is not None and not self._spool.wait(_BEHIND_SECONDS):
            raise files.OutageError(
                f"{self._run_dir}: rows of metrics could not be written within "
                f"{_BEHIND_SECONDS:.0f} s ({self._spool.failures} failures), and no checkpoint "
                "counts without those behind it."
            )

    def close(self) -> None:
        """Uploads what is left, for a minute at most. Nothing is written afterwards."""
        if self._spool is not None:
            self._spool.close(_CLOSE_SECONDS)
            self._spool = None

    def _mend_events(self) -> None:
        """Cuts off an event that a kill tore, or the next one would stand on its line."""
        if not self._events.exists():
            return
        kept, newline, torn = self._events.read_bytes().rpartition(b"\n")
        if torn:
            files.write_text(self._events, (kept + newline).decode())
            self.event("event_torn", was=torn.decode(errors="replace"))

    def _truncate(self, file: Any, step: int) -> tuple[int, int]:
        """Drops rows of later steps, and torn ones: (how many, the newest step there was)."""
        if not file.exists():
            return 0, 0
        # A process may be killed inside a character, or between a row and its line end.
        text = file.read_bytes().decode(errors="replace")
        if not text:
            return 0, 0
        rows = text.split("\n")[:-1] if text.endswith("\n") else text.split("\n")
        steps = [_step_of(row) for row in rows]
        kept = [row for row, at in zip(rows, steps, strict=True) if 0 < at <= step]
        if len(kept) < len(rows) or not text.endswith("\n"):
            files.write_text(file, "".join(row + "\n" for row in kept))
        return len(rows) - len(kept), max(0, *steps)

    def metrics(self, row: dict[str, Any]) -> None:
        """Appends one update's row. Non-finite numbers are written as null, as JSON has none."""
        if self._is_writer:
            self._append(self._metrics, {k: _plain(v) for k, v in row.items()})

    def layer_norms(self, row: dict[str, Any]) -> None:
        """Appends a row of norms by layer."""
        if self._is_writer:
            self._append(self._layer_norms, {k: _plain(v) for k, v in row.items()})

    def event(self, event: str, /, **fields: Any) -> None:
        """Appends one event."""
        if self._is_writer:
            said = {"event": event, "time": round(time.time(), 3), **fields}
            self._append(self._events, said, soon=True)

    def _append(self, target: Any, row: dict[str, Any], *, soon: bool = False) -> None:
        # Half a surrogate pair, which ids of documents may have, is written as JSON escapes it.
        text = json.dumps(row, ensure_ascii=False) + "\n"
        data = text.encode(errors="backslashreplace")
        with target.open("ab") as file:
            file.write(data)
        if self._spool is not None:
            self._spool.added(target.name, len(data), soon=soon)


def _step_of(row: str) -> int:
    try:
        return int(json.loads(row)["step"])
    except (ValueError, KeyError, TypeError):
        return -1


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class Progress:
    """A bar with tokens/s and time left; without a terminal, a line every `every_seconds`.

    Args:
      title: what is in progress.
      total_tokens: None where it is not known: `advance` is then told the share that is done.
      done_tokens: done by an earlier process.
      every_seconds: between two lines.
    """

    def __init__(
        self,
        title: str,
        total_tokens: int | None,
        *,
        done_tokens: int = 0,
        every_seconds: float = 15.0,
    ) -> None:
        self._title, self._total, self._every = title, total_tokens, every_seconds
        self._tokens = 0
        self._first_share = self._share = done_tokens / total_tokens if total_tokens else 0.0
        self._start = self._spoken = time.monotonic()
        self._bar: rich_progress.Progress | None = None
        if sys.stdout.isatty():
            self._bar = rich_progress.Progress(
                rich_progress.TextColumn("{task.description}"),
                rich_progress.BarColumn(),
                rich_progress.TaskProgressColumn(),
                rich_progress.TextColumn("{task.fields[rate]}"),
                rich_progress.TimeRemainingColumn(),
                rich_progress.TextColumn("{task.fields[note]}"),
                console=_console,
            )
            self._task = self._bar.add_task(title, total=1.0, rate="", note="")
            self._bar.update(self._task, completed=self._share)

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()
        else:
            self._speak("")

    def advance(self, tokens: int, note: str = "", *, share: float | None = None) -> None:
        """Moves on by `tokens`.

        Args:
          tokens: done since the last call.
          note: a short text such as the loss.
          share: of the whole that is done, where the total is not known.
        """
        self._tokens += tokens
        if self._total:
            self._share += tokens / self._total
        elif share is not None:
            self._share = share
        if self._bar:
            self._bar.update(self._task, completed=self._share, rate=self._rate(), note=note)
        elif time.monotonic() - self._spoken > self._every:
            self._speak(note)

    def _rate(self) -> str:
        elapsed = max(time.monotonic() - self._start, 1e-9)
        return f"{units.human(self._tokens / elapsed)} tokens/s"

    def _speak(self, note: str) -> None:
        self._spoken = time.monotonic()
        moved = self._share - self._first_share
        left = (self._spoken - self._start) * (1 - self._share) / moved if moved else math.nan
        time_left = units.human_seconds(max(left, 0.0)) if math.isfinite(left) else "?"
        say(f"{self._title} {self._share:4.0%}  {self._rate()}  {time_left} left  {note}".rstrip())
