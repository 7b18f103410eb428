# SPDX-License-Identifier: Apache-2.0
"""What a run says before its first update, on the terminal and as events."""

import dataclasses

import jax

from midjax import lineage, log, units
from midjax.mixture import plan as plan_lib
from midjax.model import transformer
from midjax.train import compiler_flags, unseen
from midjax.train import prepare as prepare_lib
from midjax.train import start as start_lib
from midjax.train import step as step_lib


def start(prepared: prepare_lib.Prepared, journal: log.Journal) -> None:
    """What the run starts from and will read; what of its documents is in no row."""
    config, origin = prepared.config, prepared.origin
    parts = {p: "keep" if p in origin.parts else "reset" for p in start_lib.PARTS}
    where = f" from {origin.run or origin.huggingface}" if origin.kind != "fresh" else ""
    step = f", step {origin.step}" if origin.step is not None else ""
    log.say(
        f"start: {origin.kind}{where}{step}; "
        f"{units.human(transformer.parameter_count(config.model))} parameters, "
        f"{prepared.total_steps} steps x {_batches(prepared)} tokens"
    )
    if origin.kind not in ("own", "fresh"):
        log.say("  " + "  ".join(f"{part} {what}" for part, what in parts.items()))
    for sentence in prepared.taken.told():
        log.say(f"  {sentence}")
    _ancestors(origin, journal)
    _compiler_flags(prepared, journal)
    for sentence in config.data.mixture.unnormalised():
        log.say(f"  {sentence}")
        journal.event("weights_normalised", what=sentence)
    _mixture(prepared, journal)
    for name, plan in prepared.opened.plans.items():
        for reason, documents in plan.dropped.items():
            log.say(f"  {name}: {documents} documents are in no row: {reason}")
        if plan.truncated_tokens:
            tokens = units.human(plan.truncated_tokens)
            log.say(f"  {name}: {tokens} tokens of documents longer than a row are in no row")
    journal.event(
        "start",
        kind=origin.kind,
        **{"from": origin.run or origin.huggingface},
        from_step=origin.step,
        from_hash=origin.manifest.get("seal"),
        arrays=prepared.taken.told(),
        lr_jump=prepared.lr_jump,
        parts=parts,
        lr_in_force=origin.lr_in_force,
        first_lr=prepared.lr(prepared.schedule_count),
        norms=origin.manifest.get("norms"),
        first_row=prepared.first_row,
        packing={
            name: {
                "rows": len(plan),
                "padding": plan.padding,
                "truncated_tokens": plan.truncated_tokens,
                "dropped": plan.dropped,
            }
            for name, plan in prepared.opened.plans.items()
        },
        plan=[dataclasses.asdict(row) for row in plan_lib.rows(prepared.loader.order)],
    )


def _batches(prepared: prepare_lib.Prepared) -> str:
    """Tokens of the batches still to come, size after size."""
    T = prepared.timeline.row_tokens
    return " -> ".join(units.human(rows * T) for rows in prepared.timeline.sizes().values())


def _ancestors(origin: start_lib.Origin, journal: log.Journal) -> None:
    """Where the folder of an earlier stage holds another checkpoint by now."""
    for stage in origin.ancestors:
        if "run" in stage and lineage.where(stage) == "another":
            what = f"{stage['run']}, step {stage['step']}"
            log.say(f"warning: {what}, is not the checkpoint that this run comes from any more")
            journal.event("ancestor_changed", what=what, hash=stage["hash"])


def _compiler_flags(prepared: prepare_lib.Prepared, journal: log.Journal) -> None:
    dense = prepared.config.model.experts is None
    sentence = compiler_flags.lacking(jax.devices()[0].device_kind, dense=dense)
    if sentence is not None:
        log.say(f"warning: {sentence}")
        journal.event("compiler_flags_missing", what=sentence)


def _mixture(prepared: prepare_lib.Prepared, journal: log.Journal) -> None:
    """What the run will have drawn of each source, and a mixture that changed, said loudly."""
    mixtures, order = prepared.mixtures, prepared.loader.order
    if prepared.position.changed:
        log.say(
            f"the mixture CHANGED: a new stage from step {prepared.first_step + 1} on (global row "
            f"{prepared.first_row}); what was read stays, and each source goes on where it was"
        )
        old, new = mixtures[-2:]
        journal.event(
            "mixture_changed",
            step=prepared.first_step,
            first_row=prepared.first_row,
            old=old["mixture"],
            new=new["mixture"],
            drawn_rows=new["drawn_rows"],
        )
    for row in plan_lib.totals(order):
        log.say(
            f"  {row.source}: {units.human(row.tokens)} tokens in all, {row.share:.1%}, "
            f"{row.epochs:.2f} epochs"
            + (f", {units.human(row.repeats)} read before" if row.repeats else "")
        )


def unseen_tokens(
    prepared: prepare_lib.Prepared, state: step_lib.TrainState, journal: log.Journal
) -> None:
    """Where the parameters come from elsewhere, and the data has tokens that are new to them."""
    if prepared.origin.kind in ("own", "fresh"):
        return
    for sentence in unseen.warnings(
        state,
        prepared.opened.special_tokens(),
        tied_head=prepared.config.model.tied_head,
        moments_kept="moments" in prepared.origin.parts,
    ):
        log.say(f"warning: {sentence}")
        journal.event("unseen_token", what=sentence)
