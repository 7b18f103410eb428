# SPDX-License-Identifier: Apache-2.0
"""What is said before the first update."""

import json

import numpy as np
import tiny_run as tiny

from midjax import log
from midjax.batches import shards
from midjax.train import announce, prepare


def test_documents_that_are_in_no_row_are_said(tmp_path, capsys):
    tiny.write_tokens(tmp_path / "tokens")
    facts = {"vocab_size": tiny.VOCAB, "tokenizer_hash": "tiny", "bos_id": None, "eos_id": None}
    made = [("long", 90, np.arange(60)), ("one token", 1, np.array([5])), ("none", 0, np.array([]))]
    shards.write(str(tmp_path / "tokens" / "code"), made, facts=facts, shard_tokens=500)
    prepared = prepare.prepare(tiny.train(tmp_path, steps=1, schedule=tiny.wsd(warmup_steps=0)))
    announce.start(prepared, log.Journal(str(tmp_path / "run"), step=0, is_writer=True))
    assert "code: 2 documents are in no row: fewer than 2 tokens" in capsys.readouterr().out
    event = json.loads((tmp_path / "run" / "events.jsonl").read_text())
    assert event["event"] == "start"
    assert event["packing"]["code"]["dropped"] == {"fewer than 2 tokens": 2}


def test_lacking_flags_of_the_compiler_are_said(tmp_path, capsys, monkeypatch):
    tiny.write_tokens(tmp_path / "tokens")
    asked = []
    monkeypatch.setattr(
        announce.compiler_flags, "lacking", lambda kind, dense: asked.append((kind, dense)) or "why"
    )
    prepared = prepare.prepare(tiny.train(tmp_path, steps=1, schedule=tiny.wsd(warmup_steps=0)))
    announce.start(prepared, log.Journal(str(tmp_path / "run"), step=0, is_writer=True))
    assert asked == [("cpu", True)]
    assert "warning: why\n" in capsys.readouterr().out
    first, *_ = map(json.loads, (tmp_path / "run" / "events.jsonl").read_text().splitlines())
    assert (first["event"], first["what"]) == ("compiler_flags_missing", "why")
