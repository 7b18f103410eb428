# SPDX-License-Identifier: Apache-2.0
"""A run that goes back ends as one that never saw the rows: the latter is a loop written here."""

import json
import pathlib
import shutil

import faults
import jax
import numpy as np
import pytest
import tiny_run as tiny
from quick_compilation import thorough_compilation  # noqa: F401 (a fixture)

from midjax import checkpoint
from midjax.batches import readers, starts
from midjax.model import sharding
from midjax.train import ema, guard, loop, metrics, prepare, rollback, start
from midjax.train import step as step_lib
from midjax.train.schedules import curve

# Three bad batches in a row, found to be so at the second; the step before is left out as well.
NAN = {6: (3, np.nan), 7: (5, np.nan), 8: (5, np.nan)}
RULE = guard.Rollback(after_skips=2, skip_steps_before=1, most=2)
LEFT_OUT = [5, 6, 7]
STEPS = 10


def recipe(folder, name="run", **kwargs):
    given = {
        "steps": STEPS, "model": tiny.model(layers=1), "rollback": RULE,
        "schedule": tiny.wsd(decay_steps=4),
        "spikes": guard.Spikes(window_steps=4, deviations=50.0, least_history_steps=3),
        "checkpoint": checkpoint.Keep(every_steps=1, last=9, forever_every_steps=None),
    }  # fmt: skip
    return tiny.train(folder, name, **(given | kwargs))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("rollback")
    tiny.write_tokens(made / "tokens")
    return made


@pytest.fixture
def bad_batches(monkeypatch):
    faults.corrupt(monkeypatch, NAN)


@pytest.fixture(scope="module")
def went_back(folder):
    """The recipe of a finished run."""
    with pytest.MonkeyPatch.context() as patch:
        faults.corrupt(patch, NAN)
        loop.run(recipe(folder))
    return recipe(folder)


def by_hand(config):
    """Arrays of a run whose steps 5, 6 and 7 change nothing, and whose step 8 is not finite."""
    begun = loop.begin(config)
    prepared, state = begun.prepared, begun.state
    train_step = jax.jit(
        step_lib.make_train_step(
            config.model, config.loss, prepared.optimizer, curve.learning_rate(prepared.schedule),
            sources=3, microbatches=1, spikes=config.spikes, ema=config.ema,
        )
    )  # fmt: skip
    sizes = prepared.timeline.sizes()
    batches = prepared.loader.batches(next_row=0, first_step=1, batch_rows=sizes, prefetch=0)
    rows = tiny.B
    for step, (batch, _) in enumerate(batches, 1):
        if len(batch.tokens) != rows:  # losses of other batches say nothing of these
            state = tiny.replace(state, guard=guard.fresh(config.spikes))
        rows = len(batch.tokens)
        if step in (*LEFT_OUT, 8):  # what is not finite changes nothing either: see step_test
            state = tiny.replace(
                state, step=state.step + 1, schedule_count=state.schedule_count + 1
            )
        else:
            placed = readers.place(batch, sharding.batch(begun.mesh))
            state, _ = train_step(state, placed)
    return arrays(state)


def arrays(state):
    names = ("params", "opt_state", "guard", "schedule_count", "ema")
    return jax.device_get({name: getattr(state, name) for name in names})


@pytest.fixture(scope="module")
def expected(folder):
    return by_hand(recipe(folder, "by hand"))


def saved(config):
    """The arrays of the newest checkpoint, which the same recipe resumes."""
    state = loop.begin(config).state
    assert int(state.step) == STEPS
    return arrays(state)


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def read(config, name):
    return [json.loads(line) for line in (pathlib.Path(config.run_dir) / name).open()]


def test_a_run_that_went_back_never_saw_the_rows(went_back, expected):
    same(saved(went_back), expected)


