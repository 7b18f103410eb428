# SPDX-License-Identifier: Apache-2.0
"""What a run does when too many updates in a row were skipped: it goes back, or it ends.

StreakError --answer--> <run>/skipped_steps.json, later checkpoints set aside; then as after a kill:
                        the newest checkpoint is resumed, and the steps in that file are left out
                    --> DivergedError, exit code 4, with the last good checkpoint

A left-out step changes no array, but it counts: step, schedule, rows drawn and batches go on as if
it had been taken. So the run ends with the arrays of one that left these steps out from the start.
The file is written before anything else is changed: a run that is killed in between finds the
checkpoints that disagree with it, and sets them aside first.
"""

import time
from typing import Any

from midjax import checkpoint, files, log
from midjax.train import prepare, skips, timeline
from midjax.train import start as start_lib

FILE = "skipped_steps.json"
# Rows in an error message; events.jsonl has them all.
_SHOWN_ROWS = 6


class DivergedError(ValueError):
    """The run cannot go on: too many updates in a row were skipped."""

    exit_code = 4


def read(run_dir: str) -> list[dict[str, Any]]:
    """The rollbacks of a run, oldest first; see `_record`."""
    file = files.path(run_dir) / FILE
    return list(files.read_json(file)["rollbacks"]) if file.exists() else []


def left_out(run_dir: str, *, up_to: int | None = None) -> list[int]:
    """Steps that the run leaves out, rising.

    Args:
      run_dir: of the run.
      up_to: last step that is of interest.
    """
    found = {entry["step"] for record in read(run_dir) for entry in record["steps"]}
    return sorted(step for step in found if up_to is None or step <= up_to)


def settle(run_dir: str) -> None:
    """Sets aside checkpoints of the run that took steps which it was to leave out.

    That is what is left to do where a rollback was interrupted.

    Raises:
      start.StartError: the newest one left out steps that the file does not name.
    """
    while steps := checkpoint.steps(run_dir):
        newest = steps[-1]
        wanted = left_out(run_dir, up_to=newest)
        theirs = checkpoint.read_facts(run_dir, newest)["data"].get("left_out_steps", [])
        if theirs == wanted:
            return
        if extra := sorted(set(theirs) - set(wanted)):
            raise start_lib.StartError(
                f"{run_dir}, step {newest}, left out the steps {extra} after a rollback, and "
                f"{FILE} in that folder does not name them. Put the file back."
            )
        moved = checkpoint.set_aside(run_dir, newest, "rolled-back")
        log.say(f"checkpoint {newest} took steps that are left out now; moved to {moved}")


def check_rows(prepared: prepare.Prepared) -> None:
    """The steps that a run is still to leave out have the rows that they had.

    Raises:
      start.StartError: the mixture or the batch size changed since.
    """
    run_dir = prepared.config.run_dir
    for record in read(run_dir):
        for entry in record["steps"]:
            step, last = entry["step"], prepared.loader.order.total_rows
            if step <= prepared.first_step or prepared.next_row(step) > last:
                continue  # behind it, or beyond the end of a run that is shorter now
            if entry != _entry(prepared, step):
                raise start_lib.StartError(
                    f"{run_dir}/{FILE} leaves out step {step} because of its rows, and with this "
                    "mixture and batch size the step has others. Undo the change, or take the "
                    "steps that are still to come out of the file."
                )


