# SPDX-License-Identifier: Apache-2.0
"""What a run's state starts from, part by part.

Precedence, first match wins:

    1. this run's own newest valid checkpoint     everything kept: the same command resumes
    2. `Start.run`, another run's checkpoint      parts as `Start.kind` says
    3. `Start.huggingface`, a model folder        parameters only
    4. fresh                                      only where the recipe says kind = "fresh"

    part            resume  anneal  weights
    params          keep    keep    keep
    moments         keep    keep    reset    Adam's mu and nu
    adam_count      keep    keep    reset    age of the moments (bias correction)
    schedule        keep    reset   reset    position on the learning rate curve
    step            keep    reset   reset    updates counted and train_tokens used
    data            keep    reset   reset    position in each source
    rng             keep    reset   reset    seed of the data order

Any part can be kept or reset by itself, but for two: moments and their age go together, and params
are kept by every start that is not fresh. A schedule whose place is kept while the step is reset
goes on for all of train_tokens from there; a kept step with a new schedule leaves it what is left.

`anneal` is what OLMo 2 and 3 do (load_optim_state=True, load_trainer_state=False). A checkpoint
that `midjax import` wrote is another run's checkpoint without `data` and `rng`, and without
moments where its source had none.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

from midjax import checkpoint, files, lineage, log

Part = Literal["params", "moments", "adam_count", "schedule", "step", "data", "rng"]
PARTS: tuple[Part, ...] = (
    "params",
    "moments",
    "adam_count",
    "schedule",
    "step",
    "data",
    "rng",
)
KEPT: dict[str, tuple[Part, ...]] = {
    "fresh": (),
    "weights": ("params",),
    "anneal": ("params", "moments", "adam_count"),
    "resume": PARTS,
}


class StartError(ValueError):
    """The run cannot start from what the recipe names."""


class UnusableError(StartError):
    """Nothing is left that the run could go on from, and it is for people to decide."""

    exit_code = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """Where a run begins.

    Attributes:
      kind: "fresh" (random parameters), or one of the columns above.
      run: run directory to start from; None for fresh or huggingface.
      step: its checkpoint; None for the newest.
      huggingface: model folder to start from, with kind "weights".
      keep, reset: parts that differ from the kind's column.
      allow_lr_jump: why the first learning rate may differ from the one in force at the checkpoint,
        for the log and the manifest; None: it may not.
    """

    kind: Literal["fresh", "resume", "anneal", "weights"]
    run: str | None
    step: int | None
    huggingface: str | None
    keep: tuple[Part, ...]
    reset: tuple[Part, ...]
    allow_lr_jump: str | None

    def __post_init__(self) -> None:
        if both := sorted(set(self.keep) & set(self.reset)):
            raise ValueError(f"Start.keep and Start.reset both name {both}.")
        places = (self.run is not None) + (self.huggingface is not None)
        if (self.kind == "fresh") != (places == 0) or places > 1:
            raise ValueError(
                f"Start.kind = {self.kind!r} with run = {self.run!r}, huggingface = "
                f"{self.huggingface!r}: 'fresh' takes neither, every other kind exactly one."
            )
        if self.kind == "fresh" and (self.keep or self.step is not None):
            raise ValueError("Start.kind = 'fresh' has nothing to keep and no step.")
        if self.huggingface is not None and self.parts != {"params"}:
            raise ValueError(
                "A Hugging Face folder holds parameters only: use Start.kind = 'weights' and keep "
                f"nothing else, got {sorted(self.parts)}."
            )
        if "params" not in self.parts and self.kind != "fresh":
            raise ValueError("Start.reset cannot name 'params': that would be a fresh start.")
        if self.allow_lr_jump is not None and not self.allow_lr_jump.strip():
            raise ValueError(
                "Start.allow_lr_jump is the reason for the jump, in words; None allows none."
            )
        if ("moments" in self.parts) != ("adam_count" in self.parts):
            raise ValueError(
                "Start keeps only one of 'moments' and 'adam_count'. Old moments with a count of 0 "
                "make first updates of the wrong size (0.3x with b2 = .999); keep or reset both."
            )

    @property
    def parts(self) -> set[Part]:
        """Parts that are kept."""
        return (set(KEPT[self.kind]) | set(self.keep)) - set(self.reset)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """A checkpoint that was chosen, known from its JSON alone: no array has been read.

    Attributes:
      kind: "own" or the recipe's kind.
      run, step: which checkpoint; None when fresh or from Hugging Face.
      parts: parts to keep.
      data, manifest: its JSON items; empty when there are none.
      huggingface: model folder.
    """

    kind: str
    run: str | None
    step: int | None
    parts: frozenset[Part]
    data: Mapping[str, Any]
    manifest: Mapping[str, Any]
    huggingface: str | None

    @property
    def lr_in_force(self) -> float | None:
        """Learning rate that the next update would have had there."""
        return self.manifest.get("lr", {}).get("next")

    @functools.cached_property
    def ancestors(self) -> list[lineage.Stage]:
        """Every stage before the run's own, oldest first."""
        if self.huggingface is not None:
            return [{"Hugging Face folder": self.huggingface}]
        if self.run is None or self.step is None:
            return []
        stages = lineage.told(self.run, self.step, data=self.data, manifest=self.manifest)
        return stages[:-1] if self.kind == "own" else stages


