# SPDX-License-Identifier: Apache-2.0
"""Everything about a run that can be known, and refused, before a device is touched."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax

from midjax.batches import loader as loader_lib
from midjax.mixture import order as order_lib
from midjax.model import architecture, transformer
from midjax.train import continuity, recipe
from midjax.train import start as start_lib
from midjax.train import timeline as timeline_lib
from midjax.train.optimizers import optimizer as optimizer_lib
from midjax.train.schedules import clock as clock_lib
from midjax.train.schedules import curve as curve_lib
from midjax.train.schedules import resolve as resolve_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixed:
    """The data of a run, every row of it decided.

    Attributes:
      config: the recipe, with the seed of the data order that is in force.
      recipe_seed: what the recipe said of it.
      origin: what the state starts from.
      opened, loader: the data.
      timeline: its updates.
      position: where the data goes on.
    """

    config: recipe.Train
    recipe_seed: int
    origin: start_lib.Origin
    opened: loader_lib.Opened
    loader: loader_lib.Loader
    timeline: timeline_lib.Timeline
    position: continuity.Position

    @property
    def first_row(self) -> int:
        """Global row of the first update."""
        return self.position.first_row

    def rows_of(self, step: int) -> tuple[int, int]:
        """Global rows [begin, end) of update `step`."""
        return self.next_row(step - 1), self.next_row(step)

    def is_new_data(self, step: int) -> bool:
        """Whether update `step` reads another stage than the one before, or another batch size.

        The first update of a run does, but for one that goes on with the same mixture.
        """
        order, origin = self.loader.order, self.origin
        begin, end = self.rows_of(step)
        if begin == order.first_row:
            return True
        if step > self.first_step + 1:
            rows = begin - self.rows_of(step - 1)[0]
        else:
            rows = origin.data["batch_rows"]
        return rows != end - begin or order.stage_at(begin - rows) != order.stage_at(begin)

    @property
    def first_step(self) -> int:
        """Updates done before."""
        return self.timeline.first_step

    @property
    def total_steps(self) -> int:
        """Updates of the run, those of a kept step included."""
        return self.timeline.total_steps

    def next_row(self, step: int) -> int:
        """Global row of the update after `step`."""
        return self.first_row + self.timeline.rows(step)

    @property
    def mixtures(self) -> list[dict[str, Any]]:
        """Mixtures of the run, oldest first, that in force last: what a checkpoint says of them."""
        found = [dict(mixture) for mixture in self.position.mixtures]
        if not found or self.position.changed:
            past = self.position.past
            entry = {
                "first_row": past.first_row,
                "step": self.first_step,
                "drawn_rows": dict(past.drawn),
                "fingerprint": self.loader.order.fingerprint(),
                "mixture": dataclasses.asdict(self.config.data.mixture),
            }
            found.append(entry)
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared(Mixed):
    """A run that may begin.

    Attributes:
      schedule: the learning rate of every update.
      optimizer: gives directions, which the rate is still to scale.
      taken: what becomes of the checkpoint's arrays.
      lr_jump: see `continuity.learning_rate`.
    """

    schedule: curve_lib.Curve
    optimizer: Any
    taken: continuity.Taken
    lr_jump: Mapping[str, Any] | None

    @property
    def schedule_count(self) -> int:
        """Position on the schedule at the start."""
        return self.timeline.first_count

    @functools.cached_property
    def phase_ends(self) -> frozenset[int]:
        """Steps at which a phase has given way to the next; empty if the recipe keeps none."""
        if not self.config.checkpoint.at_phase_ends:
            return frozenset()
        moved = self.first_step - self.schedule_count
        return frozenset(span.first_update + moved for span in self.schedule.spans[1:])

    def lr(self, count: int) -> float:
        """Learning rate of the update at a position on the schedule."""
        return self.schedule.lr(count)


def mix(config: recipe.Train) -> Mixed:
    """What the run would read: its start, its token folders, its mixture. No device is touched.

    Raises:
      ValueError and its kinds: the recipe's start and data do not go together.
      checkpoint.DamagedError: the JSON of the chosen checkpoint is not what was saved.
    """
    origin = start_lib.choose(config.start, config.run_dir)
    continuity.imported(origin)
    recipe_seed = config.data.mixture.seed
    if "rng" in origin.parts and origin.data:
        config = _with_seed(config, origin.data["seed"])
    data = config.data
    timeline = timeline_lib.of(data, config.train_tokens, origin)
    continuity.steps(origin, timeline)
    opened = loader_lib.Opened(data)
    if opened.vocab_size > config.model.vocab_size:
        raise ValueError(
            f"The tokenizer has {opened.vocab_size} tokens and the model's vocab_size is "
            f"{config.model.vocab_size}. Use the model's own tokenizer."
        )
    rows_left = timeline.rows(timeline.total_steps)

    def fingerprint(position: continuity.Position) -> str:
        return order_lib.fingerprint(
            data.mixture,
            source_rows={name: len(plan) for name, plan in opened.plans.items()},
            row_tokens=data.row_tokens,
            total_rows=position.first_row + rows_left,
            base_rows=position.base_rows,
            past=position.past,
        )

    position = continuity.data_position(origin, data, opened.contents(), recipe_seed, fingerprint)
    loader = loader_lib.Loader(
        data,
        opened,
        total_rows=position.first_row + rows_left,
        base_rows=position.base_rows,
        past=position.past,
    )
    return Mixed(
        config=config,
        recipe_seed=recipe_seed,
        origin=origin,
        opened=opened,
        loader=loader,
        timeline=timeline,
        position=position,
    )


def prepare(config: recipe.Train) -> Prepared:
    """All checks that need no device, in the order in which a user would want to hear of them.

    Raises:
      ValueError and its kinds: the recipe cannot run.
      checkpoint.DamagedError: the JSON of the chosen checkpoint is not what was saved.
    """
    mixed = mix(config)
    config, origin = mixed.config, mixed.origin
    curve = schedule(config, origin, mixed.timeline)
    optimizer = optimizer_lib.make(config.optimizer)
    # Here, so that a parameter without a rule is told before anything runs.
    opt_state = jax.eval_shape(optimizer.init, transformer.abstract(config.model))
    taken = _check_model(origin, config.model, opt_state, mixed.opened.tokenizer_hash)
    continuity.same_rows(origin, mixed.position, mixed.loader)
    count = mixed.timeline.first_count
    factor = batch_factor(curve, origin, count)
    return Prepared(
        **{field.name: getattr(mixed, field.name) for field in dataclasses.fields(mixed)},
        schedule=curve,
        optimizer=optimizer,
        taken=taken,
        lr_jump=continuity.learning_rate(origin, config.start, curve.lr(count), factor),
    )


def schedule(
    config: recipe.Train, origin: start_lib.Origin, timeline: timeline_lib.Timeline
) -> curve_lib.Curve:
    """The learning rates of a run. Reads what `origin` holds and no data.

    Raises:
      ValueError: the phases do not fit the run, or there is no rate to take over.
    """
    known = origin.manifest.get("schedule", {})
    taken, reference = origin.lr_in_force, _batch_there(origin)
    if "schedule" in origin.parts:
        # It goes on from its own place, in tokens too, and from the rate that "checkpoint" was when
        # it began, not from the one now in force. An imported checkpoint knows neither.
        taken, reference = known.get("taken_lr"), known.get("reference_tokens")
        taken = origin.manifest.get("peak_lr") if taken is None else taken
    return resolve_lib.resolve(
        config.schedule,
        clock=timeline.clock,
        total_tokens=timeline.schedule_tokens,
        row_tokens=config.data.row_tokens,
        lr_in_force=taken,
        batch_rule=config.batch_lr_rule,
        reference_tokens=reference,
    )


def _batch_there(origin: start_lib.Origin) -> int | None:
    """Tokens of the batch that the rate in force at a checkpoint was for; None is not known."""
    known = origin.manifest.get("schedule", {})
    if "clock" in known:
        clock = clock_lib.from_json(known["clock"])
        return clock.batch_tokens(origin.manifest["schedule_count"])
    return origin.data["batch_rows"] * origin.data["row_tokens"] if origin.data else None


def batch_factor(curve: curve_lib.Curve, origin: start_lib.Origin, count: int) -> float:
    """What the batch rule makes of the rate in force where the batch is another one now."""
    there = _batch_there(origin)
    if "schedule" in origin.parts and there is not None:
        return curve.factor_of(curve.clock.batch_tokens(count) / there)
    return curve.factor(count)


def _with_seed(config: recipe.Train, seed: int) -> recipe.Train:
    mixture = dataclasses.replace(config.data.mixture, seed=seed)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, mixture=mixture))


def _check_model(
    origin: start_lib.Origin,
    model: architecture.TransformerConfig,
    opt_state: Any,
    tokenizer_hash: str,
) -> continuity.Taken:
    """The checkpoint's model is the recipe's; returns what becomes of its arrays."""
    if origin.huggingface is not None:
        continuity.huggingface(origin.huggingface, model, tokenizer_hash)
    if origin.run is None:
        return continuity.Taken()
    parts = optimizer_lib.to_parts(opt_state)
    taken = continuity.arrays(origin, transformer.abstract(model), parts)
    where = f"{origin.run}, step {origin.step}"
    continuity.model(where, origin.manifest["model"], model)
    continuity.tokenizer(where, origin.manifest["tokenizer_hash"], tokenizer_hash)
    return taken
