# SPDX-License-Identifier: Apache-2.0
"""Units over processes: what a lost worker and a failing unit leave."""

import json
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from midjax import demo_data, types
from midjax.batches import parts, vocabulary, workers
from midjax.corpora import formats, text

FAST = vocabulary.FastTokenizer(
    path=str(demo_data.path("tokenizer")), bos_token=None, eos_token="<|end_of_text|>"
)


def jobs_of(tmp_path, documents, bad_in=None, shard_tokens=100):
    """A job per file; one file may be damaged."""
    for number, count in enumerate(documents):
        lines = [json.dumps({"text": f"document {i} of {number}"}) for i in range(count)]
        if number == bad_in:
            lines.append("{")
        (tmp_path / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
    reader = text.JsonLines(
        path=str(tmp_path / "*.jsonl"),
        format=formats.Text(field="text"),
        id_field=None,
        max_bad_records=0,
    )
    folder = tmp_path / "out"
    folder.mkdir(exist_ok=True)
    return [
        workers.Job(
            source="s",
            folder=str(folder),
            reader=reader,
            unit=unit,
            number=number,
            tokenizer=FAST,
            depends={},
            shard_tokens=shard_tokens,
        )
        for number, unit in enumerate(reader.units())
    ]


def ignore(tokens, read_bytes):
    pass


@pytest.mark.parametrize("processes", [1, 2])
def test_progress_adds_up(tmp_path, processes):
    jobs = jobs_of(tmp_path, [30, 1, 20])
    told = []
    records = {
        job.number: record
        for job, record in workers.run(jobs, processes, None, lambda *now: told.append(now))
    }
    assert [records[n]["tally"]["documents"] for n in range(3)] == [30, 1, 20]
    tokens, read = (sum(column) for column in zip(*told, strict=True))
    written = parts.part_records(jobs[0].folder, [records[n]["parts"] for n in range(3)])
    assert tokens == sum(record["tokens"] for record in written)
    assert read == sum(job.unit.size_bytes for job in jobs)


def test_a_failing_unit_stops_the_others_and_what_is_finished_is_kept(tmp_path):
    jobs = jobs_of(tmp_path, [30, 5, 4, 3], bad_in=3)
    with pytest.raises(ValueError, match="1 bad records, and max_bad_records allows 0: 1 x not"):
        list(workers.run(jobs, 2, None, ignore))
    assert not multiprocessing.active_children()
    kept = {job.number for job in jobs if list((tmp_path / "out").glob(f"unit-0000{job.number}*"))}
    assert 3 not in kept
    (tmp_path / "3.jsonl").write_text('{"text": "mended"}\n')
    records = {job.number: r for job, r in workers.run(jobs, 2, None, ignore)}
    assert {n for n in kept if records[n]["kept"] == [30, 5, 4][n]} == kept
    assert records[3]["tally"]["documents"] == 1


def test_a_worker_that_is_killed_is_told(tmp_path):
    jobs = jobs_of(tmp_path, [2000] * 6, shard_tokens=10**6)
    running = workers.run(jobs, 2, None, ignore)
    next(running)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(ChildProcessError, match="for want of memory.*run the same command again"):
        list(running)
    assert len(list(workers.run(jobs, 1, None, ignore))) == 6


def test_batches_are_bounded_by_documents_and_by_size(monkeypatch):
    monkeypatch.setattr(workers, "_BATCH_DOCUMENTS", 3)
    monkeypatch.setattr(workers, "_BATCH_CHARACTERS", 10)
    texts = ["a"] * 7 + ["b" * 50, "c", "d" * 9, "e"]
    documents = [types.Document(text=t, id="i", source="s") for t in texts]
    sizes = [[len(d.text) for d in batch] for batch in workers._batches(documents)]
    assert sizes == [[1, 1, 1], [1, 1, 1], [1, 50], [1, 9], [1]]


def test_the_lock_is_shared_with_workers_and_refused_to_others(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_LOCK_POLLS", 2)
    monkeypatch.setattr(workers, "_POLL_SECONDS", 0)
    lock = str(tmp_path / "lock")
    owner = workers.own(lock)
    worker = workers.share(lock)
    owner.close()  # the owner dies first
    with pytest.raises(BlockingIOError):
        workers.own(lock)
    worker.close()
    workers.own(lock).close()


def test_a_script_without_a_guard_does_not_start_itself_again(tmp_path):
    jobs_of(tmp_path, [3, 3])
    script = tmp_path / "script.py"
    script.write_text(
        "print('started')\n"
        "from midjax.batches import tokenize, vocabulary\n"
        "from midjax.corpora import formats, text\n"
        f"source = text.JsonLines(path={str(tmp_path / '*.jsonl')!r}, id_field=None,\n"
        "    format=formats.Text(field='text'), max_bad_records=0)\n"
        "tokenizer = vocabulary.FastTokenizer(\n"
        f"    path={FAST.path!r}, bos_token=None, eos_token=None)\n"
        "tokenize.run(tokenize.Tokenize(sources={'s': source}, tokenizer=tokenizer,\n"
        f"    output={str(tmp_path / 'tokens')!r}, shard_tokens=100, processes=2))\n"
        "print('file', __file__)\n"
    )
    root = pathlib.Path(workers.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("started") == 1 and done.stdout.rstrip().endswith(f"file {script}")
    assert (tmp_path / "tokens" / "s" / "manifest.json").exists()
