# SPDX-License-Identifier: Apache-2.0
"""The verb `train`, top to bottom."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from midjax import checkpoint, log, units
from midjax.batches import loader as loader_lib
from midjax.model import hf, sharding, transformer
from midjax.train import metrics as metrics_lib
from midjax.train import optimizer as optimizer_lib
from midjax.train import schedule as schedule_lib
from midjax.train import start as start_lib
from midjax.train import step as step_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """One run.

    Attributes:
      run_dir: where config, metrics and checkpoints go. A run that has a checkpoint there resumes.
      model, data, optimizer, schedule, loss, start: see their classes.
      train_tokens: tokens of the run, padding included; rounded up to whole batches. A kept step
        counts against it.
      microbatches: parts in which each batch is computed, to save memory; never changes the result
        beyond rounding.
      mesh: devices.
      checkpoint: when to save.
      seed: of fresh parameters.
    """

    run_dir: str
    model: transformer.TransformerConfig
    data: loader_lib.Data
    optimizer: optimizer_lib.AdamW
    schedule: schedule_lib.Schedule
    loss: step_lib.Loss
    start: start_lib.Start
    train_tokens: int
    microbatches: int
    mesh: sharding.Mesh
    checkpoint: checkpoint.Keep
    seed: int

    def __post_init__(self) -> None:
        if self.train_tokens < 1:
            raise ValueError(f"Train.train_tokens must be positive, got {self.train_tokens}.")
        if self.microbatches < 1 or self.data.batch_rows % self.microbatches:
            raise ValueError(
                f"Train.microbatches = {self.microbatches} does not divide Data.batch_rows = "
                f"{self.data.batch_rows}."
            )

    @property
    def total_steps(self) -> int:
        """Updates of the run, those of a kept step included."""
        return units.steps_of_tokens(self.train_tokens, self.data.batch_tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything that is known before any device work."""

    config: Train
    origin: start_lib.Origin
    opened: loader_lib.Opened
    loader: loader_lib.Loader
    schedule: schedule_lib.Resolved
    first_step: int
    first_row: int
    base_rows: Mapping[str, int]


def run(config: Train) -> dict[str, Any]:
    """Trains; returns the last row of metrics (empty if there was nothing left to do).

    Raises:
      ValueError and its kinds: the recipe can't run. All that can be known without a device is
        checked before one is touched.
    """
    mesh = sharding.make(config.mesh)
    rows = config.data.batch_rows // config.microbatches
    sharding.check_divides("A microbatch", (rows,), ("batch",), mesh.shape)
    prepared, state = begin(config, mesh)
    is_writer = jax.process_index() == 0
    journal = log.Journal(config.run_dir, step=prepared.first_step, is_writer=is_writer)
    _announce(prepared, journal)
    row: dict[str, Any] = {}
    with checkpoint.Store(config.run_dir, config.checkpoint) as store, jax.set_mesh(mesh):
        if prepared.first_step < config.total_steps:
            row = _loop(prepared, state, mesh, journal, store)
    journal.event("end", step=config.total_steps)
    return row


def begin(config: Train, mesh: jax.sharding.Mesh) -> tuple[Prepared, step_lib.TrainState]:
    """Chooses, checks and builds the first state; falls back over own damaged checkpoints."""
    while True:
        prepared = prepare(config)
        try:
            return prepared, _build(prepared, mesh)
        except checkpoint.CheckpointError as error:
            if prepared.origin.kind != "own":
                raise
            assert prepared.origin.step is not None
            start_lib.set_aside_damaged(config.run_dir, error, prepared.origin.step)


