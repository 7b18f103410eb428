# SPDX-License-Identifier: Apache-2.0
"""Which batch each update of a run has: its size, its rows, its place on the schedule.

    step      updates since the run began, a kept step's included: the first one is update 1
    count     position on the learning rate curve, updates that the schedule has behind it
    row       global row of the mixture: the position in the data
    tokens    places in batches, padding included; Train.train_tokens bounds them

Three counters, because each can be kept or reset when a run starts from another. Between them there
are only sums over the sizes of the batches, which a `starts.Ramp` gives by tokens.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from midjax.batches import loader as loader_lib
from midjax.batches import starts as starts_lib
from midjax.train import start as start_lib
from midjax.train.schedules import clock as clock_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timeline:
    """The updates of a run.

    Attributes:
      clock: batches by position on the schedule, those before the run included.
      row_tokens: places of a row.
      first_step, first_count, first_tokens: what the start keeps; 0 where it resets.
      train_tokens: of the run, those of a kept step included.
    """

    clock: clock_lib.Clock
    row_tokens: int
    first_step: int
    first_count: int
    first_tokens: int
    train_tokens: int

    @property
    def schedule_tokens(self) -> int:
        """Places from the schedule's start to the end of the run."""
        left = self.train_tokens - self.first_tokens
        # The last batch of a run may reach beyond its end, and its schedule does not.
        if left <= -self.clock.batch_tokens(self.first_count - 1):
            left = 0
        return math.ceil(self.clock.tokens(self.first_count)) + left

    @property
    def total_steps(self) -> int:
        """The last update's number."""
        left = self.clock.updates(self.schedule_tokens) - self.first_count
        return self.first_step + max(left, 0)

    def count(self, step: int) -> int:
        """Position on the schedule after update `step`."""
        return step - self.first_step + self.first_count

    def batch_rows(self, step: int) -> int:
        """Rows of the batch of update `step`."""
        return self.clock.batch_tokens(self.count(step) - 1) // self.row_tokens

    def rows(self, step: int) -> int:
        """Rows that the run has drawn after update `step`; none at `first_step`."""
        return self._places(step) // self.row_tokens

    def tokens(self, step: int) -> int:
        """Places in batches after update `step`, those of a kept step included."""
        return self.first_tokens + self._places(step)

    def sizes(self) -> dict[int, int]:
        """First update with batches of a size -> rows of a batch, for the updates of the run."""
        found = {self.first_step + 1: self.batch_rows(self.first_step + 1)}
        for count, _, tokens in self.clock.knees:
            step = count + 1 - self.first_count + self.first_step
            if self.first_step + 1 < step <= self.total_steps:
                found[step] = tokens // self.row_tokens
        return found

    def _places(self, step: int) -> int:
        before = self.clock.tokens(self.count(step)) - self.clock.tokens(self.first_count)
        assert before.denominator == 1, before
        return int(before)


def of(data: loader_lib.Data, train_tokens: int, origin: start_lib.Origin) -> Timeline:
    """The timeline of a recipe that starts from `origin`."""
    manifest, batches = origin.manifest, origin.data
    first_step = first_tokens = first_count = 0
    batch = _rows_at(data, 0) * data.row_tokens
    if "step" in origin.parts and origin.step is not None:
        first_step, first_tokens = origin.step, _tokens_of(origin, batch)
    batch = _rows_at(data, first_tokens) * data.row_tokens
    clock = clock_lib.constant(batch)
    if "schedule" in origin.parts:
        first_count = manifest["schedule_count"]
        known = manifest.get("schedule", {})
        if "clock" in known:
            clock = clock_lib.from_json(known["clock"])
        elif batches:
            clock = clock_lib.constant(batches["batch_rows"] * batches["row_tokens"])
        clock = clock.changed(first_count, batch)
    return Timeline(
        clock=_ramped(clock, first_count, data, first_tokens),
        row_tokens=data.row_tokens,
        first_step=first_step,
        first_count=first_count,
        first_tokens=first_tokens,
        train_tokens=train_tokens,
    )


def _rows_at(data: loader_lib.Data, tokens: int) -> int:
    rows = data.batch_rows
    return rows.at(tokens) if isinstance(rows, starts_lib.Ramp) else rows


def _tokens_of(origin: start_lib.Origin, batch_tokens: int) -> int:
    """Places in the batches up to a checkpoint. An import counts in the recipe's own batches."""
    assert origin.step is not None
    tokens: Mapping[str, Any] = origin.manifest
    if "tokens" in tokens:
        return int(tokens["tokens"])
    theirs = origin.data
    return origin.step * (theirs["batch_rows"] * theirs["row_tokens"] if theirs else batch_tokens)


def _ramped(
    clock: clock_lib.Clock, first_count: int, data: loader_lib.Data, first_tokens: int
) -> clock_lib.Clock:
    """The clock with the changes that are still to come. One comes between two batches."""
    if not isinstance(data.batch_rows, starts_lib.Ramp):
        return clock
    offset = math.ceil(clock.tokens(first_count)) - first_tokens
    for tokens, rows in zip(data.batch_rows.start_tokens, data.batch_rows.rows, strict=True):
        if tokens > first_tokens:
            clock = clock.changed(clock.updates(tokens + offset), rows * data.row_tokens)
    return clock
