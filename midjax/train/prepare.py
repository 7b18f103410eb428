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
from midjax.train import schedule as schedule_lib
from midjax.train import start as start_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run that may begin.

    Attributes:
      config: the recipe, with the seed of the data order that is in force.
      recipe_seed: what the recipe said of it.
      origin: what the state starts from.
      opened, loader: the data.
      schedule: learning rates in steps.
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
    schedule: schedule_lib.Resolved
    optimizer: Any
    schedule_count: int
    first_step: int
    first_row: int
    base_rows: Mapping[str, int]

    def lr(self, count: int) -> float:
        """Learning rate of the update at a position on the schedule."""
        return float(schedule_lib.learning_rate(self.schedule)(count))


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
    schedule = schedule_lib.resolve(
        config.schedule,
        total_steps=config.total_steps,
        batch_tokens=data.batch_tokens,
        # A kept schedule goes on from its own peak; in its decay the rate in force is lower.
        lr_in_force=origin.manifest.get("peak_lr")
        if "schedule" in origin.parts
        else origin.lr_in_force,
    )
    optimizer = optimizer_lib.make(config.optimizer, schedule_lib.learning_rate(schedule))
    _check_model(origin, config.model, optimizer, opened.tokenizer_hash)
    continuity.same_data(origin, loader, opened.contents(), recipe_seed)
    prepared = Prepared(
        config=config,
        recipe_seed=recipe_seed,
        origin=origin,
        opened=opened,
        loader=loader,
        schedule=schedule,
        optimizer=optimizer,
        schedule_count=origin.manifest["schedule_count"] if "schedule" in origin.parts else 0,
        first_step=first_step,
        first_row=first_row,
        base_rows=base_rows,
    )
    continuity.learning_rate(origin, config.start, prepared.lr(prepared.schedule_count))
    return prepared


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
