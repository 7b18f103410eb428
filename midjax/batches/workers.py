# SPDX-License-Identifier: Apache-2.0
"""Units of sources -> finished parts, over processes.

A unit is tokenized by one process from its beginning to its end, so what is written does not depend
on how many processes there are. With one process, the tokenizer's own threads share its work.
Workers end with the process that started them, also when it is killed.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import process as process_pools
from typing import Any

import numpy as np

from midjax import files, types
from midjax.batches import encoders, lint, parts
from midjax.batches import vocabulary as vocabulary_lib
from midjax.corpora import reading

# A batch for the tokenizer: enough for its threads, and small in memory. Encodings take 100 to 200
# bytes per character while they are there.
_BATCH_DOCUMENTS = 256
_BATCH_CHARACTERS = 1_000_000
# Calls of the tokenizer at once, where it has threads: one encodes while another's result is read.
_ENCODING_THREADS = 2
_POLL_SECONDS = 0.5

Advance = Callable[[int, int], None]  # told (tokens written, bytes read) since the last call


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One unit to tokenize.

    Attributes:
      source: its name.
      folder: token folder of the source; exists.
      reader: gives the unit's documents.
      unit, number: the unit, and its place in the source.
      tokenizer: of the run; None where the reader gives tokens.
      depends: all that the tokens depend on besides the unit's content, as plain JSON.
      vocab_size: gives the type of the ids.
      shard_tokens: see `Tokenize`.
    """

    source: str
    folder: str
    reader: Any
    unit: reading.Unit
    number: int
    tokenizer: vocabulary_lib.Tokenizer
    depends: Mapping[str, Any]
    vocab_size: int
    shard_tokens: int


def cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(
    jobs: Sequence[Job], processes: int | None, advance: Advance
) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Does the jobs; yields each with the record of its unit as it is finished, in any order.

    Args:
      processes: None is as many as there are processors; never more than jobs.

    Raises:
      ChildProcessError: a worker was killed, for want of memory most likely.
      ValueError, OSError: what a job raised. Others stop at their next batch; what is finished
        stays, and the next run goes on from it.
    """
    count = min(processes or cpus(), len(jobs))
    if count <= 1:
        for job in jobs:
            yield job, do(job, _opened(job.tokenizer, None), _ENCODING_THREADS, advance)
        return
    context = multiprocessing.get_context("spawn")
    stop, totals = context.Event(), context.RawArray("q", 2 * count)
    numbers = context.SimpleQueue()
    for number in range(count):
        numbers.put(number)
    setup = (numbers, totals, stop, max(1, cpus() // count))
    # The largest first, so that no process is left with one at the end.
    order = sorted(jobs, key=lambda job: (-job.unit.size_bytes, job.source, job.number))
    told = np.zeros(2, np.int64)
    with process_pools.ProcessPoolExecutor(count, context, _begin, setup) as pool:
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


# ---- in a worker ----


class _Stopped(Exception):
    """Another job failed."""


_worker: dict[str, Any] = {}  # of this process: set by `_begin`


def _begin(numbers: Any, totals: Any, stop: Any, threads: int) -> None:
    """Sets a worker process up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and tells us to stop
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    number = numbers.get()
    _worker.update(number=number, totals=totals, stop=stop, threads=threads)


def _work(job: Job) -> dict[str, Any]:
    totals, place = _worker["totals"], 2 * _worker["number"]

    def advance(tokens: int, read_bytes: int) -> None:
        if _worker["stop"].is_set():
            raise _Stopped
        totals[place] += tokens
        totals[place + 1] += read_bytes

    threads = _worker["threads"]
    calls = _ENCODING_THREADS if threads > 1 else 1
    return do(job, _opened(job.tokenizer, threads), calls, advance)


@functools.lru_cache(maxsize=1)
def _opened(tokenizer: vocabulary_lib.Tokenizer, threads: int | None) -> encoders.Vocabulary:
    return tokenizer.open(threads)


def do(job: Job, vocabulary: encoders.Vocabulary, calls: int, advance: Advance) -> dict[str, Any]:
    """Makes the parts of one unit, from where an earlier run left them.

    Args:
      calls: of the tokenizer at once.

    Returns:
      The unit's record: parts, fingerprint, tally, kept (documents that were there).
    """
    fingerprint = job.unit.fingerprint()
    depends = [parts.FORMAT, job.depends, job.unit.key, fingerprint, job.shard_tokens]
    key = files.sha256(json.dumps(depends, sort_keys=True).encode())
    counting = lint.Lint(vocabulary)
    writer = parts.PartWriter(
        job.folder,
        job.number,
        key=key,
        dtype=parts.token_dtype(job.vocab_size),
        shard_tokens=job.shard_tokens,
        notes=counting.take,
    )
    kept = writer.documents
    old = parts.unit_record(job.folder, job.number, key)
    if old is not None and old["parts"] == writer.parts:
        advance(0, job.unit.size_bytes)
        return old | {"kept": kept}
    tally = reading.Tally()
    documents = job.reader.documents(job.source, job.unit, tally, vocabulary.tokenizer_facts)
    fresh = itertools.islice(documents, kept, None)
    read_bytes = 0
    for batch, encoded in _encoded(_batches(fresh), vocabulary, calls):
        for document, tokens in zip(batch, encoded, strict=True):
            counting.see(document, tokens)
            writer.add(tokens.id, tokens.text_bytes, tokens.tokens, tokens.loss)
        advance(sum(len(tokens.tokens) for tokens in encoded), tally.read_bytes - read_bytes)
        read_bytes = tally.read_bytes
    record = {"unit": job.unit.key, "fingerprint": fingerprint, "tally": tally.to_json()}
    count = writer.close(record)
    advance(0, job.unit.size_bytes - read_bytes)
    return record | {"parts": count, "kept": kept}


def _batches(documents: Iterable[types.Document]) -> Iterator[list[types.Document]]:
    batch: list[types.Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if len(batch) >= _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


_Pair = tuple[list[types.Document], list[types.TokenDocument]]


def _encoded(
    batches: Iterable[list[types.Document]], vocabulary: encoders.Vocabulary, calls: int
) -> Iterator[_Pair]:
    """Batches with their tokens, in order; a few are encoded ahead where calls go on at once."""
    if calls == 1:
        for batch in batches:
            yield batch, vocabulary.encode(batch)
        return
    window: collections.deque[tuple[list[types.Document], concurrent.futures.Future]]
    window = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(calls) as pool:
        for batch in batches:
            window.append((batch, pool.submit(vocabulary.encode, batch)))
            if len(window) > calls:
                first, future = window.popleft()
                yield first, future.result()
        while window:
            first, future = window.popleft()
            yield first, future.result()
