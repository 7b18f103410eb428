# SPDX-License-Identifier: Apache-2.0
"""SIGTERM asks, and leaves no handler behind; the same in real processes: tests/e2e."""

import json
import os
import signal

from midjax import log
from midjax.train import preemption


def test_sigterm_asks_once_and_for_all_and_only_inside():
    before = signal.getsignal(signal.SIGTERM)
    with preemption.Stop() as stop:
        assert not stop.reached(1) and not stop.is_asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert not stop.is_asked  # until the loop asks: all processes stop at one step
        assert stop.reached(2) and stop.is_asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reached(3)
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_end_says_where_the_run_goes_on(tmp_path):
    journal = log.Journal(str(tmp_path), step=3, is_writer=True)
    told = preemption.end("run", journal, 3, 2)
    assert told.exit_code == 42 and not isinstance(told, ValueError | OSError)
    assert "after step 3. The same command goes on from step 2, which is saved" in str(told)
    assert "from the beginning" in str(preemption.end("run", journal, 1, None))
    first, _ = (json.loads(line) for line in (tmp_path / "events.jsonl").open())
    assert (first["event"], first["step"], first["saved_step"]) == ("preempted", 3, 2)