def prepare(config: Train) -> Prepared:
    """All checks that need no device, in the order in which a user would want to hear of them."""
    origin = start_lib.choose(config.start, config.run_dir)
    first_step = origin.step if "step" in origin.parts and origin.step else 0
    data = config.data
    if "rng" in origin.parts and origin.kind != "own" and origin.data:
        mixture = dataclasses.replace(data.mixture, seed=origin.data["seed"])
        data = dataclasses.replace(data, mixture=mixture)
        config = dataclasses.replace(config, data=data)
    opened = loader_lib.Opened(data)
    first_row, base_rows = start_lib.data_position(origin, data, opened.contents())
    left = config.total_steps - first_step
    total_rows = first_row + max(left, 0) * data.batch_rows
    loader = loader_lib.Loader(data, opened, total_rows=total_rows, base_rows=base_rows)
    if opened.vocab_size > config.model.vocab_size:
        raise ValueError(
            f"The tokenizer has {opened.vocab_size} tokens and the model's vocab_size is "
            f"{config.model.vocab_size}. Use the model's own tokenizer."
        )
    shapes = checkpoint.shapes(transformer.abstract(config.model))
    start_lib.check_fits(origin, shapes=shapes, tokenizer_hash=opened.tokenizer_hash)
    start_lib.check_same_data(origin, loader.order.fingerprint(), opened.contents())
    lr_in_force = origin.manifest.get("peak_lr") if origin.kind == "own" else origin.lr_in_force
    schedule = schedule_lib.resolve(
        config.schedule,
        total_steps=config.total_steps,
        batch_tokens=data.batch_tokens,
        lr_in_force=lr_in_force,
    )
    kept = origin.manifest.get("schedule_count", 0) if "schedule" in origin.parts else 0
    start_lib.check_lr(origin, config.start, float(schedule_lib.learning_rate(schedule)(kept)))
    return Prepared(
        config=config,
        origin=origin,
        opened=opened,
        loader=loader,
        schedule=schedule,
        first_step=first_step,
        first_row=first_row,
        base_rows=base_rows,
    )


def _optimizer(prepared: Prepared) -> Any:
    lr = schedule_lib.learning_rate(prepared.schedule)
    return optimizer_lib.make(prepared.config.optimizer, lr), lr


def _build(prepared: Prepared, mesh: jax.sharding.Mesh) -> step_lib.TrainState:
    """The first state: parameters by the sharding table, moments as their parameters."""
    config = prepared.config
    optimizer, _ = _optimizer(prepared)
    shapes = transformer.abstract(config.model)
    param_shardings = sharding.tree(mesh, transformer.logical_axes(config.model), shapes)
    opt_shapes = jax.eval_shape(optimizer.init, shapes)
    opt_shardings = _like_params(opt_shapes, param_shardings, _replicated(mesh))
    abstract = step_lib.TrainState(
        step=_with_shardings(jax.ShapeDtypeStruct((), jnp.int32), _replicated(mesh)),
        params=_with_shardings(shapes, param_shardings),
        opt_state=_with_shardings(opt_shapes, opt_shardings),
    )

    def imported(folder: str) -> Any:
        found, params = hf.load(folder)
        _check_imported(folder, found, config.model)
        cast = jax.tree.map(lambda x: np.asarray(x, jnp.dtype(config.model.param_dtype)), params)
        return jax.tree.map(jax.device_put, cast, param_shardings)

    init = functools.partial(transformer.init, config.model)
    makers = start_lib.Makers(
        abstract=abstract,
        params=lambda: jax.jit(init, out_shardings=param_shardings)(jax.random.key(config.seed)),
        opt_state=jax.jit(optimizer.init, out_shardings=opt_shardings),
        imported=imported,
    )
    with jax.set_mesh(mesh):
        return start_lib.build(prepared.origin, makers)