FRESH = Origin(
    kind="fresh", run=None, step=None, parts=frozenset(), data={}, manifest={}, huggingface=None
)


def choose(start: Start, run_dir: str) -> Origin:
    """Applies the precedence. Reads JSON only; arrays are verified when they are restored.

    Raises:
      StartError: the named run has no checkpoint, or not that step.
      checkpoint.DamagedError: the JSON of the chosen checkpoint is not what was saved.
    """
    if found := checkpoint.steps(run_dir):
        return own(run_dir, found[-1])
    if start.huggingface is not None:
        return dataclasses.replace(
            FRESH, kind=start.kind, parts=frozenset(start.parts), huggingface=start.huggingface
        )
    if start.run is None:
        return FRESH
    found = checkpoint.steps(start.run)
    if not found:
        raise StartError(
            f"Start.run = {start.run!r} holds no finished checkpoint "
            f"(looked in {checkpoint.folder(start.run)}). Train it first, or name another run. "
            "Nothing was started from scratch."
        )
    if start.step is not None and start.step not in found:
        raise StartError(f"Start.step = {start.step}, and {start.run!r} holds the steps {found}.")
    chosen = found[-1] if start.step is None else start.step
    return _origin(start.kind, start.run, chosen, frozenset(start.parts))


def own(run_dir: str, step: int) -> Origin:
    """A run's own checkpoint: all of it is kept."""
    return _origin("own", run_dir, step, frozenset(PARTS))


def _origin(kind: str, run: str, step: int, parts: frozenset[Part]) -> Origin:
    facts = checkpoint.read_facts(run, step)
    return Origin(
        kind=kind,
        run=run,
        step=step,
        parts=parts,
        data=facts["data"],
        manifest=facts["manifest"],
        huggingface=None,
    )


def set_aside_damaged(error: checkpoint.DamagedError) -> str:
    """Moves a run's own damaged checkpoint out of the way and says so; returns its new name.

    Raises:
      UnusableError: it was the only one: going on would mean step 0.
    """
    if len(checkpoint.steps(error.run_dir)) == 1:
        raise UnusableError(
            f"The only checkpoint is damaged: {error} Going on would mean starting over. Mend it, "
            f"or delete {files.path(error.run_dir)} if that is what you want."
        ) from error
    moved = checkpoint.set_aside(error.run_dir, error.step)
    log.say(f"checkpoint {error.step} is damaged, moved to {moved}: {error}")
    return moved
