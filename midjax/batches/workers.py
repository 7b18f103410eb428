# SPDX-License-Identifier: Apache-2.0
"""Units of sources -> finished parts, over processes.

A unit is tokenized by one process from its beginning to its end, so what is written does not depend
on how many processes there are. A process encodes in several threads, a batch in each: the
tokenizers let go of Python's lock, and one thread's result is read while others encode. Their own
threads, which share out one batch, are slower, and more processes take time to start.
Workers end with the process that started them, also when it is killed.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import process as process_pools
from typing import Any

import numpy as np

from midjax import files, types, units
from midjax.batches import encoders, lint, parent, parts, seqio, vocabulary
from midjax.corpora import reading, sources

# A batch for the tokenizer, small in memory: encodings take 100 to 200 bytes per character while
# they are there.
_BATCH_DOCUMENTS = 32
_BATCH_CHARACTERS = 250_000
# Of the tokenizers library: whether it has threads of its own. Read at each call.
_PARALLEL = "TOKENIZERS_PARALLELISM"
_POLL_SECONDS = 0.5
_LOCK_POLLS = 10

# Reading, and making arrays of what the tokenizer returns, needs Python's lock for about 7 % of a
# thread's time: with so many it is mostly free.
_THREADS = 4

Tokenizer = vocabulary.Tokenizer | seqio.TaskTokenizer
_Item = types.Document | types.TokenDocument
_Pair = tuple[types.Document | None, types.TokenDocument]
Advance = Callable[[int, int], None]  # told (tokens written, bytes read) since the last call


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One unit to tokenize.

    Attributes:
      source: its name.
      folder: token folder of the source; exists.
      reader: gives the unit's documents.
      unit, number: the unit, and its place in the source.
      tokenizer: opened once in each process.
      depends: all that the tokens depend on besides the unit's content, as plain JSON.
      shard_tokens: see `Tokenize`.
    """

    source: str
    folder: str
    reader: sources.Reader
    unit: reading.Unit
    number: int
    tokenizer: Tokenizer
    depends: Mapping[str, Any]
    shard_tokens: int


def cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(
    jobs: Sequence[Job], processes: int | None, lock: str | None, advance: Advance
) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Does the jobs; yields each with the record of its unit as it is finished, in any order.

    Args:
      processes: None is one for four processors; never more than jobs. Their threads together
        are as many as there are processors.
      lock: a file that this process holds; the workers share it.

    Raises:
      ChildProcessError: a worker was killed, for want of memory most likely.
      ValueError, OSError: what a job raised. Others stop at their next batch; what is finished
        stays, and the next run goes on from it.
    """
    count = min(processes or units.ceil_div(cpus(), _THREADS), len(jobs))
    if count <= 1:
        with _without_own_threads():
            for job in jobs:
                yield job, do(job, opened(job.tokenizer), cpus(), advance)
        return
    context = multiprocessing.get_context("spawn")
    stop, totals = context.Event(), context.RawArray("q", 2 * count)
    numbers = context.SimpleQueue()
    for number in range(count):
        numbers.put(number)
    setup = (numbers, totals, stop, max(1, cpus() // count), lock)
    # The largest first, so that no process is left with one at the end.
    order = sorted(jobs, key=lambda job: (-job.unit.size_bytes, job.source, job.number))
    told = np.zeros(2, np.int64)
    with process_pools.ProcessPoolExecutor(count, context, _begin, setup) as pool:
        with _without_main():
            waiting = {pool.submit(_work, job): job for job in order}
        try:
            while waiting:
                done, _ = concurrent.futures.wait(
                    waiting, _POLL_SECONDS, concurrent.futures.FIRST_COMPLETED
                )
                now = np.array(totals[:]).reshape(count, 2).sum(axis=0)
                advance(*(int(x) for x in now - told))
                told = now
                for future in done:
                    job = waiting.pop(future)
                    yield job, future.result()
        except process_pools.BrokenProcessPool as error:
            raise ChildProcessError(
                "A worker process was killed, most likely for want of memory. What is finished is "
                "kept: run the same command again, with a smaller Tokenize.processes."
            ) from error
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _without_own_threads() -> Iterator[None]:
    """Fast tokenizers encode each batch in the thread that calls them."""
    before = os.environ.get(_PARALLEL)
    os.environ[_PARALLEL] = "false"
    try:
        yield
    finally:
        os.environ.pop(_PARALLEL)
        if before is not None:
            os.environ[_PARALLEL] = before


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Processes that start meanwhile do not import the program's main module.

    Ours need nothing of it; its imports may be heavy, and a script that does not guard its last
    lines with `if __name__ == "__main__"` would start itself again.
    """
    main = sys.modules["__main__"]
    hidden = {name: vars(main)[name] for name in ("__spec__", "__file__") if name in vars(main)}
    for name in hidden:
        setattr(main, name, None)
    try:
        yield
    finally:
        for name, value in hidden.items():
            setattr(main, name, value)


# ---- who may write ----


def own(lock: str) -> Any:
    """Waits a little until no other process holds a lock file, then holds it with its workers.

    Returns what to close at the end; it is also let go when this process is killed.

    Raises:
      BlockingIOError: another process holds it.
    """
    import fcntl

    file = open(lock, "wb")  # noqa: SIM115
    for _ in range(_LOCK_POLLS):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:  # the workers of a process that was killed may be ending
            time.sleep(_POLL_SECONDS)
        except OSError:  # a file system without locks
            return file
    else:
        file.close()
        raise BlockingIOError(f"{lock} is held by another process.")
    fcntl.flock(file, fcntl.LOCK_SH)
    return file


