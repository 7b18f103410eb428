# SPDX-License-Identifier: Apache-2.0
"""Files that grow, in a bucket, where nothing can be appended to.

    bucket --fetched at the start--> files in a local folder --uploaded whole, by a thread--> bucket
                                        ^ appended to

An object appears when its upload is complete, so a reader sees the file as it was at some moment,
whole lines only. What is appended is in the bucket after `EVERY_SECONDS` at the latest, or at once
where it is asked for, unless the bucket cannot be reached: then the thread says so once, tries
again without end, and nothing else waits for it.
"""

import contextlib
import dataclasses
import pathlib
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence

from midjax import files

EVERY_SECONDS = 30.0
# At least between two uploads of one file: a bucket takes one change of an object per second.
_APART_SECONDS = 1.0
# A long file takes long: uploads take this share of the time at most.
_MOST_SHARE = 0.1
_RETRY_SECONDS = (1.0, 60.0)  # after the first failure, and at most


@dataclasses.dataclass
class _File:
    """One file: bytes there are, bytes in the bucket (-1: other ones), and when to upload next."""

    local: pathlib.Path
    size: int = 0
    sent: int = -1
    due: float = 0.0
    took_seconds: float = 0.0
    is_asked: bool = False  # for an upload at once, since the last one began


class Spool:
    """The files, at first as they are in the bucket. `start` before anything is `added`.

    Args:
      target: folder in the bucket.
      names: of the files.
      say: prints a line for people.

    Attributes:
      folder: local, where the files are written.
      failures: uploads that failed.

    Raises:
      files.OutageError: a file cannot be read, whether it is there or not.
    """

    def __init__(self, target: str, names: Sequence[str], say: Callable[[str], None]) -> None:
        self._target, self._say, self.failures = target, say, 0
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="midjax-"))
        self._files = {name: _File(self.folder / name) for name in names}
        self._fetched: dict[str, str] = {}
        self._failed_in_a_row = 0
        self._change = threading.Condition()
        self._is_over, self._in_haste = False, 0
        for name in names:
            self._fetch(name)
        self._thread = threading.Thread(target=self._run, name="uploads", daemon=True)

    def _fetch(self, name: str) -> None:
        try:
            data = (files.path(self._target) / name).read_bytes()
        except FileNotFoundError:
            return
        except Exception as error:  # of whatever kind the library of the bucket raises
            raise files.OutageError(f"{self._target}/{name} cannot be read: {error}") from error
        self._files[name].local.write_bytes(data)
        self._fetched[name] = files.sha256(data)

    def start(self) -> None:
        """Begins to upload; what was changed since the files were fetched is uploaded too."""
        for name, file in self._files.items():
            if file.local.exists():
                file.size = file.local.stat().st_size
                is_same = self._fetched.get(name) == files.sha256_of(file.local)
                file.sent = file.size if is_same else -1
            else:
                file.sent = 0
        self._thread.start()

    def added(self, name: str, size: int, *, soon: bool) -> None:
        """Tells that `size` bytes were appended to a file; `soon`: it is uploaded at once."""
        with self._change:
            file = self._files[name]
            if file.size == file.sent:
                file.due = self._after(file, EVERY_SECONDS)
            file.size += size
            if soon:
                file.is_asked = True
                file.due = min(file.due, self._after(file, _APART_SECONDS))
            self._change.notify_all()

    def wait(self, seconds: float) -> bool:
        """Whether all that was added by now came into the bucket before `seconds` went by."""
        with self._change:
            wanted = {name: file.size for name, file in self._files.items()}
            self._in_haste += 1
            self._change.notify_all()
            try:
                return self._change.wait_for(
                    lambda: all(self._files[n].sent >= size for n, size in wanted.items()), seconds
                )
            finally:
                self._in_haste -= 1

    def close(self, seconds: float) -> None:
        """Uploads the rest and removes the local files; says where they are if that fails."""
        is_whole = self.wait(seconds)
        with self._change:
            self._is_over = True
            self._change.notify_all()
        if is_whole:
            self._thread.join(seconds)
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            self._say(
                f"{self._target}: its newest rows and events could not be uploaded within "
                f"{seconds:.0f} s ({self.failures} failures). They are in {self.folder}"
            )

    def _after(self, file: _File, seconds: float) -> float:
        return time.monotonic() + max(seconds, file.took_seconds / _MOST_SHARE)

    def _run(self) -> None:
        while True:
            with self._change:
                name = self._next()
                while name is None and not self._is_over:
                    self._change.wait(self._idle_seconds())
                    name = self._next()
                if self._is_over or name is None:
                    return
                file = self._files[name]
                size, file.is_asked = file.size, False
            self._upload(name, file, size)

    def _next(self) -> str | None:
        """The file whose upload is due first."""
        waiting = [(f.due, name) for name, f in self._files.items() if f.sent != f.size]
        if not waiting:
            return None
        due, name = min(waiting)
        hurry = self._in_haste and not self._failed_in_a_row
        return name if hurry or due <= time.monotonic() else None

    def _idle_seconds(self) -> float | None:
        dues = [file.due for file in self._files.values() if file.sent != file.size]
        return max(min(dues) - time.monotonic(), 0.0) if dues else None

    def _upload(self, name: str, file: _File, size: int) -> None:
        began, what = time.monotonic(), ""
        try:
            with file.local.open("rb") as local:
                data = local.read(size)  # whole lines: what is appended meanwhile comes later
            files.write_bytes(f"{self._target}/{name}", data)
        except Exception as error:  # of whatever kind; a run goes on without its journal
            what = f"{type(error).__name__}: {error}"
        with self._change:
            now = time.monotonic()
            if what:
                self.failures += 1
                first, most = _RETRY_SECONDS
                file.due = now + min(first * 2 ** min(self._failed_in_a_row, 10), most)
                self._failed_in_a_row += 1
            else:
                file.sent, file.took_seconds = size, now - began
                file.due = self._after(file, _APART_SECONDS if file.is_asked else EVERY_SECONDS)
                again, self._failed_in_a_row = self._failed_in_a_row, 0
            self._change.notify_all()
        if what and self._failed_in_a_row == 1:
            self._tell(f"{self._target}/{name} cannot be written, which is tried again: {what}")
        elif not what and again:
            self._tell(f"{self._target}/{name} is written again, after {again} failures")

    def _tell(self, text: str) -> None:
        with contextlib.suppress(Exception):  # a broken terminal does not end the uploads
            self._say(text)