def _with_shardings(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def _replicated(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    return jax.sharding.NamedSharding(mesh, sharding.spec(()))


def _like_params(shape: Any, param_shardings: Any, replicated: Any) -> Any:
    """Shardings for an optimizer state: every tree shaped like params gets theirs."""
    structure: Any = jax.tree.structure(param_shardings)

    def is_params(node: Any) -> bool:
        return bool(structure == jax.tree.structure(node))

    return jax.tree.map(
        lambda node: param_shardings if is_params(node) else replicated, shape, is_leaf=is_params
    )


def _check_imported(
    folder: str, found: transformer.TransformerConfig, wanted: transformer.TransformerConfig
) -> None:
    """Everything that decides the forward pass must agree, except RoPE, which a run may extend."""
    free = {"rope", "context_tokens", "param_dtype", "compute_dtype", "remat", "loss_chunk_tokens"}
    free |= {"initializer_std"}
    wrong = [
        f"{f.name}: folder {getattr(found, f.name)}, recipe {getattr(wanted, f.name)}"
        for f in dataclasses.fields(wanted)
        if f.name not in free and getattr(found, f.name) != getattr(wanted, f.name)
    ]
    if wrong:
        raise start_lib.StartError(f"The recipe's model does not fit {folder}: {'; '.join(wrong)}.")


def _announce(prepared: Prepared, journal: log.Journal) -> None:
    config, origin = prepared.config, prepared.origin
    parts = {p: "keep" if p in origin.parts else "reset" for p in start_lib.PARTS}
    where = f" from {origin.run or origin.huggingface}" if origin.kind != "fresh" else ""
    step = f", step {origin.step}" if origin.step is not None else ""
    log.say(
        f"start: {origin.kind}{where}{step}; "
        f"{units.human(transformer.parameter_count(config.model))} parameters, "
        f"{config.total_steps} steps x {units.human(config.data.batch_tokens)} tokens"
    )
    if origin.kind not in ("own", "fresh"):
        log.say("  " + "  ".join(f"{part} {what}" for part, what in parts.items()))
    for sentence in config.data.mixture.unnormalised():
        log.say(f"  {sentence}")
        journal.event("weights_normalised", what=sentence)
    lr = schedule_lib.learning_rate(prepared.schedule)
    journal.event(
        "start",
        kind=origin.kind,
        **{"from": origin.run or origin.huggingface},
        from_step=origin.step,
        parts=parts,
        lr_in_force=origin.lr_in_force,
        first_lr=float(lr(prepared.first_step)),
        norms=origin.manifest.get("norms"),
        first_row=prepared.first_row,
        plan=[dataclasses.asdict(row) for row in prepared.loader.order.plan()],
    )


def _loop(
    prepared: Prepared,
    state: step_lib.TrainState,
    mesh: jax.sharding.Mesh,
    journal: log.Journal,
    store: checkpoint.Store,
) -> dict[str, Any]:
    """The loop itself. Metrics of update n are read after update n + 1 was dispatched."""
    config = prepared.config
    optimizer, lr = _optimizer(prepared)
    train_step = jax.jit(
        step_lib.make_train_step(
            config.model,
            config.loss,
            optimizer,
            lr,
            sources=len(prepared.loader.names),
            microbatches=config.microbatches,
        ),
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda x: x.sharding, state), _replicated(mesh)),
    )
    batches = prepared.loader.batches(
        next_row=prepared.first_row, reader=jax.process_index(), readers=jax.process_count()
    )
    recorder = metrics_lib.Recorder(
        config.data,
        prepared.loader.order,
        journal,
        first_step=prepared.first_step,
        first_row=prepared.first_row,
    )
    place = sharding.batch(mesh)
    batch_tokens = config.data.batch_tokens
    with log.Progress(
        config.run_dir,
        config.total_steps * batch_tokens,
        done_tokens=prepared.first_step * batch_tokens,
    ) as progress:
        for step in range(prepared.first_step + 1, config.total_steps + 1):
            batch, _ = next(batches)
            state, metrics = train_step(state, loader_lib.place(batch, place))
            recorder.put(step, metrics)
            progress.advance(batch_tokens, recorder.note)
            if step % config.checkpoint.every_steps == 0 or step == config.total_steps:
                recorder.flush()  # a checkpoint never has less behind it than its metrics say
                _save(prepared, store, step, state)
                journal.event("checkpoint", step=step)
    return recorder.last


def _save(
    prepared: Prepared, store: checkpoint.Store, step: int, state: step_lib.TrainState
) -> None:
    config, order = prepared.config, prepared.loader.order
    parts = optimizer_lib.to_parts(state.opt_state)
    count = int(parts["schedule_count"])
    lr = schedule_lib.learning_rate(prepared.schedule)
    next_row = prepared.first_row + (step - prepared.first_step) * config.data.batch_rows
    drawn = order.base + order.counts(next_row)
    data = {
        "next_row": next_row,
        "row_tokens": config.data.row_tokens,
        "base_rows": dict(zip(order.names, order.base.tolist(), strict=True)),
        "drawn_rows": dict(zip(order.names, drawn.tolist(), strict=True)),
        "fingerprint": order.fingerprint(),
        "contents": prepared.opened.contents(),
        "seed": config.data.mixture.seed,
        "grain": grain.__version__,
    }
    origin = prepared.origin
    own = origin.kind == "own"
    facts = {
        "step": step,
        "adam_count": int(parts["adam_count"]),
        "schedule_count": count,
        # "last" was used by the newest update, "next" would be used by another one.
        "lr": {"last": float(lr(max(count - 1, 0))), "next": float(lr(count))},
        "peak_lr": prepared.schedule.peak_lr,
        "model": dataclasses.asdict(config.model),
        "tokenizer_hash": prepared.opened.tokenizer_hash,
        "parent": origin.manifest["parent"]
        if own
        else {"run": origin.run, "step": origin.step, "huggingface": origin.huggingface},
        "versions": {"jax": jax.__version__, "grain": grain.__version__},
    }
    store.save(step, params=state.params, opt_state=parts, data=data, facts=facts)
