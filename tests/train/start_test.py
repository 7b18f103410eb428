# SPDX-License-Identifier: Apache-2.0
"""The restore policy: what is kept arrives, what is reset is fresh, and nothing is silent."""

import json
import pathlib

import jax
import numpy as np
import pytest
import tiny_run as tiny

from midjax import checkpoint
from midjax.train import loop, start


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder with tokens and a finished pretraining run of 8 steps."""
    folder = tmp_path_factory.mktemp("source")
    tiny.write_tokens(folder / "tokens")
    loop.run(tiny.train(folder))
    return folder


def built(config):
    """The state that a run would begin with, and what was prepared for it."""
    return loop.begin(config, loop.sharding.make(config.mesh))


def rows(run_dir):
    return [json.loads(line) for line in (pathlib.Path(run_dir) / "metrics.jsonl").open()]


def events(run_dir, name):
    lines = (pathlib.Path(run_dir) / "events.jsonl").open()
    return [e for e in map(json.loads, lines) if e["event"] == name]


def numpy_norm(tree):
    leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)]
    return np.linalg.norm(np.concatenate(leaves))


def test_anneal_keeps_moments_and_resets_schedule_step_and_data(source):
    prepared, state = built(tiny.anneal(source))
    saved = checkpoint.read_facts(str(source / "run"), 8)["manifest"]
    adam = state.opt_state["adam"]
    for name, tree in (("params", state.params), ("mu", adam.mu), ("nu", adam.nu)):
        assert numpy_norm(tree) == pytest.approx(saved["norms"][name], rel=1e-6)
        assert saved["norms"][name] > 0
    assert int(adam.count) == 8
    assert int(state.opt_state["schedule"].count) == 0 and int(state.step) == 0
    assert prepared.first_step == 0 and prepared.first_row == 0
    assert prepared.schedule.peak_lr == pytest.approx(1e-2)


def test_the_arrays_are_those_of_the_source_bit_for_bit(source):
    _, state = built(tiny.anneal(source))
    _, resumed = built(tiny.train(source))  # its own newest checkpoint
    assert int(resumed.step) == 8 and int(resumed.opt_state["schedule"].count) == 8
    for a, b in (
        (state.params, resumed.params),
        (state.opt_state["adam"].mu, resumed.opt_state["adam"].mu),
        (state.opt_state["adam"].nu, resumed.opt_state["adam"].nu),
    ):
        assert all((x == y).all() for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def test_weights_keep_params_only(source):
    config = tiny.train(source, "weights", start=tiny.begin("weights", run=str(source / "run")))
    _, state = built(config)
    saved = checkpoint.read_facts(str(source / "run"), 8)["manifest"]["norms"]
    assert numpy_norm(state.params) == pytest.approx(saved["params"], rel=1e-6)
    assert numpy_norm(state.opt_state["adam"].mu) == 0 and int(state.opt_state["adam"].count) == 0


def test_an_anneal_from_the_start_rate_to_zero(source):
    config = tiny.anneal(source)
    loop.run(config)
    lrs = [row["lr"] for row in rows(config.run_dir)]
    assert lrs == pytest.approx([1e-2 * (1 - s / 8) for s in range(8)], rel=1e-5)
    (event,) = events(config.run_dir, "start")
    assert event["kind"] == "anneal" and event["from_step"] == 8
    assert event["parts"] == {
        "params": "keep", "moments": "keep", "adam_count": "keep", "schedule": "reset",
        "step": "reset", "data": "reset", "rng": "reset",
    }  # fmt: skip
    assert event["lr_in_force"] == pytest.approx(1e-2) == event["first_lr"]
    parent = checkpoint.read_facts(config.run_dir, 8)["manifest"]["parent"]
    assert parent["run"] == str(source / "run") and parent["step"] == 8


def test_kept_moments_matter(source):
    """The first update of an anneal differs from one with fresh moments: they are used."""
    norms = {}
    for kind in ("anneal", "weights"):
        first = tiny.begin(kind, run=str(source / "run"))
        config = tiny.anneal(source, f"first-{kind}", steps=1, start=first)
        norms[kind] = loop.run(config)["update_norm"]
    assert abs(norms["anneal"] - norms["weights"]) > 0.05 * norms["weights"]


def nothing_restored(run_dir, step, targets):
    """What a restore that silently did nothing leaves: the arrays of a fresh state."""
    return jax.tree.map(lambda t: jax.numpy.zeros(t.shape, t.dtype), dict(targets))


def test_a_restore_that_did_nothing_is_refused(source, monkeypatch):
    monkeypatch.setattr(checkpoint, "restore", nothing_restored)
    with pytest.raises(start.StartError, match=r"norm of (params|mu|nu) is .* the restore did not"):
        built(tiny.anneal(source, "nothing"))


def test_a_restore_that_lost_only_the_moments_is_refused(source, monkeypatch):
    real = checkpoint.restore

    def lossy(run_dir, step, targets):
        found = real(run_dir, step, targets)
        moments = jax.tree.map(jax.numpy.zeros_like, found["opt_state"]["moments"])
        return found | {"opt_state": found["opt_state"] | {"moments": moments}}

    monkeypatch.setattr(checkpoint, "restore", lossy)
    with pytest.raises(start.StartError, match=r"norm of (mu|nu) is 0 and was"):
        built(tiny.anneal(source, "lossy"))


def test_a_jump_of_the_rate_must_be_asked_for(source, capsys):
    up = tiny.wsd(peak_lr=2e-2, warmup_steps=0, decay_steps=8)
    with pytest.raises(start.StartError, match=r"is 0.01 and the first of this schedule is 0.02"):
        loop.prepare(tiny.anneal(source, "jump", schedule=up))
    warm = tiny.wsd(peak_lr="checkpoint", warmup_steps=2, decay_steps=0)
    with pytest.raises(start.StartError, match=r"the first of this schedule is 0\."):
        loop.prepare(tiny.anneal(source, "jump", schedule=warm))
    asked = tiny.begin("anneal", run=str(source / "run"), allow_lr_jump=True)
    loop.prepare(tiny.anneal(source, "jump", schedule=up, start=asked))
    assert "learning rate jump, as asked for" in capsys.readouterr().out


def test_data_position_kept_goes_on_in_every_source(source):
    keep = tiny.begin("anneal", run=str(source / "run"), keep=("data", "rng"))
    weights = (0, {"prose": 0.2, "code": 0.5, "maths": 0.3})
    mix = tiny.mixture(weights, seed=99)
    config = tiny.anneal(source, "goes-on", start=keep, data=tiny.data(source / "tokens", mix))
    prepared = loop.prepare(config)
    drawn = checkpoint.read_facts(str(source / "run"), 8)["data"]["drawn_rows"]
    assert sum(drawn.values()) == 8 * tiny.B
    order = prepared.loader.order
    firsts = {}
    for i in range(order.total_rows):
        source_index, row = order[i]
        firsts.setdefault(order.names[source_index], row)
    assert firsts == drawn
    assert prepared.config.data.mixture.seed == 1  # rng kept: the source's own permutations


def test_data_position_cannot_be_kept_when_rows_mean_other_text(source):
    keep = tiny.begin("anneal", run=str(source / "run"), keep=("data",))
    data = tiny.data(source / "tokens", row_tokens=2 * tiny.T, batch_rows=tiny.B // 2)
    with pytest.raises(start.StartError, match="row_tokens was 16 and is 32"):
        loop.prepare(tiny.anneal(source, "x", start=keep, data=data))


def test_missing_checkpoints_are_named(source):
    nowhere = tiny.begin("anneal", run=str(source / "nowhere"))
    with pytest.raises(
        start.StartError, match=r"holds no finished checkpoint.*Nothing was started"
    ):
        loop.prepare(tiny.anneal(source, "x", start=nowhere))
    step = tiny.begin("anneal", run=str(source / "run"), step=5)
    with pytest.raises(start.StartError, match=r"step = 5, and .* holds the steps \[4, 8\]"):
        loop.prepare(tiny.anneal(source, "x", start=step))
    older = tiny.begin("anneal", run=str(source / "run"), step=4)
    assert loop.prepare(tiny.anneal(source, "x", start=older)).origin.step == 4


def test_another_shape_or_vocabulary_is_refused_by_name(source):
    with pytest.raises(start.StartError, match=r"layers/w_down: checkpoint \[2, 32, 16\], recipe"):
        loop.prepare(tiny.anneal(source, "x", model=tiny.model(ffn_dim=48)))
    with pytest.raises(start.StartError, match=r"embed: checkpoint \[64, 16\], recipe \[80, 16\]"):
        loop.prepare(tiny.anneal(source, "x", model=tiny.model(vocab_size=80)))
    with pytest.raises(start.StartError, match=r"head: checkpoint \[16, 64\], recipe absent"):
        loop.prepare(tiny.anneal(source, "x", model=tiny.model(tied_head=True)))
    with pytest.raises(ValueError, match="has 64 tokens and the model's vocab_size is 63"):
        loop.prepare(tiny.train(source, "x", model=tiny.model(vocab_size=63)))


def test_another_tokenizer_is_refused(source, tmp_path):
    tiny.write_tokens(tmp_path, tokenizer="another")
    with pytest.raises(start.StartError, match="was trained on another tokenizer"):
        loop.prepare(tiny.anneal(source, "x", data=tiny.data(tmp_path)))


def test_own_checkpoint_wins_over_the_branch_source(source):
    config = tiny.anneal(source, "twice")
    loop.run(config)
    origin = loop.prepare(config).origin
    assert origin.kind == "own" and origin.step == 8
    assert loop.run(config) == {}  # nothing left to do, and nothing done
    assert len(rows(config.run_dir)) == 8


def test_changed_data_is_refused_at_resume(source):
    config = tiny.train(source, data=tiny.data(source / "tokens", tiny.mixture(seed=2)))
    with pytest.raises(start.StartError, match="data differs from what"):
        loop.prepare(config)


def damage(run_dir, step):
    root = pathlib.Path(checkpoint.folder(run_dir)) / str(step) / "params" / "d"
    for file in root.iterdir():
        file.write_bytes(bytes(b ^ 0x55 for b in file.read_bytes()))


def test_a_damaged_newest_checkpoint_falls_back_and_is_kept_aside(source, tmp_path):
    tiny.write_tokens(tmp_path / "tokens")
    config = tiny.train(tmp_path)
    straight = loop.run(config)
    damage(config.run_dir, 8)
    again = loop.run(config)
    assert {k: v for k, v in again.items() if "perf" not in k} == {
        k: v for k, v in straight.items() if "perf" not in k
    }
    names = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["4", "8", "8.damaged-0"]
    assert events(config.run_dir, "rows_redone")[0]["rows"] == 4
    assert [row["step"] for row in rows(config.run_dir)] == list(range(1, 9))


def test_a_run_whose_only_checkpoint_is_damaged_does_not_start_over(tmp_path):
    tiny.write_tokens(tmp_path / "tokens")
    config = tiny.train(tmp_path, steps=4)
    loop.run(config)
    damage(config.run_dir, 4)
    with pytest.raises(start.StartError, match="Going on would mean starting over"):
        loop.run(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "anneal"}, "every other kind exactly one"),
        ({"kind": "fresh", "run": "x"}, "'fresh' takes neither"),
        ({"kind": "weights", "run": "x", "huggingface": "y"}, "exactly one"),
        ({"kind": "anneal", "huggingface": "y"}, "holds parameters only"),
        ({"kind": "anneal", "run": "x", "reset": ("params",)}, "would be a fresh start"),
        ({"kind": "anneal", "run": "x", "reset": ("adam_count",)}, "only one of"),
        ({"kind": "weights", "run": "x", "keep": ("step",)}, "resets Adam's count"),
        ({"kind": "anneal", "run": "x", "keep": ("data",), "reset": ("data",)}, "both name"),
    ],
)
def test_bad_starts(change, message):
    with pytest.raises(ValueError, match=message):
        tiny.begin(**change)