def test_the_average_goes_back_with_it_and_a_ramp_stays_where_it_was(folder, bad_batches):
    """Half a batch up to step 2."""
    ramp = starts.Ramp(rows=(tiny.B // 2, tiny.B), start_tokens=(0, tiny.T * tiny.B))
    given = {
        "ema": ema.Ema(half_life_steps=2.0), "data": tiny.data(folder / "tokens", batch_rows=ramp),
        "train_tokens": (STEPS - 1) * tiny.T * tiny.B,
    }  # fmt: skip
    loop.run(recipe(folder, "average", **given))
    found = saved(recipe(folder, "average", **given))
    assert jax.tree.leaves(found["ema"])
    same(found, by_hand(recipe(folder, "average by hand", **given)))


def test_what_a_run_that_went_back_leaves_behind(went_back):
    config = went_back
    rows = read(config, "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["skipped"] for row in rows] == [0, 0, 0, 0, 3, 3, 3, 1, 0, 0]
    assert all(row["loss"] is None for row in rows[4:8]) and rows[8]["loss"] > 0
    plan = prepare.prepare(config).loader.order
    counts = plan.counts(7 * tiny.B)
    assert [rows[6][f"rows/{name}"] for name in plan.names] == counts.tolist()
    events = [e for e in read(config, "events.jsonl") if e["event"] in ("skipped", "rollback")]
    assert [(e["event"], e["step"]) for e in events] == [
        ("skipped", 6), ("skipped", 7), ("rollback", 7), ("skipped", 8)
    ]  # fmt: skip
    assert events[2]["to_step"] == 4 and events[2]["left_out"] == [5, 7]
    names = {path.name for path in pathlib.Path(checkpoint.folder(config.run_dir)).iterdir()}
    assert names == {*map(str, (1, 2, 3, 4, 5, 6, 7, 9, 10)), "5.rolled-back-0"}
    facts = checkpoint.read_facts(config.run_dir, 6)["data"]
    assert facts["left_out_steps"] == [5, 6] and facts["skipped_in_a_row"] == []


def test_the_file_names_the_rows(folder, went_back):
    """What it says of a step is what the loader gives at that step."""
    (record,) = rollback.read(went_back.run_dir)
    assert record["skipped"] == [6, 7] and record["to_step"] == 4
    loader = prepare.prepare(recipe(folder, "other")).loader
    ids = [row_ids for _, row_ids in loader.batches(next_row=0, prefetch=0)]
    for entry in record["steps"]:
        step = entry["step"]
        assert entry["global_rows"] == [(step - 1) * tiny.B, step * tiny.B]
        found = [(loader.names[k], row) for k, row in ids[step - 1].tolist()]
        assert sorted(found) == sorted(
            (name, row) for name, rows in entry["rows"].items() for row in rows
        )
    assert [entry["step"] for entry in record["steps"]] == LEFT_OUT


class KilledError(Exception):
    pass


@pytest.mark.parametrize("when", ["the file was written", "it began again"])
def test_a_kill_during_a_rollback(folder, expected, bad_batches, monkeypatch, when):
    """The second kill comes after step 5 of the second try, which is left out."""
    config = recipe(folder, when)
    with monkeypatch.context() as patch:
        if when == "the file was written":

            def killed(*_):
                raise KilledError

            patch.setattr(checkpoint, "set_aside", killed)
        else:
            put = metrics.Recorder.put

            def put_until_killed(self, step, *given):
                put(self, step, *given)
                if step == 5 and rollback.read(config.run_dir):
                    raise KilledError

            patch.setattr(metrics.Recorder, "put", put_until_killed)
        with pytest.raises(KilledError):
            loop.run(config)
    loop.run(config)
    same(saved(config), expected)
    assert len(rollback.read(config.run_dir)) == 1


def test_a_checkpoint_that_left_out_what_the_file_does_not_say_is_refused(went_back):
    file = pathlib.Path(went_back.run_dir) / rollback.FILE
    text = file.read_text()
    file.unlink()
    with pytest.raises(start.StartError, match=r"step 10, left out the steps \[5, 6, 7\] after a"):
        rollback.settle(went_back.run_dir)
    file.write_text(text)
    rollback.settle(went_back.run_dir)


def test_steps_to_leave_out_that_have_other_rows_now_are_refused(folder, went_back, tmp_path):
    """As after a kill that left step 4 and the file."""
    run = shutil.copytree(went_back.run_dir, tmp_path / "run")
    for step in (5, 6, 7, 9, 10):
        shutil.rmtree(run / "checkpoints" / str(step))
    config = tiny.replace(went_back, run_dir=str(run))
    rollback.check_rows(prepare.prepare(config))
    mixture = tiny.mixture((0, {"prose": 0.2, "code": 0.4, "maths": 0.4}))
    changed = tiny.replace(config, data=tiny.data(folder / "tokens", mixture))
    with pytest.raises(start.StartError, match="leaves out step 5 because of its rows, and with"):
        rollback.check_rows(prepare.prepare(changed))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rollback": None, "max_consecutive_skips": 2}, "Train.rollback is None.*checkpoint: st"),
        (
            {"rollback": tiny.replace(RULE, skip_steps_before=5)},
            r"no checkpoint at or before step 0 to go back to. Last good checkpoint: step 5,",
        ),
    ],
)
def test_a_run_that_cannot_go_back_ends(folder, bad_batches, change, message):
    config = recipe(folder, f"ends {len(change)}", **change)
    with pytest.raises(rollback.DivergedError, match=message) as caught:
        loop.run(config)
    text = str(caught.value)
    assert text.startswith("Steps 6 to 7: 2 updates in a row were skipped, the last as loss or gr")
    assert f"step 5, {checkpoint.folder(config.run_dir)}/5. Rows: " in text
    named = prepare.prepare(config).loader.named(5 * tiny.B, 7 * tiny.B)
    for row in (named[3], named[tiny.B + 5]):
        assert f"{row['source']} row {row['row']} ({row['document']})" in text
    assert checkpoint.steps(config.run_dir) == [1, 2, 3, 4, 5]  # none among the skipped ones


def stopped_before(config, step, monkeypatch):
    """A run that is killed before the row of that update is written."""
    put = metrics.Recorder.put

    def put_until_killed(self, at, *given):
        if at == step:
            raise KilledError
        put(self, at, *given)

    with monkeypatch.context() as patch:
        patch.setattr(metrics.Recorder, "put", put_until_killed)
        with pytest.raises(KilledError):
            loop.run(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("mixture", "To go back to step 3 would undo a change: the mixture is another one since"),
        ("batch", "To go back to step 3 would undo a change: batches have another size since"),
    ],
)
def test_a_run_does_not_go_back_behind_a_change_of_its_rows(
    folder, monkeypatch, bad_batches, change, message
):
    """Resumed at step 5 with another mixture or batch; steps 4 to 7 would be left out."""
    rule = tiny.replace(RULE, skip_steps_before=2)
    config = recipe(folder, change, rollback=rule, steps=2 * STEPS)
    stopped_before(config, 5, monkeypatch)
    assert checkpoint.steps(config.run_dir)[-1] == 4
    mixture = tiny.mixture((0, {"prose": 0.2, "code": 0.4, "maths": 0.4}))
    given = {"mixture": (mixture, {}), "batch": (None, {"batch_rows": tiny.B * 2})}[change]
    changed = tiny.replace(config, data=tiny.data(folder / "tokens", given[0], **given[1]))
    with pytest.raises(rollback.DivergedError, match=message):
        loop.run(changed)
    assert rollback.read(config.run_dir) == []  # nothing was left out
    assert checkpoint.steps(config.run_dir)[-1] == 5  # nor set aside


def test_no_more_rollbacks_than_asked_for(folder, monkeypatch):
    """Bad batches for ever: back once, then the end."""
    faults.corrupt(monkeypatch, dict.fromkeys(range(6, 20), (0, np.nan)))
    config = recipe(folder, "most", rollback=tiny.replace(RULE, most=1))
    with pytest.raises(rollback.DivergedError, match="Steps 8 to 9: .*most = 1 rollbacks were"):
        loop.run(config)
    assert rollback.DivergedError.exit_code == 4
