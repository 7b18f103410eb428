# SPDX-License-Identifier: Apache-2.0
"""What is known of a run before a device is touched."""

import dataclasses

import pytest
import tiny_run as tiny

from midjax import checkpoint
from midjax.batches import starts
from midjax.train import loop, prepare, start, timeline
from midjax.train.schedules import phases


def test_a_fresh_run(source):
    prepared = prepare.prepare(tiny.train(source, "new", steps=5, schedule=tiny.wsd()))
    assert prepared.origin.kind == "fresh" and prepared.position.base_rows == {}
    assert (prepared.first_step, prepared.first_row, prepared.schedule_count) == (0, 0, 0)
    assert prepared.loader.order.total_rows == 5 * tiny.B
    assert prepared.lr(0) == 0 and prepared.lr(3) == pytest.approx(1e-2)


def test_the_schedule_goes_on_from_its_own_count(source):
    prepared = prepare.prepare(tiny.train(source))
    assert prepared.origin.kind == "own" and prepared.first_step == prepared.schedule_count == 8


def test_a_kept_schedule_has_the_peak_that_it_had(source):
    """An anneal continued in another folder from the middle of its decay: the same rates."""
    anneal = tiny.anneal(source, "middle")
    loop.run(anneal)
    kept = tiny.begin("resume", run=anneal.run_dir, step=4)
    prepared = prepare.prepare(tiny.anneal(source, "on", start=kept))
    assert prepared.schedule_count == 4 and prepared.lr(4) == pytest.approx(1e-2 * 4 / 8)


def re_warm_up():
    """From the rate in force to 0.05 over 256 tokens, then to zero: in tokens, batches of 128."""
    up = phases.Move(
        name="up", steps=None, tokens=256, start_lr="checkpoint", end_lr=0.05, shape="linear"
    )
    down = phases.Move(
        name="down", steps=None, tokens=None, start_lr="previous", end_lr=0.0, shape="linear"
    )
    return phases.Phases(phases=(up, down))


def test_a_schedule_of_phases_resumed_branched_and_begun_again(source):
    """The rate in force when it began is what "checkpoint" stays, though it is no longer in force.

    0.01, 0.03, 0.05, 0.05 * 5/6, ..., 0.05 / 6.
    """
    wanted = [0.01, 0.03, *(0.05 * (6 - i) / 6 for i in range(7))]
    config = tiny.anneal(source, "up", schedule=re_warm_up())
    first = prepare.prepare(config)
    assert [first.lr(s) for s in range(9)] == pytest.approx(wanted, rel=1e-6)
    loop.run(config)
    manifest = checkpoint.read_facts(config.run_dir, 4)["manifest"]
    assert manifest["schedule"] == {
        "taken_lr": first.lr(0), "clock": [[0, 0, 128]], "reference_tokens": 128,
    }  # fmt: skip
    assert manifest["tokens"] == 4 * 128
    assert manifest["peak_lr"] == 0.05 and manifest["schedule_count"] == 4
    rates = [manifest["lr"][name] for name in ("first", "last", "next")]
    assert rates == pytest.approx([0.01, wanted[3], wanted[4]], rel=1e-6)
    own = prepare.prepare(config)
    kept = tiny.begin("resume", run=config.run_dir, step=4)
    branched = prepare.prepare(tiny.anneal(source, "on", start=kept, schedule=re_warm_up()))
    assert (own.schedule_count, branched.schedule_count) == (8, 4)
    for later in (own, branched):
        assert [later.lr(s) for s in range(9)] == [first.lr(s) for s in range(9)]
    again = tiny.begin("anneal", run=config.run_dir, step=4)
    anneal = prepare.prepare(tiny.anneal(source, "again", start=again))
    assert anneal.schedule_count == 0
    assert [anneal.lr(s) for s in (0, 4)] == pytest.approx([wanted[4], wanted[4] / 2], rel=1e-6)


def test_a_kept_schedule_counts_tokens_through_a_change_of_the_batch(source):
    """Update 4 was reached with 8 rows; 2 rows from there on: 32 tokens an update."""
    manifest = {
        "schedule_count": 4, "tokens": 512, "peak_lr": 0.05, "lr": {"next": 0.04},
        "schedule": {"taken_lr": 0.01, "clock": [[0, 0, 128]]},
    }  # fmt: skip
    origin = start.Origin(
        kind="resume", run="x", step=4, parts=frozenset(start.PARTS), data={}, manifest=manifest,
        huggingface=None,
    )  # fmt: skip
    config = tiny.anneal(
        source, data=tiny.data(source / "tokens", batch_rows=2), schedule=re_warm_up()
    )
    line = timeline.of(config.data, config.train_tokens, origin)
    curve = prepare.schedule(config, origin, line)
    assert line.first_count == 4 and curve.total_steps == 4 + 16 and config.train_tokens == 1024
    wanted = [0.01, 0.03, 0.05, 0.05 * 5 / 6]
    wanted += [0.05 * (1024 - 512 - 32 * i) / 768 for i in range(17)]
    assert curve.lrs(range(21)).tolist() == pytest.approx(wanted)
    assert curve.facts() == {
        "taken_lr": 0.01, "clock": [[0, 0, 128], [4, 512, 32]], "reference_tokens": 128,
    }  # fmt: skip


