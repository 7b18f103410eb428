# SPDX-License-Identifier: Apache-2.0
"""The root of the verb `train`: everything that a recipe says about one run."""

import dataclasses
from typing import get_args

from midjax import checkpoint
from midjax.batches import loader as loader_lib
from midjax.distributed import group
from midjax.model import architecture, sharding, torus
from midjax.trackers import tools as trackers_lib
from midjax.train import ema as ema_lib
from midjax.train import evaluation as evaluation_lib
from midjax.train import guard, placement
from midjax.train import start as start_lib
from midjax.train import step as step_lib
from midjax.train.optimizers import optimizer as optimizer_lib
from midjax.train.schedules import curve, phases


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """One run.

    Attributes:
      run_dir: where config, metrics and checkpoints go: a folder, which all processes share where
        there are several, or gs://BUCKET/FOLDER. A run that has a checkpoint there resumes.
      model, data, optimizer, schedule, loss, start: see their classes.
      train_tokens: tokens of the run, padding included; rounded up to whole batches. A kept step
        counts against it.
      batch_lr_rule: what the learning rate does where the batch changes, within the run or at a
        start that takes over the rate in force: "none", "linear" (in proportion) or "sqrt".
      microbatches: parts in which the largest batch is computed, to save memory, and smaller ones
        in no larger parts; never changes the result beyond rounding.
      max_consecutive_skips: this many skipped updates in a row end the run with exit code 4. An
        update whose loss or gradient is not finite is always skipped.
      spikes: the rule by which outliers are skipped too; None for none.
      rollback: whether the run goes back instead, and leaves out what came before; None for not.
      layer_norms_every_steps: updates between two rows of `layer_norms.jsonl`: norms of gradients,
        updates and parameters by layer; None for none.
      noise_scale_every_steps: updates between two measurements of the gradient-noise scale, which
        compares microbatches with the batch: 2 or more are needed. None for none.
      ema: the moving average of the parameters that is kept beside them; None for none.
      evaluations: what is measured while the run goes on, and how much it may forget.
      mesh: devices.
      state_sharding: of the optimizer's state: "as_params", or "over_data": split over the copies
        of the model too (ZeRO's stage 1), so that each of `Mesh.data` devices holds a part.
      state_memory: "device", or "pinned_host": it lies in the memory of the host, and visits the
        devices for each update.
      fsdp_sums: how FSDP sums gradients over a torus of TPUs: "by_dimension" sends the least;
        "at_once" sends up to twice as much, and may wait less: see `model.torus`.
      checkpoint: when to save.
      seed: of fresh parameters.
      trackers: programs that metrics are sent to as well, such as (@TensorBoard(),): see
        `trackers.tools`. They can neither stop nor delay the run.
      device_flops_per_second: what one device could do at most, for the model FLOPs utilisation;
        None is the bfloat16 peak of its kind, where that is known.
      compilation_cache: folder where compiled programs are kept for later runs, see `compilation`;
        None for none. JAX_COMPILATION_CACHE_DIR, where it is set, is used instead.
      hosts: how long the processes of the run wait for each other.
    """

    run_dir: str
    model: architecture.TransformerConfig
    data: loader_lib.Data
    optimizer: optimizer_lib.Optimizer
    schedule: phases.Schedule | phases.Phases
    loss: step_lib.Loss
    start: start_lib.Start
    train_tokens: int
    batch_lr_rule: curve.BatchRule
    microbatches: int
    max_consecutive_skips: int
    mesh: sharding.Mesh
    checkpoint: checkpoint.Keep
    seed: int
    state_sharding: placement.Sharding = "as_params"
    state_memory: placement.Memory = "device"
    fsdp_sums: torus.Sums = "by_dimension"
    trackers: tuple[trackers_lib.Tool, ...] = ()
    device_flops_per_second: float | None = None
    compilation_cache: str | None = None
    spikes: guard.Spikes | None = None
    rollback: guard.Rollback | None = None
    layer_norms_every_steps: int | None = None
    noise_scale_every_steps: int | None = None
    ema: ema_lib.Ema | None = None
    evaluations: tuple[evaluation_lib.Evaluation, ...] = ()
    hosts: group.Hosts = dataclasses.field(default_factory=group.Hosts)

    def __post_init__(self) -> None:
        if "://" in self.run_dir and not self.run_dir.startswith("gs://"):
            raise ValueError(
                f"Train.run_dir = {self.run_dir!r}: runs are written to local disks, to file "
                "systems that are mounted, and to Google Cloud Storage (gs://BUCKET/FOLDER). Give "
                "one of these."
            )
        if self.train_tokens < 1:
            raise ValueError(f"Train.train_tokens must be positive, got {self.train_tokens}.")
        if self.microbatches < 1 or max(self.data.batch_sizes) % self.microbatches:
            raise ValueError(
                f"Train.microbatches = {self.microbatches} does not divide Data.batch_rows = "
                f"{max(self.data.batch_sizes)}."
            )
        every = self.layer_norms_every_steps
        if self.max_consecutive_skips < 1 or (every is not None and every < 1):
            raise ValueError(
                "Train.max_consecutive_skips and layer_norms_every_steps must be 1 or more, got "
                f"{self.max_consecutive_skips} and {every}."
            )
        self._check_noise()
        for name, kind in (
            ("state_sharding", placement.Sharding),
            ("state_memory", placement.Memory),
            ("fsdp_sums", torus.Sums),
        ):
            if (value := getattr(self, name)) not in (allowed := get_args(kind)):
                raise ValueError(f"Train.{name} = {value!r}; allowed: {', '.join(allowed)}.")
        if self.device_flops_per_second is not None and self.device_flops_per_second <= 0:
            raise ValueError(
                "Train.device_flops_per_second must be positive (459e12 is a TPU v5p's), got "
                f"{self.device_flops_per_second}."
            )
        if self.rollback is not None:
            self._check_rollback(self.rollback)
        if self.data.row_tokens > self.model.context_tokens:
            raise ValueError(
                f"Data.row_tokens = {self.data.row_tokens} is above the model's context_tokens = "
                f"{self.model.context_tokens}. Shorten the rows, or extend the context: "
                "TransformerConfig.context_tokens together with Rope.scaling."
            )

    def parts(self, batch_rows: int) -> int:
        """Microbatches of a batch: as few as have no more rows than those of the largest one."""
        most = max(self.data.batch_sizes) // self.microbatches
        fewest = 1 if self.noise_scale_every_steps is None else 2
        fits = (n for n in range(fewest, batch_rows + 1) if batch_rows % n == 0)
        return next(n for n in fits if batch_rows // n <= most)

    def _check_noise(self) -> None:
        every = self.noise_scale_every_steps
        if every is None:
            return
        if every < 1:
            raise ValueError(f"Train.noise_scale_every_steps must be 1 or more, got {every}.")
        if self.microbatches < 2 or min(self.data.batch_sizes) < 2:
            raise ValueError(
                "Train.noise_scale_every_steps compares microbatches with the batch, and "
                f"Train.microbatches is {self.microbatches}, the smallest batch "
                f"{min(self.data.batch_sizes)} rows. Both must be 2 or more."
            )

    def _check_rollback(self, rollback: guard.Rollback) -> None:
        if rollback.after_skips > self.max_consecutive_skips:
            raise ValueError(
                f"Rollback.after_skips = {rollback.after_skips} is above "
                f"Train.max_consecutive_skips = {self.max_consecutive_skips}, which ends the run "
                "before it would go back."
            )
        kept, needed = self.checkpoint, rollback.after_skips + rollback.skip_steps_before + 1
        # The two saves at a phase's end may lie beside each other.
        apart = kept.last - (3 if kept.at_phase_ends else 1)
        reach = max(apart, 0) * kept.every_steps
        if reach < needed and kept.forever_every_steps is None:
            raise ValueError(
                f"Rollback goes back {needed} updates or more, and {kept.last} checkpoints every "
                f"{kept.every_steps} updates reach back {reach}: there might be none to go back "
                "to. Raise Keep.last or Keep.every_steps, or set Keep.forever_every_steps."
            )
