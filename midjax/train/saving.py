# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint of a run holds: arrays, the position in the data, and the facts about both."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

import midjax
from midjax import checkpoint, lineage
from midjax.train import guard as guard_lib
from midjax.train import prepare as prepare_lib
from midjax.train import restore, rollback
from midjax.train import start as start_lib
from midjax.train import step as step_lib


def save(
    prepared: prepare_lib.Prepared,
    store: checkpoint.Store,
    step: int,
    state: step_lib.TrainState,
    skipped_in_a_row: Sequence[int],
    settle: Callable[[], None],
) -> None:
    """Starts saving the state after update `step`, with all that a run from it must know.

    Args:
      prepared, store: of the run.
      step, state: after the update.
      skipped_in_a_row: the newest updates, if they were skipped.
      settle: see `checkpoint.Store.save`.
    """
    parts = restore.saved_parts(state)
    count = int(state.schedule_count)
    data = _data_item(prepared, step) | {
        "skipped_in_a_row": list(skipped_in_a_row),
        "left_out_steps": rollback.left_out(prepared.config.run_dir, up_to=step),
    }
    import grain  # here: it is there by now, and at the top a run's start would wait for it

    facts = {
        "step": step,
        "tokens": prepared.timeline.tokens(step),
        "adam_count": int(parts["adam_count"]),
        "schedule_count": count,
        # "first" and "last" were used by the run's first and newest update, "next" would be used by
        # another one.
        "lr": {
            "first": _first_lr(prepared),
            "last": prepared.lr(max(count - 1, 0)),
            "next": prepared.lr(count),
            "jump": prepared.lr_jump,
        },
        "peak_lr": prepared.schedule.peak_lr,
        "schedule": prepared.schedule.facts(),
        "model": dataclasses.asdict(prepared.config.model),
        "tokenizer_hash": prepared.opened.tokenizer_hash,
        "mixtures": prepared.mixtures,
        "sources": _drawn(prepared, step),
        "versions": {"jax": jax.__version__, "grain": grain.__version__},
    }
    run_dir = prepared.config.run_dir
    recipe = lineage.recipe_of(run_dir)
    own = lineage.stage(run_dir, step, data=data, facts=facts, recipe=recipe)
    facts["lineage"] = lineage.extended(prepared.origin.ancestors, own)
    store.save(step, **items(state), data=data, facts=facts, settle=settle)


def items(state: step_lib.TrainState) -> dict[str, Any]:
    """The arrays of a checkpoint, item by item."""
    guard = None if state.guard is None else guard_lib.to_item(state.guard)
    return {
        "params": state.params,
        "opt_state": restore.saved_parts(state),
        "guard": guard,
        "ema": state.ema,
    }


def _first_lr(prepared: prepare_lib.Prepared) -> float | None:
    """Learning rate of the run's first update; None where an older checkpoint does not tell it."""
    if prepared.origin.kind == "own":
        return prepared.origin.manifest["lr"].get("first")
    return prepared.lr(prepared.schedule_count)


def _drawn(prepared: prepare_lib.Prepared, step: int) -> dict[str, dict[str, float | None]]:
    """Source -> tokens that the run drew of it, and epochs with those before the run."""
    order, row = prepared.loader.order, prepared.next_row(step)
    epochs = dict(zip(order.names, order.epochs(row).tolist(), strict=True))
    return {
        name: {"tokens": rows * order.row_tokens, "epochs": epochs.get(name)}
        for name, rows in order.drawn(row).items()
    }


def _data_item(prepared: prepare_lib.Prepared, step: int) -> dict[str, Any]:
    """The position in the data after an update, and what must agree for it to be kept."""
    data, order = prepared.config.data, prepared.loader.order
    next_row = prepared.next_row(step)
    before, drawn = prepared.origin.data, order.drawn(next_row)
    # Sources that this mixture leaves out keep their place, for a later run that has them.
    base = dict.fromkeys(drawn, 0) | dict(prepared.position.base_rows)
    last_rows = prepared.loader.last_rows(next_row)
    return {
        "next_row": next_row,
        "row_tokens": data.row_tokens,
        "batch_rows": prepared.timeline.batch_rows(step),
        "base_rows": base,
        "drawn_rows": {name: rows + drawn.get(name, 0) for name, rows in base.items()},
        # What this run began with: the rest of `drawn_rows` is its own.
        "begun_rows": _begun_rows(prepared.origin),
        "contents": {n: before["contents"][n] for n in base if n in before.get("contents", {})}
        | prepared.opened.contents(),
        "mixtures": prepared.mixtures,
        "last_rows": last_rows,
        "last_numbers": order.rows(next_row - len(last_rows), next_row)[1].tolist(),
        "seed": data.mixture.seed,
        "recipe_seed": prepared.recipe_seed,
        "midjax": midjax.__version__,
    }


def _begun_rows(origin: start_lib.Origin) -> dict[str, int]:
    """Source -> rows that earlier runs drew, where this one goes on from their place."""
    if origin.kind == "own":
        return dict(origin.data["begun_rows"])
    return dict(origin.data["drawn_rows"]) if "data" in origin.parts and origin.data else {}
