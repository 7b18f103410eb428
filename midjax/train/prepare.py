# SPDX-License-Identifier: Apache-2.0
"""Everything about a run that can be known, and refused, before a device is touched."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from midjax.batches import loader as loader_lib
from midjax.model import architecture, transformer
from midjax.train import continuity, recipe
from midjax.train import optimizer as optimizer_lib
from midjax.train import start as start_lib
from midjax.train.schedules import clock as clock_lib
from midjax.train.schedules import curve as curve_lib
from midjax.train.schedules import resolve as resolve_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run that may begin.

    Attributes:
      config: the recipe, with the seed of the data order that is in force.
      recipe_seed: what the recipe said of it.
      origin: what the state starts from.
      opened, loader: the data.
      schedule: the learning rate of every update.
      optimizer: the Optax chain with these rates.
      schedule_count: position on the schedule at the start.
      first_step: updates done before.
      first_row: global row of the first update.
      base_rows: source -> rows drawn before, those of sources that this mixture leaves out too.
    """

    config: recipe.Train
    recipe_seed: int
    origin: start_lib.Origin
    opened: loader_lib.Opened
    loader: loader_lib.Loader
    schedule: curve_lib.Curve
    optimizer: Any
    schedule_count: int
    first_step: int
    first_row: int
    base_rows: Mapping[str, int]

    def lr(self, count: int) -> float:
        """Learning rate of the update at a position on the schedule."""
        return self.schedule.lr(count)


def prepare(config: recipe.Train) -> Prepared:
    """All checks that need no device, in the order in which a user would want to hear of them.

    Raises:
      ValueError and its kinds: the recipe cannot run.
      checkpoint.DamagedError: the JSON of the chosen checkpoint is not what was saved.
    """
    origin = start_lib.choose(config.start, config.run_dir)
    continuity.imported(origin)
    recipe_seed = config.data.mixture.seed
    if "rng" in origin.parts and origin.data:
        config = _with_seed(config, origin.data["seed"])
    data = config.data
    first_step = continuity.steps(origin, data, config.total_steps)
    opened = loader_lib.Opened(data)
    if opened.vocab_size > config.model.vocab_size:
        raise ValueError(
            f"The tokenizer has {opened.vocab_size} tokens and the model's vocab_size is "
            f"{config.model.vocab_size}. Use the model's own tokenizer."
        )
    first_row, base_rows = continuity.data_position(origin, data, opened.contents())
    rows_left = max(config.total_steps - first_step, 0) * data.batch_rows
    loader = loader_lib.Loader(data, opened, total_rows=first_row + rows_left, base_rows=base_rows)
    curve, schedule_count = schedule(config, origin)
    optimizer = optimizer_lib.make(config.optimizer, curve_lib.learning_rate(curve))
    _check_model(origin, config.model, optimizer, opened.tokenizer_hash)
    continuity.same_data(origin, loader, opened.contents(), recipe_seed)
    prepared = Prepared(
        config=config,
        recipe_seed=recipe_seed,
        origin=origin,
        opened=opened,
        loader=loader,
        schedule=curve,
        optimizer=optimizer,
        schedule_count=schedule_count,
        first_step=first_step,
        first_row=first_row,
        base_rows=base_rows,
    )
    continuity.learning_rate(origin, config.start, prepared.lr(prepared.schedule_count))
    return prepared


def schedule(config: recipe.Train, origin: start_lib.Origin) -> tuple[curve_lib.Curve, int]:
    """(learning rates, position on them at the start). Reads what `origin` holds and no data.

    Raises:
      ValueError: the phases do not fit the run, or there is no rate to take over.
    """
    manifest, kept = origin.manifest, "schedule" in origin.parts
    batch_tokens = config.data.batch_tokens
    clock, count, taken = clock_lib.constant(batch_tokens), 0, origin.lr_in_force
    if kept:
        # It goes on from its own place, in tokens too, and from the rate that "checkpoint" was when
        # it began, not from the one now in force. An imported checkpoint knows neither.
        count, known = manifest["schedule_count"], manifest.get("schedule", {})
        if "clock" in known:
            clock = clock_lib.from_json(known["clock"]).changed(count, batch_tokens)
        taken = known.get("taken_lr")
        taken = manifest.get("peak_lr") if taken is None else taken
    curve = resolve_lib.resolve(
        config.schedule,
        clock=clock,
        total_tokens=config.train_tokens,
        row_tokens=config.data.row_tokens,
        lr_in_force=taken,
    )
    return curve, count


def _with_seed(config: recipe.Train, seed: int) -> recipe.Train:
    mixture = dataclasses.replace(config.data.mixture, seed=seed)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, mixture=mixture))


def _check_model(
    origin: start_lib.Origin,
    model: architecture.TransformerConfig,
    optimizer: Any,
    tokenizer_hash: str,
) -> None:
    if origin.huggingface is not None:
        continuity.huggingface(origin.huggingface, model, tokenizer_hash)
    if origin.run is None:
        return
    targets = {"params": transformer.abstract(model)}
    if "moments" in origin.parts:
        state = jax.eval_shape(optimizer.init, targets["params"])
        targets["opt_state"] = optimizer_lib.to_parts(state)
    continuity.arrays(origin, targets)
    where = f"{origin.run}, step {origin.step}"
    continuity.model(where, origin.manifest["model"], model)
    continuity.tokenizer(where, origin.manifest["tokenizer_hash"], tokenizer_hash)
