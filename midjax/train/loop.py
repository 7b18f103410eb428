# SPDX-License-Identifier: Apache-2.0
"""The verb `train`, top to bottom: begin (check, restore), go (update, measure, save)."""

import dataclasses
from typing import Any

import grain
import jax

import midjax
from midjax import checkpoint, compilation, lineage, log
from midjax.batches import loader as loader_lib
from midjax.model import context, sharding
from midjax.trackers import sink
from midjax.trackers import tools as trackers_lib
from midjax.train import announce, goodput, placement, recipe, restore, sessions, speed
from midjax.train import metrics as metrics_lib
from midjax.train import prepare as prepare_lib
from midjax.train import start as start_lib
from midjax.train import step as step_lib
from midjax.train.schedules import curve


@dataclasses.dataclass(frozen=True, kw_only=True)
class Begun:
    """A run whose recipe was checked and whose first state lies on its mesh."""

    watch: goodput.Stopwatch
    prepared: prepare_lib.Prepared
    mesh: jax.sharding.Mesh
    state: step_lib.TrainState


def run(config: recipe.Train) -> dict[str, Any]:
    """`go(begin(config))`."""
    return go(begin(config))


def begin(config: recipe.Train, watch: goodput.Stopwatch | None = None) -> Begun:
    """Checks everything, then builds the first state. Own damaged checkpoints are set aside.

    Args:
      config: the recipe.
      watch: knows when the process began, if it is there for this run; None is now.

    Raises:
      ValueError and its kinds: the recipe cannot run. Nothing has been written, but
        damaged checkpoints of its own may have been renamed.
    """
    if jax.process_count() > 1:
        raise ValueError(
            f"`midjax train` was started in {jax.process_count()} processes and trains in one "
            "process so far. Start it on one host; all of its devices are used."
        )
    watch = watch or goodput.Stopwatch()
    watch.enter("start")  # also where a process begins again
    trackers_lib.check(config.trackers)
    compilation.keep(config.compilation_cache)
    while True:
        try:
            prepared = prepare_lib.prepare(config)
            mesh = sharding.make(config.mesh)
            placement.check(mesh, config.state_memory)
            for rows in set(prepared.timeline.sizes().values()):
                part = (rows // config.parts(rows),)
                sharding.check_divides("A microbatch", part, ("batch",), mesh.shape)
            context.order(config.data.row_tokens, context.shards(mesh.shape))  # or is refused
            state = restore.first_state(prepared, mesh)
            return Begun(watch=watch, prepared=prepared, mesh=mesh, state=state)
        except checkpoint.DamagedError as error:
            if error.run_dir != config.run_dir:
                raise  # another run's: the user chooses an earlier step
            start_lib.set_aside_damaged(error)


def go(begun: Begun) -> dict[str, Any]:
    """Trains to the end; returns the last row of metrics (empty if there was nothing to do).

    The state of `begun` is used up.
    """
    prepared, watch = begun.prepared, begun.watch
    config = prepared.config
    # First: the journal removes the rows that tell when a killed process stopped.
    account = sessions.Account(config.run_dir, watch, first_step=prepared.first_step)
    journal = log.Journal(config.run_dir, step=prepared.first_step, is_writer=True)
    announce.start(prepared, journal)
    row: dict[str, Any] = {}
    if prepared.first_step < prepared.total_steps:
        try:
            with sink.Trackers(config.trackers, _tracked(prepared, journal), journal) as trackers:
                row = _train(begun, account, journal, trackers)
        finally:
            journal.event("goodput", **account.fields(final=True))
            log.say(account.sentence())
    journal.event("end", step=prepared.total_steps)
    return row


def _tracked(prepared: prepare_lib.Prepared, journal: log.Journal) -> trackers_lib.Run:
    return trackers_lib.Run(
        run_dir=prepared.config.run_dir,
        config=dataclasses.asdict(prepared.config),
        first_step=prepared.first_step,
        newest_step=journal.newest_step,
    )


def _train(
    begun: Begun, account: sessions.Account, journal: log.Journal, trackers: sink.Trackers
) -> dict[str, Any]:
    """`_loop`, with what it writes to."""
    config, watch = begun.prepared.config, begun.watch
    recorder = _recorder(begun, journal, trackers)
    try:
        keep = (config.run_dir, config.checkpoint, begun.prepared.phase_ends)
        with checkpoint.Store(*keep) as store, jax.set_mesh(begun.mesh):
            announce.unseen_tokens(begun.prepared, begun.state, journal)
            watch.enter("step")
            journal.event("goodput", **account.fields())
            _loop(begun, account, journal, recorder, store)
            watch.enter("checkpoint")  # waits for what is still being written
    finally:
        account.skipped_updates = recorder.skipped
        watch.enter("other")
    return recorder.last


def _recorder(begun: Begun, journal: log.Journal, trackers: sink.Trackers) -> metrics_lib.Recorder:
    prepared, config = begun.prepared, begun.prepared.config
    return metrics_lib.Recorder(
        config.data,
        prepared.loader.order,
        journal,
        prepared.timeline,
        trackers=trackers,
        speed=speed.Speed(
            config.model, list(begun.mesh.devices.flat), config.device_flops_per_second, journal
        ),
        first_row=prepared.first_row,
        max_consecutive_skips=config.max_consecutive_skips,
        restarted=prepared.origin.kind == "own" and not prepared.position.changed,
    )


def train_steps(begun: Begun) -> dict[int, Any]:
    """Rows of a batch -> the jitted step: a state, which is used up, and a batch on the mesh.

    A batch of another size is another program.
    """
    prepared, config = begun.prepared, begun.prepared.config
    replicated = jax.sharding.NamedSharding(begun.mesh, sharding.spec(()))
    shardings = (jax.tree.map(lambda x: x.sharding, begun.state), replicated)

    def jitted(rows: int) -> Any:
        made = step_lib.make_train_step(
            config.model,
            config.loss,
            prepared.optimizer,
            curve.learning_rate(prepared.schedule),
            sources=len(prepared.loader.names),
            microbatches=config.parts(rows),
        )
        near = placement.near(made, shardings[0])
        return jax.jit(near, donate_argnums=0, out_shardings=shardings)

    return {rows: jitted(rows) for rows in set(prepared.timeline.sizes().values())}


def _loop(
    begun: Begun,
    account: sessions.Account,
    journal: log.Journal,
    recorder: metrics_lib.Recorder,
    store: checkpoint.Store,
) -> None:
    """The loop itself. Metrics of update n are read after update n + 1 was dispatched."""
    prepared, state, watch = begun.prepared, begun.state, begun.watch
    config, timeline = prepared.config, prepared.timeline
    jitted = train_steps(begun)
    batches = prepared.loader.batches(
        next_row=prepared.first_row, first_step=prepared.first_step + 1, batch_rows=timeline.sizes()
    )
    compiled: set[int] = set()
    place = sharding.batch(begun.mesh)
    last = prepared.total_steps
    with log.Progress(
        config.run_dir, timeline.tokens(last), done_tokens=timeline.first_tokens
    ) as progress:
        for step in range(prepared.first_step + 1, last + 1):
            with watch.measure("data_wait") as wait:
                batch, _ = next(batches)
                if recorder.device_is_busy():
                    wait.bucket = "step"  # it cost nothing
            arranged = context.arrange(batch, begun.mesh.shape)
            rows = timeline.batch_rows(step)
            with watch.measure("step" if rows in compiled else "compile"):
                state, metrics = jitted[rows](state, loader_lib.place(arranged, place))
            compiled.add(rows)
            recorder.put(step, metrics, batch)
            account.step = step
            progress.advance(rows * timeline.row_tokens, recorder.note)
            if step == prepared.first_step + 2:  # while the devices are busy
                with watch.measure("compile"):
                    store.compile(params=state.params, opt_state=restore.saved_parts(state))
            due = step % config.checkpoint.every_steps == 0 or step in prepared.phase_ends
            if due or step == last:
                recorder.flush()  # a checkpoint never has less behind it than its metrics say
                with watch.measure("checkpoint"):
                    _save(prepared, store, step, state)
                watch.saved(step)
                account.skipped_updates = recorder.skipped
                journal.event("checkpoint", step=step)
                journal.event("goodput", **account.fields())
    batches.close()


def _save(
    prepared: prepare_lib.Prepared,
    store: checkpoint.Store,
    step: int,
    state: step_lib.TrainState,
) -> None:
    parts = restore.saved_parts(state)
    count = int(state.schedule_count)
    data = _data_item(prepared, step)
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
        "schedule": prepared.schedule.facts() | {"factor": prepared.schedule.factor(count)},
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
    store.save(step, params=state.params, opt_state=parts, data=data, facts=facts)


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
