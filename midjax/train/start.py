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

`anneal` is what OLMo 2 and 3 do (load_optim_state=True, load_trainer_state=False).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from midjax import checkpoint, files, log
from midjax.batches import loader
from midjax.train import optimizer as optimizer_lib
from midjax.train import step as step_lib

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
# Two sums of the same squares, in another order on another mesh.
NORM_TOLERANCE = 1e-4
LR_TOLERANCE = 1e-5


class StartError(ValueError):
    """The run cannot start from what the recipe names."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """Where a run begins.

    Attributes:
      kind: "fresh" (random parameters), or one of the columns above.
      run: run directory to start from; None for fresh or huggingface.
      step: its checkpoint; None for the newest valid one.
      huggingface: model folder to start from, with kind "weights".
      keep, reset: parts that differ from the kind's column.
      allow_lr_jump: lets the first learning rate differ from the one in force at the checkpoint.
    """

    kind: Literal["fresh", "resume", "anneal", "weights"]
    run: str | None
    step: int | None
    huggingface: str | None
    keep: tuple[Part, ...]
    reset: tuple[Part, ...]
    allow_lr_jump: bool

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
        if {"schedule", "step"} & self.parts and "adam_count" not in self.parts:
            raise ValueError(
                "Start keeps the schedule or the step but resets Adam's count: its bias correction "
                "would blow up the first updates. Keep 'adam_count' as well."
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


FRESH = Origin(
    kind="fresh", run=None, step=None, parts=frozenset(), data={}, manifest={}, huggingface=None
)


def choose(start: Start, run_dir: str) -> Origin:
    """Applies the precedence. Reads JSON only; arrays are verified by `build`.

    Raises:
      StartError: the named run has no checkpoint, or not that step.
    """
    if own := checkpoint.steps(run_dir):
        return _origin("own", run_dir, own[-1], frozenset(PARTS))
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


def check_fits(origin: Origin, *, shapes: Mapping[str, list[int]], tokenizer_hash: str) -> None:
    """Compares a checkpoint's parameters and tokenizer with the recipe's, by name.

    Raises:
      StartError: they differ; names the first ones with both shapes.
    """
    if not origin.manifest:
        return
    theirs = origin.manifest["shapes"]
    wrong = [
        f"{name}: checkpoint {theirs.get(name, 'absent')}, recipe {shapes.get(name, 'absent')}"
        for name in sorted(set(theirs) | set(shapes))
        if theirs.get(name) != shapes.get(name)
    ]
    if wrong:
        raise StartError(
            f"The recipe's model does not fit {origin.run}, step {origin.step}: "
            + "; ".join(wrong[:4])
            + (f"; and {len(wrong) - 4} more" if len(wrong) > 4 else "")
            + ". Use that run's model (its config.json), vocabulary included."
        )
    if (theirs_hash := origin.manifest["tokenizer_hash"]) != tokenizer_hash:
        raise StartError(
            f"{origin.run} was trained on another tokenizer ({theirs_hash[:12]}...) than this "
            f"data ({tokenizer_hash[:12]}...): its ids would mean other words. Tokenize the data "
            "with the checkpoint's tokenizer."
        )


def check_lr(origin: Origin, start: Start, first_lr: float) -> None:
    """Refuses a learning rate that jumps where the moments go on.

    Raises:
      StartError: a jump that the recipe did not ask for.
    """
    before = origin.lr_in_force
    if before is None or "moments" not in origin.parts or origin.kind == "own":
        return
    if abs(first_lr - before) <= LR_TOLERANCE * max(before, first_lr):
        return
    jump = (
        f"the learning rate in force at {origin.run}, step {origin.step}, is {before:.6g} and the "
        f"first of this schedule is {first_lr:.6g}"
    )
    if not start.allow_lr_jump:
        raise StartError(
            f"Learning rate jump: {jump}. Set Schedule.peak_lr = 'checkpoint' to go on from it, or "
            "ask for the jump with Start.allow_lr_jump = True."
        )
    log.say(f"learning rate jump, as asked for: {jump}")


def data_position(
    origin: Origin, data: loader.Data, contents: Mapping[str, str]
) -> tuple[int, dict[str, int]]:
    """(first global row, rows of each source drawn before the run) for the parts kept.

    Raises:
      StartError: the data position cannot be kept, as rows would mean other text.
    """
    if "data" not in origin.parts or not origin.data:
        return 0, {}
    theirs = origin.data
    if "step" in origin.parts:
        return int(theirs["next_row"]), dict(theirs["base_rows"])
    changed = [
        name
        for name, content in contents.items()
        if name in theirs["contents"] and theirs["contents"][name] != content
    ]
    if changed or theirs["row_tokens"] != data.row_tokens:
        raise StartError(
            f"The data position of {origin.run} cannot be kept: "
            + (f"the tokens or packing of {changed} changed" if changed else "")
            + (
                f"row_tokens was {theirs['row_tokens']} and is {data.row_tokens}"
                if theirs["row_tokens"] != data.row_tokens
                else ""
            )
            + ", so row numbers mean other text. Put 'data' in Start.reset."
        )
    return 0, dict(theirs["drawn_rows"])


def check_same_data(origin: Origin, fingerprint: str, contents: Mapping[str, str]) -> None:
    """A run whose data position and step go on must read the rows that it would have read.

    Raises:
      StartError: the mixture, seed, packing or tokens changed.
    """
    if not {"data", "step"} <= origin.parts or not origin.data:
        return
    theirs = origin.data
    if theirs["fingerprint"] != fingerprint or theirs["contents"] != dict(contents):
        raise StartError(
            f"The data differs from what {origin.run} read up to step {origin.step} (mixture, "
            "seed, packing or token folders changed), so its position means other rows. Restore "
            "them, or start a new run with Start.kind = 'anneal' (add 'data' to Start.keep to go "
            "on in each source where it was)."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Makers:
    """How parts of the state are made. Only what is asked for is computed.

    Attributes:
      abstract: the state's shapes, dtypes and shardings.
      params: fresh parameters.
      opt_state: a fresh optimizer state for given parameters.
      imported: parameters of a Hugging Face folder.
    """

    abstract: step_lib.TrainState
    params: Callable[[], Any]
    opt_state: Callable[[Any], Any]
    imported: Callable[[str], Any]


def build(origin: Origin, makers: Makers) -> step_lib.TrainState:
    """The state to train from, with proof that what was to be kept arrived.

    Raises:
      checkpoint.CheckpointError: damaged or unreadable.
      StartError: the restored norms are not those that were saved.
    """
    abstract = makers.abstract

    def count(number: int) -> jax.Array:  # a buffer of its own each time, as they are donated
        return jax.device_put(jnp.int32(number), abstract.step.sharding)

    if origin.run is None:
        folder = origin.huggingface
        params = makers.params() if folder is None else makers.imported(folder)
        return step_lib.TrainState(step=count(0), params=params, opt_state=makers.opt_state(params))
    assert origin.step is not None
    targets = {"params": abstract.params}
    if "moments" in origin.parts:
        targets["opt_state"] = optimizer_lib.to_parts(abstract.opt_state)
    restored = checkpoint.restore(origin.run, origin.step, targets)
    if "moments" in origin.parts:
        found = restored["opt_state"]
        if "schedule" not in origin.parts:
            found = found | {"schedule_count": count(0)}
        opt_state = optimizer_lib.from_parts(abstract.opt_state, found)
    else:
        opt_state = makers.opt_state(restored["params"])
    step = count(origin.step if "step" in origin.parts else 0)
    state = step_lib.TrainState(step=step, params=restored["params"], opt_state=opt_state)
    prove(origin, state)
    return state


def prove(origin: Origin, state: step_lib.TrainState) -> dict[str, float]:
    """Norms of the parts that were to be kept, compared with those in the source's manifest.

    Raises:
      StartError: a restore that did nothing, or the wrong thing.
    """
    parts = optimizer_lib.to_parts(state.opt_state)
    arrays = {"params": state.params}
    if "moments" in origin.parts:
        arrays["opt_state"] = parts
    found = checkpoint.norms(arrays)
    saved = origin.manifest["norms"]
    for name, norm in found.items():
        if not np.isclose(norm, saved[name], rtol=NORM_TOLERANCE, atol=0.0):
            raise StartError(
                f"After restoring {origin.run}, step {origin.step}, the norm of {name} is "
                f"{norm:.8g} and was {saved[name]:.8g} when saved: the restore did not arrive. "
                "Nothing was trained."
            )
    if "adam_count" in origin.parts and int(parts["adam_count"]) != origin.manifest["adam_count"]:
        raise StartError(
            f"After restoring {origin.run}, Adam's count is {int(parts['adam_count'])} and was "
            f"{origin.manifest['adam_count']} when saved."
        )
    return found


def set_aside_damaged(run_dir: str, error: checkpoint.CheckpointError, step: int) -> str:
    """Moves this run's damaged checkpoint out of the way and says so; returns its new name.

    Raises:
      StartError: it was the only one: going on would mean step 0.
    """
    if len(checkpoint.steps(run_dir)) == 1:
        raise StartError(
            f"The only checkpoint of {run_dir}, step {step}, is damaged ({error}). Going on would "
            f"mean starting over. Mend it or delete {files.path(run_dir)} if that is what you want."
        ) from error
    moved = checkpoint.set_aside(run_dir, step)
    log.say(f"checkpoint {step} is damaged, moved to {moved}: {error}")
    return moved
