# SPDX-License-Identifier: Apache-2.0
"""The root of the verb `train`: everything that a recipe says about one run."""

import dataclasses

from midjax import checkpoint, units
from midjax.batches import loader as loader_lib
from midjax.model import architecture, sharding
from midjax.train import optimizer as optimizer_lib
from midjax.train import start as start_lib
from midjax.train import step as step_lib
from midjax.train.schedules import phases


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """One run.

    Attributes:
      run_dir: where config, metrics and checkpoints go, on a local disk. A run that has a
        checkpoint there resumes.
      model, data, optimizer, schedule, loss, start: see their classes.
      train_tokens: tokens of the run, padding included; rounded up to whole batches. A kept step
        counts against it.
      microbatches: parts in which each batch is computed, to save memory; never changes the result
        beyond rounding.
      max_consecutive_skips: updates in a row whose loss or gradient is not finite, and which are
        skipped; one more ends the run with an error.
      mesh: devices.
      checkpoint: when to save.
      seed: of fresh parameters.
    """

    run_dir: str
    model: architecture.TransformerConfig
    data: loader_lib.Data
    optimizer: optimizer_lib.AdamW
    schedule: phases.Schedule | phases.Phases
    loss: step_lib.Loss
    start: start_lib.Start
    train_tokens: int
    microbatches: int
    max_consecutive_skips: int
    mesh: sharding.Mesh
    checkpoint: checkpoint.Keep
    seed: int

    def __post_init__(self) -> None:
        if "://" in self.run_dir:
            raise ValueError(
                f"Train.run_dir = {self.run_dir!r}: runs are written to local disks only, so far. "
                "Give a local folder and copy it when the run is done."
            )
        if self.train_tokens < 1:
            raise ValueError(f"Train.train_tokens must be positive, got {self.train_tokens}.")
        if self.microbatches < 1 or self.data.batch_rows % self.microbatches:
            raise ValueError(
                f"Train.microbatches = {self.microbatches} does not divide Data.batch_rows = "
                f"{self.data.batch_rows}."
            )
        if self.max_consecutive_skips < 0:
            raise ValueError(
                f"Train.max_consecutive_skips must be 0 or more, got {self.max_consecutive_skips}."
            )
        if self.data.row_tokens > self.model.context_tokens:
            raise ValueError(
                f"Data.row_tokens = {self.data.row_tokens} is above the model's context_tokens = "
                f"{self.model.context_tokens}. Shorten the rows, or extend the context: "
                "TransformerConfig.context_tokens together with Rope.scaling."
            )

    @property
    def total_steps(self) -> int:
        """Updates of the run, those of a kept step included."""
        return units.steps_of_tokens(self.train_tokens, self.data.batch_tokens)
