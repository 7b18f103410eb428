# SPDX-License-Identifier: Apache-2.0
"""What a compiled step promises: memory, time, cost. Plain numbers, that JSON can hold.

Compiled --step--> Step (one size of batch) --stage--> Stage (its whole budget of tokens)
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from midjax.hardware import slices as slices_lib
from midjax.model import flops
from midjax.plan import analysis, compiler
from midjax.train import recipe as train_lib

_HOUR = 3600.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One size of batch of one stage on one slice; everything is of one chip unless said otherwise.

    Attributes:
      batch_rows, row_tokens, microbatches, layers, remat, mesh: of the recipe; the mesh with its -1
        filled.
      updates: of the stage that have this size.
      outcome: "fits"; "out of memory", of HBM; "out of VMEM"; "refused", by the recipe's own
        checks; "failed", for another reason.
      said: by whom it was refused, in words; None where it fits.
      missing_bytes: of HBM, where it does not fit and the compiler says how much it wants.
      found: see `analysis.Found`; None where there is no program.
      model_flops: that the model is worth, for whole rows that are one document.
      tokens: of the batch, over all chips, padding included.
      tokens_per_second: over all chips.
      utilisation: model FLOPs utilisation, a share of the chip's peak.
      compiling_seconds: that it took once.
      was_kept: whether it came out of the cache.
    """

    batch_rows: int
    row_tokens: int
    microbatches: int
    layers: int
    remat: str
    mesh: Mapping[str, int]
    updates: int
    outcome: str
    said: str | None = None
    missing_bytes: int | None = None
    found: analysis.Found | None = None
    model_flops: float = 0.0
    tokens: int = 0
    tokens_per_second: float | None = None
    utilisation: float | None = None
    compiling_seconds: float | None = None
    was_kept: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One recipe on one slice.

    Attributes:
      name: of the recipe's file.
      slice, chips: where.
      steps: a program for every size of batch.
      tokens, updates: of the whole recipe: nothing of another run's count is taken over.
      seconds: of its updates; None where a step does not fit. Starts, saves and waits for data and
        for machines come on top.
      chip_hours: of these.
      cost_usd: of these, at the price given; None without one.
      checkpoint_bytes: of one, over all chips, before compression.
      checkpoint_seconds: to write it at the rate given; None without one.
    """

    name: str
    slice: str
    chips: int
    steps: tuple[Step, ...]
    tokens: int
    updates: int
    seconds: float | None
    chip_hours: float | None
    cost_usd: float | None
    checkpoint_bytes: int | None
    checkpoint_seconds: float | None

    @property
    def fits(self) -> bool:
        """Whether all of its steps do."""
        return all(step.outcome == "fits" for step in self.steps)


def step(
    config: train_lib.Train,
    slice_: slices_lib.Slice,
    rows: int,
    updates: int,
    made: compiler.Compiled,
    knobs: analysis.Knobs,
) -> Step:
    """The promise of one compiled step."""
    record, tokens = made.record, rows * config.data.row_tokens
    chip = slice_.chip
    common: dict[str, Any] = {
        "batch_rows": rows,
        "row_tokens": config.data.row_tokens,
        "microbatches": config.parts(rows),
        "layers": config.model.layers,
        "remat": config.model.remat,
        "mesh": {name: size for name, size in record.get("mesh", {}).items() if size > 1},
        "updates": updates,
        "tokens": tokens,
        "model_flops": model_flops(config, rows) / slice_.chips,
        "compiling_seconds": record.get("compiling_seconds"),
        "was_kept": made.was_kept,
    }
    if made.outcome != "compiled":
        refusal = record.get("refusal", {"kind": "failed", "said": record.get("said", "")})
        needs, has = refusal.get("needs_bytes"), refusal.get("has_bytes")
        kinds = {"hbm": "out of memory", "vmem": "out of VMEM", "recipe": "refused"}
        return Step(
            outcome=kinds.get(refusal["kind"], "failed"),
            said=refusal["said"],
            missing_bytes=needs - has if needs is not None and refusal["kind"] == "hbm" else None,
            **common,
        )
    found = analysis.of(made, slice_, knobs)
    return Step(
        outcome="fits",
        found=found,
        tokens_per_second=tokens / found.step_seconds,
        utilisation=common["model_flops"] / found.step_seconds / chip.bf16_flops_per_second,
        **common,
    )


def stage(
    name: str,
    config: train_lib.Train,
    slice_: slices_lib.Slice,
    steps: Sequence[Step],
    checkpoint_bytes: int | None,
    *,
    price: float | None,
    checkpoint_gb_per_second: float | None,
) -> Stage:
    """All updates of a recipe.

    Args:
      name: of the recipe.
      config, slice_: what and where.
      steps: of every size of batch.
      checkpoint_bytes: None where no program was made.
      price: USD per chip and hour, or None.
      checkpoint_gb_per_second: of all hosts together, or None.
    """
    seconds = None
    if all(one.found is not None for one in steps):
        seconds = sum(one.updates * one.found.step_seconds for one in steps if one.found)
    hours = None if seconds is None else seconds / _HOUR * slice_.chips
    rate = checkpoint_gb_per_second
    return Stage(
        name=name,
        slice=slice_.name,
        chips=slice_.chips,
        steps=tuple(steps),
        tokens=config.train_tokens,
        updates=sum(one.updates for one in steps),
        seconds=seconds,
        chip_hours=hours,
        cost_usd=None if hours is None or price is None else hours * price,
        checkpoint_bytes=checkpoint_bytes,
        checkpoint_seconds=None
        if checkpoint_bytes is None or rate is None
        else checkpoint_bytes / (rate * 1e9),
    )


def model_flops(config: train_lib.Train, rows: int) -> int:
    """FLOPs of a step of `rows` whole rows, over all chips: `flops.of_rows`, each one document.

    Packed documents are shorter, and their attention is worth less: see `flops`.
    """
    length = config.data.row_tokens
    segments, positions = np.ones(length, np.int32), np.arange(length)
    return rows * flops.of_rows(config.model, segments, positions)
