# SPDX-License-Identifier: Apache-2.0
"""The verb `train`, top to bottom: begin (check, restore), go (update, measure, save)."""

import contextlib
import dataclasses
import functools
from typing import Any

import jax

from midjax import checkpoint, compilation, log
from midjax.batches import ahead, readers
from midjax.batches import batch as batch_lib
from midjax.batches import loader as loader_lib
from midjax.distributed import group
from midjax.model import context, sharding, transformer
from midjax.trackers import sink
from midjax.trackers import tools as trackers_lib
from midjax.train import (
    announce,
    compiler_flags,
    evaluate,
    goodput,
    preemption,
    program,
    restore,
    rollback,
    saving,
    sessions,
    skips,
)
from midjax.train import early as early_lib
from midjax.train import metrics as metrics_lib
from midjax.train import prepare as prepare_lib
from midjax.train import recipe as recipe_lib
from midjax.train import speed as speed_lib
from midjax.train import start as start_lib
from midjax.train import step as step_lib
from midjax.train.schedules import curve


@dataclasses.dataclass(frozen=True, kw_only=True)
class Begun:
    """A run whose recipe was checked, whose first state is on its mesh, and whose step compiles."""

    watch: goodput.Stopwatch
    recipe: recipe_lib.Train
    prepared: prepare_lib.Prepared
    mesh: jax.sharding.Mesh
    evaluator: evaluate.Evaluator
    state: step_lib.TrainState
    early: early_lib.Early


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Services:
    """What the loop is stopped by and writes to."""

    stop: preemption.Stop
    account: sessions.Account
    journal: log.Journal
    recorder: metrics_lib.Recorder
    store: checkpoint.Store


def run(config: recipe_lib.Train) -> dict[str, Any]:
    """`go(begin(config))`."""
    return go(begin(config))


def begin(config: recipe_lib.Train, watch: goodput.Stopwatch | None = None) -> Begun:
    """Checks everything, then builds the first state. Own damaged checkpoints are set aside.

    Args:
      config: the recipe.
      watch: knows when the process began, if it is there for this run; None is now.

    Raises:
      ValueError and its kinds: the recipe cannot run. Nothing has been written, but
        damaged checkpoints of its own may have been renamed.
    """
    if jax.process_count() != group.count():
        raise ValueError(
            f"JAX sees {jax.process_count()} processes, and {group.count()} met. `midjax train` "
            "connects them itself, see `midjax train --help`."
        )
    watch = watch or goodput.Stopwatch()
    watch.enter("start")  # also where a process begins again
    compilation.keep(config.compilation_cache)
    while True:
        try:
            group.first("settling rollbacks", rollback.settle, config.run_dir)
            prepared, mesh, evaluator = group.together(
                "checking the recipe", _prepared, config, known=(checkpoint.DamagedError,)
            )
            group.same("What the run starts from", facts(prepared))
            early = early_lib.Early(prepared, mesh)
            ahead.load()
            try:
                state = restore.first_state(prepared, mesh)
            except checkpoint.DamagedError:
                early.join()  # before another begins
                raise
            return Begun(
                watch=watch,
                recipe=config,
                prepared=prepared,
                mesh=mesh,
                evaluator=evaluator,
                state=state,
                early=early,
            )
        except checkpoint.DamagedError as error:
            if error.run_dir != config.run_dir:
                raise  # another run's: the user chooses an earlier step
            damaged = error.with_traceback(None)  # whose frames hold arrays
        group.first("setting aside", start_lib.set_aside_damaged, damaged)


def _prepared(
    config: recipe_lib.Train,
) -> tuple[prepare_lib.Prepared, jax.sharding.Mesh, evaluate.Evaluator]:
    checkpoint.check_place(config.run_dir)
    if group.is_first():
        trackers_lib.check(config.trackers)
    prepared = prepare_lib.prepare(config)
    rollback.check_rows(prepared)
    mesh = sharding.make(config.mesh)
    compiler_flags.check(mesh.devices.flat[0].device_kind)
    program.check(config, mesh, set(prepared.timeline.sizes().values()))
    return prepared, mesh, evaluate.Evaluator(prepared, mesh)


def facts(prepared: prepare_lib.Prepared) -> dict[str, Any]:
    """What all processes must have found on their disks alike, or their updates would differ."""
    return {
        "checkpoint": [prepared.origin.run, prepared.origin.step],
        "its hash": prepared.origin.manifest.get("seal"),
        "Hugging Face folder": prepared.origin.huggingface,
        "first step": prepared.first_step,
        "first row": prepared.first_row,
        "steps": prepared.total_steps,
        "mixture": prepared.loader.order.fingerprint(),
        "tokens": prepared.opened.contents(),
        "tokenizer": prepared.opened.tokenizer_hash,
        "steps left out": rollback.left_out(prepared.config.run_dir),
    }


