# SPDX-License-Identifier: Apache-2.0
"""The run as a whole: what it counts, what it leaves, and starts from a Hugging Face folder."""

import json

import jax
import numpy as np
import pytest
import tiny_run as tiny

from midjax import checkpoint
from midjax.model import hf
from midjax.train import loop, start


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loop")
    tiny.write_tokens(folder / "tokens")
    loop.run(tiny.train(folder))
    return folder


def read(folder, name):
    return [json.loads(line) for line in (folder / "run" / f"{name}.jsonl").open()]


def test_a_run_learns_what_its_data_repeats(folder):
    losses = [row["loss"] for row in read(folder, "metrics")]
    assert losses[0] == pytest.approx(np.log(tiny.VOCAB), rel=0.1) and losses[-1] < losses[0] - 0.1


def test_every_token_is_accounted_for(folder):
    rows, prepared = read(folder, "metrics"), loop.prepare(tiny.train(folder, "other"))
    plan = {row.source: row.rows for row in prepared.loader.order.plan()}
    assert {name: rows[-1][f"rows/{name}"] for name in plan} == plan
    data = checkpoint.read_facts(str(folder / "run"), 8)["data"]
    assert data["drawn_rows"] == plan and data["next_row"] == sum(plan.values()) == 8 * tiny.B
    start_event = next(e for e in read(folder, "events") if e["event"] == "start")
    assert {p["source"]: p["rows"] for p in start_event["plan"]} == plan
    for row in rows:
        assert sum(row[f"tokens/{name}"] for name in plan) <= tiny.T * tiny.B
        assert row["tokens"] == row["step"] * tiny.T * tiny.B


def test_the_checkpoint_knows_the_rate_in_force(folder):
    """After the last of 8 updates the stable rate is still in force: it is not the final rate."""
    rate = checkpoint.read_facts(str(folder / "run"), 8)["manifest"]["lr"]
    assert rate["last"] == rate["next"] == pytest.approx(1e-2)
    annealed = tiny.anneal(folder, "annealed")
    loop.run(annealed)
    rate = checkpoint.read_facts(annealed.run_dir, 8)["manifest"]["lr"]
    assert rate["next"] == 0 and rate["last"] == pytest.approx(1e-2 / 8)
    lineage = checkpoint.lineage(annealed.run_dir, 8)
    assert [(entry["run"], entry["step"]) for entry in lineage] == [
        (str(folder / "run"), 8), (annealed.run_dir, 8)
    ]  # fmt: skip


def test_a_source_too_small_for_its_cap_is_refused_before_the_run(folder):
    data = tiny.data(folder / "tokens", tiny.mixture(cap=0.2))
    with pytest.raises(ValueError, match=r"needs more epochs than its caps allow: .*prose: "):
        loop.run(tiny.train(folder, "capped", data=data))
    assert not (folder / "capped").exists()


def weights(folder, name, **kwargs):
    start_from = tiny.begin("weights", huggingface=str(folder / "hf"))
    return tiny.train(folder, name, start=start_from, **kwargs)


def test_a_run_from_a_hugging_face_folder(folder):
    _, state = loop.begin(tiny.train(folder), loop.sharding.make(tiny.train(folder).mesh))
    hf.save(str(folder / "hf"), tiny.model(), jax.device_get(state.params), "float32")
    config = weights(folder, "from-hf")
    prepared, begun = loop.begin(config, loop.sharding.make(config.mesh))
    assert prepared.origin.huggingface and int(begun.step) == 0
    for a, b in zip(*map(jax.tree.leaves, (begun.params, state.params)), strict=True):
        assert (a == b).all()
    assert all((m == 0).all() for m in jax.tree.leaves(begun.opt_state["adam"].mu))
    with pytest.raises(start.StartError, match="does not fit .*ffn_dim: folder 32, recipe 48"):
        loop.run(weights(folder, "x", model=tiny.model(ffn_dim=48)))


def test_bad_numbers(folder):
    with pytest.raises(ValueError, match="train_tokens must be positive"):
        tiny.train(folder, steps=0)
    with pytest.raises(ValueError, match="3 warm-up and 7 decay steps are more than the run's 8"):
        loop.prepare(tiny.train(folder, "x", schedule=tiny.wsd(decay_steps=7)))
