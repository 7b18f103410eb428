# SPDX-License-Identifier: Apache-2.0
"""What a real run's checkpoint tells: its own stage and those before it, over a resume too."""

import collections
import hashlib
import json
import shutil

import pytest
import tiny_run as tiny

from midjax import checkpoint, config, lineage
from midjax.train import loop, prepare


def test_a_runs_stages_are_told_whatever_becomes_of_its_parent(source, capsys):
    begin = tiny.begin(
        "anneal", run=str(source / "run"), keep=("data", "rng"), allow_lr_jump="a lower rate"
    )
    down = tiny.wsd(peak_lr=5e-3, warmup_steps=0, decay_steps=8)
    root = tiny.anneal(source, "anneal", start=begin, schedule=down)
    order = prepare.prepare(root).loader.order
    drawn = collections.Counter(order.names[order[i][0]] for i in range(8 * tiny.B))
    config.save(root, root.run_dir)
    loop.run(root)
    first, own = lineage.of(root.run_dir, 8)
    rows = list(map(json.loads, (source / "anneal" / "metrics.jsonl").open()))

    assert own["tokens by source"] == {name: n * tiny.T for name, n in drawn.items()}
    for name, tokens in own["tokens by source in all"].items():
        assert tokens == own["tokens by source"][name] + first["tokens by source"][name]
    rate = own["learning rate"]
    assert [rate["first"], rate["last"]] == pytest.approx([rows[0]["lr"], rows[-1]["lr"]])
    jump = {"from": pytest.approx(1e-2), "to": 5e-3, "reason": "a lower rate", "step": 0}
    assert rate["jump"] == jump
    text = (source / "anneal" / "config.json").read_bytes()
    assert own["recipe"]["hash"] == hashlib.sha256(text).hexdigest()
    assert first["recipe"] is None and own["recipe"]["content"] == json.loads(text)
    (mixture,) = own["mixtures"]
    assert mixture["fingerprint"] == order.fingerprint()
    assert first["hash"] == checkpoint.read_facts(first["run"], 8)["manifest"]["seal"]

    # The parent is written anew, and then gone; the run goes back to its middle, and on.
    checkpoint.set_aside(root.run_dir, 8)
    capsys.readouterr()
    other = tiny.replace(tiny.train(source), seed=1)
    shutil.rmtree(source / "run")
    loop.run(other)
    capsys.readouterr()
    loop.run(root)
    assert "is not the checkpoint that this run comes from any more" in capsys.readouterr().out
    shutil.rmtree(source / "run")
    assert lineage.of(root.run_dir, 8)[0] == first
    again = lineage.of(root.run_dir, 8)[1]
    assert {**again, "hash": None} == {**own, "hash": None}
