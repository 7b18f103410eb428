# SPDX-License-Identifier: Apache-2.0
"""Decays appended to a finished run, against one run that had the whole recipe from the beginning.

WSD-S in three goes: 3 updates of warm-up and 5 held; 4 of decay; 2 held at the stable rate again,
without a warm-up, and 2 of decay.
"""

import json
import os
import pathlib

import pytest
import schedules
import tiny_run as tiny
from quick_compilation import thorough_compilation  # noqa: F401 (a fixture)

from midjax import __main__ as cli
from midjax import checkpoint, config
from midjax.train import extend, loop, prepare, start
from midjax.train.schedules import phases

UP, STABLE = schedules.move(0.0, 1e-2, steps=3, name="up"), schedules.hold(1e-2, steps=5)
DOWN = schedules.move("previous", 0.0, steps=4, name="down")
AGAIN = schedules.hold(1e-2, steps=2, name="again")
LAST = schedules.move("previous", 0.0, "one_minus_sqrt", steps=2, name="last")
ALL = (UP, STABLE, DOWN, AGAIN, LAST)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, thorough_compilation):  # noqa: F811
    """As the other tests' of this folder, by a program like those that go on from it here."""
    folder = tmp_path_factory.mktemp("finished")
    tiny.write_tokens(folder / "tokens")
    loop.run(tiny.train(folder))
    return folder


def train(folder, name, steps, *parts, **kwargs):
    schedule = phases.Phases(phases=parts) if parts else tiny.wsd()
    return tiny.train(folder, name, steps=steps, schedule=schedule, **kwargs)


def through_the_verb(root, capsys) -> tuple[int, str, str]:
    folder = f"{root.run_dir}-recipe"
    config.save(root, folder)
    code = cli.main(["train", f"--gin_file={folder}/config.gin"])
    said = capsys.readouterr()
    return code, said.out, said.err


def end(run_dir, step):
    facts = checkpoint.read_facts(run_dir, step)
    return facts["manifest"]["digests"], facts["data"]


def events(run_dir, name):
    lines = (pathlib.Path(run_dir) / "events.jsonl").open()
    return [e for e in map(json.loads, lines) if e["event"] == name]


def begun(source):
    """The finished run of 8 updates, a plain `Schedule`, with its configuration saved."""
    root = tiny.train(source)
    config.save(root, root.run_dir)
    return root


def test_appended_decays_end_as_one_run_that_had_them_from_the_beginning(source, capsys):
    keep = checkpoint.Keep(every_steps=4, last=1, forever_every_steps=None, at_phase_ends=True)
    straight = train(source, "straight", 16, *ALL, checkpoint=keep)
    loop.run(straight)
    # Saved for good before and after each decay; of the others only the newest is left.
    assert checkpoint.steps(straight.run_dir) == [3, 8, 12, 14, 16]

    first = begun(source)
    old = (source / "run" / "config.json").read_bytes()
    code, said, _ = through_the_verb(train(source, "run", 12, UP, STABLE, DOWN), capsys)
    assert code == 0 and "the run is EXTENDED at step 8: 1024 -> 1536 tokens" in said
    assert end(first.run_dir, 12) == end(straight.run_dir, 12)
    assert (source / "run" / "config.8.json").read_bytes() == old
    (event,) = events(first.run_dir, "run_extended")
    assert (event["step"], event["old_tokens"], event["new_tokens"]) == (8, 1024, 1536)
    assert event["next_lr"] == 1e-2
    assert config.load_run(first.run_dir, "train").train_tokens == 1536

    # Back to the stable rate, which has to be asked for.
    longest = train(source, "run", 16, *ALL)
    code, _, error = through_the_verb(longest, capsys)
    assert code == 2 and "Learning rate jump" in error and "Start.allow_lr_jump" in error
    jump = tiny.begin(allow_lr_jump="a second stable phase")
    code, said, _ = through_the_verb(train(source, "run", 16, *ALL, start=jump), capsys)
    assert code == 0 and "learning rate jump, as asked for" in said
    assert end(first.run_dir, 16) == end(straight.run_dir, 16)
    rates = checkpoint.read_facts(first.run_dir, 16)["manifest"]["lr"]
    assert rates["jump"]["reason"] == "a second stable phase" and rates["jump"]["step"] == 12
    assert (rates["jump"]["from"], rates["jump"]["to"]) == (0.0, 1e-2)

    # The same from the decayed checkpoint in a new folder.
    on = tiny.begin("resume", run=straight.run_dir, step=12, allow_lr_jump="a second stable phase")
    branched = train(source, "on", 16, *ALL, start=on)
    loop.run(branched)
    assert end(branched.run_dir, 16)[0] == end(straight.run_dir, 16)[0]