@pytest.mark.parametrize(("rule", "factor"), [("none", 1.0), ("linear", 0.25), ("sqrt", 0.5)])
def test_an_anneal_with_another_batch_takes_the_rate_by_the_rule(source, rule, factor):
    """8 rows there and 2 here; what the rule makes of the rate in force is no jump."""
    config = tiny.anneal(
        source, "small", data=tiny.data(source / "tokens", batch_rows=2), batch_lr_rule=rule,
        schedule=tiny.wsd(
            peak_lr="checkpoint", warmup_steps=0, decay_steps=None, decay_tokens=1024
        ),
    )  # fmt: skip
    prepared = prepare.prepare(config)
    assert prepared.total_steps == 32
    for step in (0, 8, 31):
        assert prepared.lr(step) == pytest.approx(1e-2 * factor * (32 - step) / 32)
    loop.run(config)
    there = checkpoint.read_facts(config.run_dir, 28)
    assert there["manifest"]["schedule"]["reference_tokens"] == 128
    assert there["manifest"]["tokens"] == 28 * 2 * tiny.T == there["data"]["next_row"] * tiny.T
    on = tiny.begin("resume", run=config.run_dir, step=28)
    later = prepare.prepare(dataclasses.replace(config, run_dir=f"{source}/on", start=on))
    assert [later.lr(s) for s in range(32)] == [prepared.lr(s) for s in range(32)]
    # Back to 8 rows for the last 128 tokens: one update, by the rule the rate of the first batch.
    big = dataclasses.replace(config.data, batch_rows=8)
    last = prepare.prepare(
        dataclasses.replace(config, run_dir=f"{source}/back", start=on, data=big)
    )
    assert last.total_steps == 29 and last.lr(28) == pytest.approx(1e-2 * 4 / 32)


def test_a_jump_beside_the_rule_is_refused(source):
    config = tiny.anneal(
        source, "small", data=tiny.data(source / "tokens", batch_rows=2), batch_lr_rule="sqrt",
        schedule=tiny.wsd(peak_lr=1e-3, warmup_steps=0, decay_steps=32),
    )  # fmt: skip
    with pytest.raises(start.StartError, match=r"step 8, is 0\.01 and the first .* is 0\.001"):
        prepare.prepare(config)


@pytest.mark.parametrize(("rows", "rule"), [(16, "none"), (4, "none"), (4, "sqrt")])
def test_another_batch_in_the_middle_of_a_decay_in_steps_is_a_jump(source, rows, rule):
    """6 steps from the end lie elsewhere then: neither the old rate nor the rule's."""
    config = tiny.train(source, "own", schedule=tiny.wsd(warmup_steps=0, decay_steps=6))
    loop.run(config)
    checkpoint.set_aside(config.run_dir, 8)
    other = dataclasses.replace(
        config, batch_lr_rule=rule, data=dataclasses.replace(config.data, batch_rows=rows)
    )
    with pytest.raises(start.StartError, match=r"Learning rate jump: .* step 4, is .* say why"):
        prepare.prepare(other)
    allowed = tiny.begin(allow_lr_jump="a test")
    prepared = prepare.prepare(dataclasses.replace(other, start=allowed))
    assert prepared.lr_jump["step"] == 4 and prepared.lr_jump["to"] == prepared.lr(4)
    assert prepare.prepare(config).lr_jump is None


def test_a_rule_that_changes_without_the_batch_is_a_jump(source):
    ramp = starts.Ramp(rows=(8, 16), start_tokens=(0, 2 * 128))
    config = tiny.train(source, "own", data=tiny.data(source / "tokens", batch_rows=ramp), steps=8,
                        schedule=tiny.wsd(warmup_steps=0))  # fmt: skip
    loop.run(config)
    checkpoint.set_aside(config.run_dir, 5)
    with pytest.raises(start.StartError, match=r"is 0\.01 and the first .* is 0\.02"):
        prepare.prepare(dataclasses.replace(config, batch_lr_rule="linear"))


def test_refusals(source):
    with pytest.raises(ValueError, match="decay 7 steps.* do not fit into the run's 8 steps"):
        prepare.prepare(tiny.train(source, "x", schedule=tiny.wsd(decay_steps=7)))
    with pytest.raises(ValueError, match="has 64 tokens and the model's vocab_size is 63"):
        prepare.prepare(tiny.train(source, "x", model=tiny.model(vocab_size=63)))
    late = tiny.mixture((0, {"prose": 1.0}), (8 * tiny.T * tiny.B, {"code": 1.0}))
    with pytest.raises(ValueError, match=r"'s1' begins at 1024 tokens and the run ends at 1024"):
        prepare.prepare(tiny.train(source, "x", data=tiny.data(source / "tokens", late)))


def test_ends_of_phases_are_steps_of_the_run(source):
    """A warm-up of 3 and a decay of 2: of a run of 8 steps, and of one that goes on to 16."""
    keep = checkpoint.Keep(every_steps=4, last=1, forever_every_steps=None, at_phase_ends=True)
    schedule = tiny.wsd(decay_steps=2)
    fresh = tiny.train(source, "x", schedule=schedule, checkpoint=keep)
    assert prepare.prepare(fresh).phase_ends == {3, 6}
    assert prepare.prepare(tiny.train(source, "x", schedule=schedule)).phase_ends == frozenset()
    on = tiny.begin("resume", run=str(source / "run"))
    counted = tiny.train(source, "x", schedule=schedule, checkpoint=keep, start=on, steps=16)
    assert prepare.prepare(counted).phase_ends == {3, 14}