def answer(prepared: prepare.Prepared, streak: skips.StreakError) -> None:
    """Goes back to an earlier checkpoint; the caller then begins again.

    Args:
      prepared: the run. Its saves are finished.
      streak: what happened.

    Raises:
      DivergedError: the recipe asks for no rollback, or it cannot be done.
    """
    config = prepared.config
    rule, run_dir, first = config.rollback, config.run_dir, streak.steps[0]
    if rule is None:
        raise _diverged(run_dir, streak, "Train.rollback is None.")
    before = read(run_dir)
    if len(before) >= rule.most:
        why = f"Rollback.most = {rule.most} rollbacks were made before."
        raise _diverged(run_dir, streak, why)
    from_step = first - rule.skip_steps_before
    target = last_good(run_dir, from_step - 1)
    if target is None:
        why = f"There is no checkpoint at or before step {from_step - 1} to go back to."
        raise _diverged(run_dir, streak, why)
    if other := _another_run(prepared, target):
        why = f"To go back to step {target} would undo a change: {other}."
        raise _diverged(run_dir, streak, why)
    steps = range(from_step, streak.steps[-1] + 1)
    record = {
        "time": round(time.time(), 3),
        "to_step": target,
        "skipped": list(streak.steps),
        "why": streak.why,
        "steps": [_entry(prepared, step) for step in steps],
    }
    files.write_json(files.path(run_dir) / FILE, {"rollbacks": [*before, record]})
    for later in reversed(checkpoint.steps(run_dir)):
        if later > target:
            checkpoint.set_aside(run_dir, later, "rolled-back")
    # Whoever begins again removes the rows that will be computed again.
    with log.Journal(run_dir, step=prepared.total_steps, is_writer=True) as journal:
        journal.event(
            "rollback",
            step=streak.steps[-1],
            to_step=target,
            left_out=[steps[0], steps[-1]],
            why=streak.why,
            number=len(before) + 1,
        )
    log.say(
        f"rollback {len(before) + 1} of at most {rule.most}: steps {list(streak.steps)} were "
        f"skipped ({streak.why}). Going back to step {target}; steps {steps[0]} to {steps[-1]} "
        f"are left out from now on, see {run_dir}/{FILE}"
    )


def _another_run(prepared: prepare.Prepared, target: int) -> str | None:
    """What a resume changed after step `target`, so that steps have other rows from there on."""
    changed_at = prepared.mixtures[-1]["step"]
    if target < changed_at:
        return f"the mixture is another one since step {changed_at}"
    config = prepared.config
    there = start_lib.own(config.run_dir, target)
    line = timeline.of(config.data, config.train_tokens, there)
    return None if line.clock == prepared.timeline.clock else "batches have another size since"


def last_good(run_dir: str, last_step: int) -> int | None:
    """Newest checkpoint at or before a step that was saved while no update was being skipped."""
    for step in reversed(checkpoint.steps(run_dir)):
        if step > last_step:
            continue
        try:
            data = checkpoint.read_facts(run_dir, step)["data"]
        except checkpoint.CheckpointError as error:
            log.say(f"checkpoint {step} cannot be gone back to: {error}")
            continue
        if not data.get("skipped_in_a_row"):
            return step
    return None


def _entry(prepared: prepare.Prepared, step: int) -> dict[str, Any]:
    """One left-out step: its global rows [begin, end), and which rows of each source they are."""
    begin, end = prepared.rows_of(step)
    names = prepared.loader.names
    by_source: dict[str, list[int]] = {}
    for source, row in prepared.loader.rows(begin, end).ids.tolist():
        by_source.setdefault(names[source], []).append(row)
    return {"step": step, "global_rows": [begin, end], "rows": by_source}


def _diverged(run_dir: str, streak: skips.StreakError, why: str) -> DivergedError:
    steps, named = streak.steps, streak.rows
    good = last_good(run_dir, steps[0] - 1)
    where = (
        f"step {good}, {checkpoint.folder(run_dir)}/{good}"
        if good is not None
        else "none, as none was saved before them"
    )
    first = [f"{r['source']} row {r['row']} ({r['document']})" for r in named[:_SHOWN_ROWS]]
    more = f" and {len(named) - _SHOWN_ROWS} more" if len(named) > _SHOWN_ROWS else ""
    return DivergedError(
        f"Steps {steps[0]} to {steps[-1]}: {len(steps)} updates in a row were skipped, the last as "
        f"{streak.why}. {why} Last good checkpoint: {where}. Rows: {', '.join(first)}{more}, all "
        f"in {run_dir}/events.jsonl. Look at the learning rate and at these rows."
    )