def share(lock: str) -> Any:
    """Holds a lock file with the process that owns it."""
    import fcntl

    file = open(lock, "wb")  # noqa: SIM115
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_SH)
    return file


# ---- in a worker ----


class _Stopped(Exception):
    """Another job failed."""


_worker: dict[str, Any] = {}  # of this process: set by `_begin`


def _begin(numbers: Any, totals: Any, stop: Any, threads: int, lock: str | None) -> None:
    """Sets a worker process up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and tells us to stop
    parent.end_with_it()
    os.environ[_PARALLEL] = "false"
    if lock is not None:
        _worker["lock"] = share(lock)
    if parent.is_gone():
        os._exit(1)  # it ended before we held the lock: another may write by now
    _worker.update(number=numbers.get(), totals=totals, stop=stop, threads=threads)


def _work(job: Job) -> dict[str, Any]:
    totals, place = _worker["totals"], 2 * _worker["number"]

    def advance(tokens: int, read_bytes: int) -> None:
        if _worker["stop"].is_set():
            raise _Stopped
        totals[place] += tokens
        totals[place + 1] += read_bytes

    return do(job, opened(job.tokenizer), _worker["threads"], advance)


@functools.lru_cache(maxsize=4)
def opened(tokenizer: Tokenizer) -> encoders.Vocabulary:
    """`tokenizer.open()`, once for many units."""
    return tokenizer.open()


def _hash(value: Any) -> str:
    return files.sha256(json.dumps(value, sort_keys=True).encode())


def settings_key(depends: Mapping[str, Any], shard_tokens: int) -> str:
    """What the keys of all parts of a source begin with."""
    return _hash([parts.FORMAT, depends, shard_tokens])


def do(job: Job, encoder: encoders.Vocabulary, threads: int, advance: Advance) -> dict[str, Any]:
    """Makes the parts of one unit, from where an earlier run left them.

    Args:
      threads: that encode.

    Returns:
      The unit's record: parts, fingerprint, tally, kept (documents that were there).
    """
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        # The input is hashed while it is tokenized, unless an earlier run left parts to compare.
        return _do(job, encoder, threads, advance, pool.submit(job.unit.fingerprint))


def _do(
    job: Job,
    encoder: encoders.Vocabulary,
    threads: int,
    advance: Advance,
    fingerprint: concurrent.futures.Future,
) -> dict[str, Any]:
    settings = settings_key(job.depends, job.shard_tokens)

    def key() -> str:
        return settings + _hash([job.unit.key, fingerprint.result()])

    counting = lint.Lint(encoder)
    writer = parts.PartWriter(
        job.folder,
        job.number,
        key=key,
        dtype=parts.token_dtype(encoder.facts["vocab_size"]),
        shard_tokens=job.shard_tokens,
        notes=counting.take,
    )
    kept = writer.documents
    old = parts.unit_record(job.folder, job.number, key)
    if old is not None and old["parts"] == writer.parts:
        advance(0, job.unit.size_bytes)
        return old | {"kept": kept}
    tally = reading.Tally()
    documents = job.reader.documents(job.source, job.unit, tally, encoder.tokenizer_facts)
    fresh: Iterator[_Item] = itertools.islice(documents, kept, None)
    read_bytes = 0
    for batch in _encoded(_batches(fresh), encoder, threads):
        for document, tokens in batch:
            counting.see(document, tokens)
            writer.add(tokens.id, tokens.text_bytes, tokens.tokens, tokens.loss)
        advance(sum(len(tokens.tokens) for _, tokens in batch), tally.read_bytes - read_bytes)
        read_bytes = tally.read_bytes
    record = {"unit": job.unit.key, "fingerprint": fingerprint.result(), "tally": tally.to_json()}
    count = writer.close(record)
    advance(0, job.unit.size_bytes - read_bytes)
    return record | {"parts": count, "kept": kept}


def _batches(documents: Iterable[_Item]) -> Iterator[list[_Item]]:
    batch: list[_Item] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text if isinstance(document, types.Document) else document.tokens)
        if len(batch) >= _BATCH_DOCUMENTS or size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encoded(
    batches: Iterable[list[_Item]], encoder: encoders.Vocabulary, threads: int
) -> Iterator[list[_Pair]]:
    """Batches with their tokens, in order; a few are encoded ahead by threads."""
    if threads == 1:
        for batch in batches:
            yield _encode(batch, encoder)
        return
    window: collections.deque[concurrent.futures.Future] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for batch in batches:
            window.append(pool.submit(_encode, batch, encoder))
            if len(window) > 2 * threads:
                yield window.popleft().result()
        while window:
            yield window.popleft().result()


def _encode(batch: list[_Item], encoder: encoders.Vocabulary) -> list[_Pair]:
    texts = [item for item in batch if isinstance(item, types.Document)]
    if not texts:
        return [(None, item) for item in batch if isinstance(item, types.TokenDocument)]
    assert len(texts) == len(batch), "a reader gives documents of one kind"
    return list(zip(texts, encoder.encode(texts), strict=True))