def go(begun: Begun) -> dict[str, Any]:
    """Trains to the end; returns the last row of metrics (empty if there was nothing to do).

    The state of `begun` is used up. A run that goes back after skipped updates begins again here,
    as another process would.

    Raises:
      rollback.DivergedError: too many updates in a row were skipped.
      preemption.PreemptedError: the process got SIGTERM; what was done is saved.
      compare.ForgottenError: an evaluation failed one of its gates; what was done is saved.
    """
    with preemption.Stop() as stop:
        while True:
            try:
                return _once(begun, stop)
            except skips.StreakError as error:
                streak = error.with_traceback(None)  # whose frames hold arrays
            group.first("going back", rollback.answer, begun.prepared, streak)
            begun = begin(begun.recipe, begun.watch)


def _once(begun: Begun, stop: preemption.Stop) -> dict[str, Any]:
    prepared, watch = begun.prepared, begun.watch
    config = prepared.config
    # First: the journal removes the rows that tell when a killed process stopped.
    account = sessions.Account(config.run_dir, watch, first_step=prepared.first_step)
    journal = log.Journal(config.run_dir, step=prepared.first_step, is_writer=group.is_first())
    row: dict[str, Any] = {}
    with journal:
        begun.evaluator.settle()
        announce.start(prepared, journal)
        if prepared.first_step < prepared.total_steps:
            told = _tracked(prepared, journal)
            try:
                with sink.Trackers(_trackers(config), told, journal) as trackers:
                    row = _train(begun, stop, account, journal, trackers)
            finally:
                journal.event("goodput", **account.fields(final=True))
                log.say(account.sentence())
        else:  # it may have been stopped between its last update and what was to follow
            step = prepared.first_step
            try:
                with jax.set_mesh(begun.mesh):
                    begun.evaluator.begin(begun.state.params, journal, stop.interrupt)
            except preemption.CutShortError:
                raise preemption.end(config.run_dir, journal, step, step) from None
            begun.evaluator.end_if_failed(prepared.first_step, journal, lambda: None)
        journal.event("end", step=prepared.total_steps)
    return row


def _trackers(config: recipe_lib.Train) -> tuple[trackers_lib.Tool, ...]:
    return config.trackers if group.is_first() else ()


def _tracked(prepared: prepare_lib.Prepared, journal: log.Journal) -> trackers_lib.Run:
    return trackers_lib.Run(
        run_dir=prepared.config.run_dir,
        config=dataclasses.asdict(prepared.config),
        first_step=prepared.first_step,
        newest_step=journal.newest_step,
    )