@pytest.mark.parametrize("item", ["manifest", "params"])
def test_an_extension_of_a_run_whose_newest_checkpoint_is_damaged(source, capsys, item):
    """Seen before the schedules are compared, or when arrays are read: it goes on from step 4."""
    straight = train(source, "straight", 12, UP, STABLE, DOWN)
    loop.run(straight)
    first = begun(source)
    checkpoints = pathlib.Path(checkpoint.folder(first.run_dir))
    for file in (checkpoints / "8" / item).rglob("*"):
        if file.is_file():
            os.truncate(file, 10)
    code, said, _ = through_the_verb(train(source, "run", 12, UP, STABLE, DOWN), capsys)
    assert code == 0 and "the run is EXTENDED at step 4: 1024 -> 1536 tokens" in said
    assert (checkpoints / "8.damaged-0").is_dir()
    assert [event["step"] for event in events(first.run_dir, "run_extended")] == [4]
    assert end(first.run_dir, 12) == end(straight.run_dir, 12)


@pytest.mark.parametrize(
    ("steps", "parts", "message"),
    [
        (7, (), "Train.train_tokens was 1024 and is 896"),
        (8, (UP, schedules.hold(1e-2, steps=3), schedules.move("previous", 0.0, steps=2)),
         "was 1024 and is 1024. Raise it"),
        (12, (schedules.move(0.0, 1e-2, steps=4), schedules.hold(1e-2)),
         "update 2 was done at the rate 0.00333333 and would have had 0.0025"),
        (12, (UP, schedules.hold(1e-2, steps=4), schedules.move("previous", 0.0)),
         "Learning rate jump: .* is 0.008"),
        (12, (UP, schedules.hold(1e-2, steps=3), schedules.move("previous", 0.0)),
         "update 8 was done at the rate 0.01 and would have had 0.008"),
        (12, (UP, STABLE, schedules.hold(5e-3, steps=4)), "Learning rate jump: .* is 0.005"),
        (12, (UP, STABLE, schedules.move("previous", 0.0, steps=9)), "do not fit into the run's"),
    ],
)  # fmt: skip
def test_what_changes_an_update_that_was_done_is_refused(source, steps, parts, message):
    old, new = begun(source), train(source, "run", steps, *parts)
    assert extend.asked(config.to_json(old), config.to_json(new))
    with pytest.raises(ValueError, match=message):
        extend.check(old, new)


def test_a_decay_that_went_to_the_old_end_cannot_be_stretched(source, capsys):
    old = tiny.train(source, schedule=tiny.wsd(decay_steps=2))
    new = tiny.train(source, steps=12, schedule=tiny.wsd(decay_steps=6))
    with pytest.raises(start.StartError, match="update 8 was done at the rate 0.005"):
        extend.check(old, new)
    config.save(old, old.run_dir)
    code, _, error = through_the_verb(new, capsys)
    assert code == 2 and "cannot be extended by this schedule" in error
    assert events(old.run_dir, "run_extended") == []
    assert config.load_run(old.run_dir, "train") == old


def test_nothing_else_may_change_with_the_end(source, capsys):
    begun(source)
    new = train(source, "run", 12, UP, STABLE, DOWN, optimizer=tiny.adamw(b2=0.99))
    code, _, error = through_the_verb(new, capsys)
    assert code == 2 and "optimizer.b2: 0.95 -> 0.99" in error and "schedule" not in error
    same = config.to_json(tiny.train(source, optimizer=tiny.adamw(b2=0.99)))
    assert not extend.asked(config.to_json(tiny.train(source)), same)


def test_a_longer_run_without_another_schedule_holds_its_rate_on(source):
    assert extend.check(begun(source), tiny.train(source, steps=12)).next_lr == 1e-2


def test_a_mixture_that_depends_on_the_length_of_the_run_is_a_new_stage(source):
    """Half of 8 updates is not half of 16; stages that begin after tokens stay where they are."""
    longer = prepare.mix(tiny.train(source, steps=16))
    assert not longer.position.changed and longer.loader.order.total_rows == 16 * tiny.B
    mix = tiny.mixture((0, {"prose": 1.0}), (1, {"code": 0.5, "prose": 0.5}))
    second = tiny.replace(mix.stages[1], start_tokens=None, start_share=0.5)
    data = tiny.data(source / "tokens", tiny.replace(mix, stages=(mix.stages[0], second)))
    loop.run(tiny.train(source, "shares", data=data))
    longer = prepare.mix(tiny.train(source, "shares", steps=16, data=data))
    assert longer.position.changed
    assert (longer.first_row, longer.loader.order.total_rows) == (8 * tiny.B, 16 * tiny.B)