def _train(
    begun: Begun,
    stop: preemption.Stop,
    account: sessions.Account,
    journal: log.Journal,
    trackers: sink.Trackers,
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
            _loop(
                begun,
                _Services(
                    stop=stop, account=account, journal=journal, recorder=recorder, store=store
                ),
            )
            watch.enter("checkpoint")  # waits for what is still being written
    finally:
        account.skipped_updates = recorder.watch.count
        watch.enter("other")
        # What a run that goes back compiles may not have room beside these programs; and to free
        # them takes a while that counts too.
        begun.early.steps.clear()
    return recorder.last


def _recorder(begun: Begun, journal: log.Journal, trackers: sink.Trackers) -> metrics_lib.Recorder:
    prepared, config = begun.prepared, begun.prepared.config
    own = prepared.origin.kind == "own"
    watch = skips.Watch(
        prepared.loader,
        journal,
        prepared.rows_of,
        most=config.rollback.after_skips if config.rollback else config.max_consecutive_skips,
        steps=prepared.origin.data.get("skipped_in_a_row", ()) if own else (),
    )
    return metrics_lib.Recorder(
        config.data,
        prepared.loader.order,
        journal,
        prepared.timeline,
        trackers=trackers,
        speed=speed_lib.Speed(
            config.model, list(begun.mesh.devices.flat), config.device_flops_per_second, journal
        ),
        first_row=prepared.first_row,
        watch=watch,
        restarted=own and not prepared.position.changed,
        layers_of=transformer.layers_of(config.model),
        layer_norms_every_steps=config.layer_norms_every_steps,
        noise_every_steps=config.noise_scale_every_steps,
    )


def _leave_out(begun: Begun) -> Any:
    """The jitted step that is left out: a state, which is used up."""
    lr = curve.learning_rate(begun.prepared.schedule)
    sources = len(begun.prepared.loader.names)
    step = functools.partial(step_lib.leave_out, lr, sources)
    return program.jitted(step, begun.state, begun.mesh, begun.prepared.config.fsdp_sums)


def _batches(
    begun: Begun, place: jax.sharding.NamedSharding
) -> tuple[readers.Share, ahead.Batches]:
    """This process's share of every batch that is left, and those parts of them."""
    prepared, timeline = begun.prepared, begun.prepared.timeline
    shape = timeline.batch_rows(prepared.first_step + 1), timeline.row_tokens
    share = readers.share(place, shape)
    return share, prepared.loader.batches(
        next_row=prepared.first_row,
        first_step=prepared.first_step + 1,
        batch_rows=timeline.sizes(),
        parts=share.parts,
        of=share.of,
    )


def _whole(
    prepared: prepare_lib.Prepared, step: int, batch: batch_lib.Batch
) -> batch_lib.Batch | loader_lib.Places:
    """What an update is counted by: its rows of all processes, where this one writes."""
    if group.count() == 1 or not group.is_first():
        return batch
    return prepared.loader.places(*prepared.rows_of(step))


def _evaluated(begun: Begun, services: _Services, step: int, params: Any) -> bool:
    """Whether the run is to end: a gate failed, or SIGTERM came."""
    services.recorder.flush()  # the time of the update is not the evaluation's
    with begun.watch.measure("eval"):
        try:
            return begun.evaluator.after(step, params, services.journal, services.stop.interrupt)
        except preemption.CutShortError:
            return True


def _save(begun: Begun, services: _Services, step: int, state: step_lib.TrainState) -> None:
    journal, skips_seen = services.journal, services.recorder.watch
    with begun.watch.measure("checkpoint"):
        saving.save(begun.prepared, services.store, step, state, skips_seen.steps, journal.settle)
    services.account.skipped_updates = skips_seen.count
    begun.watch.saved(step)
    journal.event("checkpoint", step=step)
    journal.event("goodput", **services.account.fields())


def _after_update(
    begun: Begun,
    services: _Services,
    step: int,
    state: step_lib.TrainState,
    *,
    due: bool,
    is_over: bool,
) -> bool:
    """Saves and evaluates, where it is time; whether a checkpoint is `due` still."""
    evaluator, recorder = begun.evaluator, services.recorder
    is_last, saved = step == begun.prepared.total_steps, False
    if due or is_over:
        recorder.flush()  # a checkpoint never has less behind it than its metrics say
        # Among skipped updates it would push out the good ones: later.
        if not recorder.watch.steps or is_last:
            _save(begun, services, step, state)
            due, saved = False, True
    # After what is saved: an evaluation takes its time, and may fail. A process that is to
    # end has none: the one that goes on makes up for it.
    if evaluator.is_due(step) and (is_last or not is_over):
        ends = _evaluated(begun, services, step, state.params)
        # Cut short among skipped updates: the last good checkpoint stays, as above.
        among_skips = services.stop.has_interrupted and bool(recorder.watch.steps)
        if ends and not saved and not among_skips:
            _save(begun, services, step, state)
        evaluator.end_if_failed(step, services.journal, services.store.wait)
        if services.stop.has_interrupted:
            raise _ended(begun, services, step)
    return due


def _ended(begun: Begun, services: _Services, step: int) -> preemption.PreemptedError:
    """To be raised: SIGTERM came, and after `step` the run is as it shall be found."""
    services.store.wait()
    newest = services.store.newest_step()
    return preemption.end(begun.prepared.config.run_dir, services.journal, step, newest)


def _loop(begun: Begun, services: _Services) -> None:
    """The loop itself. Metrics of update n are read after update n + 1 was dispatched."""
    prepared, state, watch = begun.prepared, begun.state, begun.watch
    stop, recorder, store = services.stop, services.recorder, services.store
    config, timeline = prepared.config, prepared.timeline
    jitted, leave_out = begun.early.steps, _leave_out(begun)
    left_out = set(rollback.left_out(config.run_dir))
    place, last = sharding.batch(begun.mesh), prepared.total_steps
    share, batches = _batches(begun, place)
    progress = log.Progress(
        config.run_dir, timeline.tokens(prepared.total_steps), done_tokens=timeline.first_tokens
    )
    evaluator, compiled = begun.evaluator, set[int]()
    with watch.measure("eval"), contextlib.suppress(preemption.CutShortError):  # seen below
        evaluator.begin(state.params, services.journal, stop.interrupt)
    evaluator.end_if_failed(prepared.first_step, services.journal, store.wait)
    due, is_over = False, stop.reached(prepared.first_step)
    with contextlib.closing(batches), progress:
        for step in range(prepared.first_step + 1, last + 1):
            if is_over:
                raise _ended(begun, services, step - 1)
            with watch.measure("data_wait") as wait:
                batch, _ = next(batches)
                if recorder.device_is_busy():
                    wait.bucket = "step"  # it cost nothing
            rows = timeline.batch_rows(step)
            if prepared.is_new_data(step):
                history = restore.fresh_guard(config.spikes, begun.mesh)
                state = dataclasses.replace(state, guard=history)
            if step in left_out:
                state, metrics = leave_out(state)
                recorder.put(step, metrics, None)
            else:
                arranged = context.arrange(batch, begun.mesh.shape)
                with watch.measure("step" if rows in compiled else "compile"):
                    begun.early.wait()
                    state, metrics = jitted[rows](state, readers.place(arranged, place, share))
                compiled.add(rows)
                recorder.put(step, metrics, _whole(prepared, step, batch))
            services.account.step = step
            progress.advance(rows * timeline.row_tokens, recorder.note)
            if step == prepared.first_step + 2:  # while the devices are busy
                with watch.measure("compile"):
                    store.prepare(**saving.items(state))
            due |= step % config.checkpoint.every_steps == 0 or step in prepared.phase_ends
            is_over = stop.reached(step) or step == last
            due = _after_update(begun, services, step, state, due=due, is_over=is_over)
