# SPDX-License-Identifier: Apache-2.0
"""What must agree between the place that a run starts from and its recipe.

All of it is known from JSON, before a device is touched. Every function raises
`start.StartError`, with both sides and what to do.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from midjax import files, log, trees
from midjax.batches import loader as loader_lib
from midjax.mixture import order as order_lib
from midjax.model import architecture, hf
from midjax.train import start as start_lib
from midjax.train import timeline as timeline_lib
from midjax.train.optimizers import carry as carry_lib

LR_TOLERANCE = 1e-5
_ROPES = ("rope", "window_rope")
# Fields of a model that do not decide what its parameters compute. Rotary embeddings and
# `context_tokens` may change together, which is what an extension is.
_FREE = (
    *_ROPES,
    "context_tokens",
    "family",
    "attention_kernel",
    "param_dtype",
    "compute_dtype",
    "head_dtype",
    "remat",
    "loss_chunk_tokens",
    "initializer_std",
    "quantization",
)


def model(where: str, theirs: Mapping[str, Any], wanted: architecture.TransformerConfig) -> None:
    """The model at the start computes what the recipe's would, but for an extended context.

    Args:
      where: the start, for the message.
      theirs: its model, as `dataclasses.asdict` or JSON gives it.
      wanted: the recipe's.
    """
    theirs, ours = _plain(theirs), _plain(dataclasses.asdict(wanted))
    wrong = [
        f"{name}: there {theirs.get(name, 'absent')}, recipe {value}"
        for name, value in ours.items()
        if name not in _FREE and theirs.get(name) != value
    ]
    if wrong:
        raise start_lib.StartError(
            f"The recipe's model does not fit {where}: {trees.listed(wrong)}. Use the model "
            "of the checkpoint."
        )
    for name in _ROPES:
        there = theirs.get(name)
        if there == ours[name] or ours["context_tokens"] > theirs["context_tokens"]:
            continue
        raise start_lib.StartError(
            f"The recipe's rotary embedding differs from that of {where}, and its context "
            f"({ours['context_tokens']} tokens) is not longer: {name} there {there}, recipe "
            f"{ours[name]}. Use theirs, which the parameters know, or extend the context."
        )


def _plain(tree: Any) -> Any:
    """As JSON gives it back: tuples are lists."""
    return json.loads(json.dumps(tree))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taken:
    """What becomes of a checkpoint's arrays.

    Attributes:
      casts: "params/embed" -> "float32 -> bfloat16": parameters that change their dtype after they
        were verified.
      moments: what the recipe's optimizer takes over, and what is new to it; None where moments are
        reset.
    """

    casts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    moments: carry_lib.Carried | None = None

    def told(self) -> list[str]:
        """Sentences for the log; none where everything is as it was saved."""
        said = [f"params cast, {what}" for what in trees.grouped(self.casts)]
        return said + (self.moments.told() if self.moments else [])


def arrays(origin: start_lib.Origin, params: Any, opt_state: Mapping[str, Any]) -> Taken:
    """The checkpoint's parameters have the names and shapes of the recipe's.

    Args:
      origin: where the run starts.
      params: shapes of the recipe's parameters.
      opt_state: shapes of its optimizer's state, as `optimizer.to_parts` gives it.
    """
    saved, targets = origin.manifest["arrays"], {"params": params}
    if wrong := trees.mismatches(saved, trees.as_saved(saved, targets)):
        raise start_lib.StartError(
            f"The recipe does not fit {origin.run}, step {origin.step}: "
            f"{trees.listed(wrong)}. Use that run's model (its config.json), vocabulary included."
        )
    casts = trees.casts(saved, targets)
    if "moments" not in origin.parts:
        return Taken(casts=casts)
    wanted = trees.describe({"opt_state": dict(opt_state)})
    return Taken(casts=casts, moments=carry_lib.carry(saved, wanted))


def tokenizer(where: str, theirs: str | None, ours: str) -> None:
    """Ids mean the same words: both hashes are of `tokenizer.json`; None is not known."""
    if theirs is None:
        log.say(f"{where} came without a tokenizer: whether it is the data's cannot be checked")
    elif theirs != ours:
        raise start_lib.StartError(
            f"{where} was trained on another tokenizer ({theirs[:12]}...) than this data "
            f"({ours[:12]}...): its ids would mean other words. Tokenize the data with the "
            "checkpoint's tokenizer."
        )


def huggingface(folder: str, wanted: architecture.TransformerConfig, tokenizer_hash: str) -> None:
    """A folder to import: its config.json and tokenizer.json against the recipe's."""
    model(folder, dataclasses.asdict(hf.read_config(folder)), wanted)
    file = files.path(folder) / "tokenizer.json"
    if file.exists():
        tokenizer(folder, files.sha256_of(file), tokenizer_hash)
    else:
        log.say(f"{folder} has no tokenizer.json: whether it is the data's cannot be checked")


def imported(origin: start_lib.Origin) -> None:
    """What is to be kept is there: an imported checkpoint has no data position.

    It has moments only if the training that it comes from kept them.
    """
    if origin.run is None or origin.data:
        return
    where = f"{origin.run}, step {origin.step}, was imported and"
    if origin.kind == "own":
        raise start_lib.StartError(
            f"Train.run_dir = {origin.run!r} holds an imported checkpoint, not one of this run. "
            "Give the run a folder of its own and name the imported one in Start.run."
        )
    if origin.parts & {"data", "rng"}:
        raise start_lib.StartError(
            f"{where} holds no position in any data. Put 'data' and 'rng' in Start.reset, or use "
            "Start.kind = 'anneal'."
        )
    if "schedule" in origin.parts and origin.manifest["schedule_count"] is None:
        raise start_lib.StartError(
            f"{where} holds no position on any schedule. Put 'schedule' in Start.reset."
        )
    if "moments" in origin.parts and origin.manifest["adam_count"] is None:
        raise start_lib.StartError(
            f"{where} holds no moments of Adam, as its source had none. Use Start.kind = 'weights'."
        )


def learning_rate(
    origin: start_lib.Origin, start: start_lib.Start, first_lr: float, factor: float
) -> dict[str, Any] | None:
    """The rate does not jump where the moments go on, unless the recipe says why.

    Args:
      origin, start: where the run starts.
      first_lr: of its first update.
      factor: by which the batch rule, which the recipe named, changes the rate for another batch.

    Returns:
      The newest jump of this run, for its manifest: {"from", "to", "reason", "step"}, with the one
      before it as "earlier"; None where there was none.
    """
    earlier = origin.manifest["lr"].get("jump") if origin.kind == "own" else None
    before = origin.lr_in_force
    if before is None or "moments" not in origin.parts:
        return earlier
    before *= factor
    if abs(first_lr - before) <= LR_TOLERANCE * max(before, first_lr):
        return earlier
    jump = (
        f"the learning rate in force at {origin.run}, step {origin.step}, is {before:.6g}"
        + (f" (for this batch, {factor:.6g} times what it was)" if factor != 1 else "")
        + f" and the first of this schedule is {first_lr:.6g}"
    )
    if start.allow_lr_jump is None:
        raise start_lib.StartError(
            f"Learning rate jump: {jump}. "
            + (
                "Undo what moved it (the batch, its rule, the phases), or "
                if origin.kind == "own"
                else "Set Schedule.peak_lr = 'checkpoint' to go on from it, or "
            )
            + "say why it may jump in Start.allow_lr_jump."
        )
    log.say(f"learning rate jump, as asked for ({start.allow_lr_jump}): {jump}")
    found = {
        "from": before,
        "to": first_lr,
        "reason": start.allow_lr_jump,
        "step": origin.step if "step" in origin.parts else 0,
    }
    return found | {"earlier": earlier} if earlier else found


def steps(origin: start_lib.Origin, timeline: timeline_lib.Timeline) -> None:
    """A kept step leaves something to train."""
    if "step" not in origin.parts or origin.step is None:
        return
    if not origin.data:
        log.say(f"{origin.run} was imported: its step is kept, whatever batches it counted")
    if origin.kind != "own" and timeline.first_tokens >= timeline.train_tokens:
        raise start_lib.StartError(
            f"{origin.run} is at step {origin.step}, after {timeline.first_tokens} tokens, which "
            f"is kept, and Train.train_tokens is {timeline.train_tokens}: nothing is left to "
            "train. Raise it, as it counts from the beginning of that run, or put 'step' in "
            "Start.reset."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run goes on in its data.

    Attributes:
      first_row: global row of the first update.
      base_rows: source -> rows drawn before the run, those of sources that the mixture leaves out
        too.
      past: what earlier mixtures of the run drew, up to the one in force.
      mixtures: the run's mixtures so far, oldest first, as its checkpoint tells them.
      changed: the recipe's mixture is not the last of them: it is a new stage from `first_row` on.
    """

    first_row: int = 0
    base_rows: Mapping[str, int] = dataclasses.field(default_factory=dict)
    past: order_lib.Past = order_lib.NOTHING
    mixtures: tuple[Mapping[str, Any], ...] = ()
    changed: bool = False


def data_position(
    origin: start_lib.Origin,
    data: loader_lib.Data,
    contents: Mapping[str, str],
    recipe_seed: int,
    fingerprint: Callable[[Position], str],
) -> Position:
    """Where each source stands, for the parts that are kept.

    Where the step goes on, a changed mixture is a new stage from the next row on; the rows before
    stay what they were, and every source goes on at its own place.

    Args:
      origin: where the run starts.
      data: the recipe's, with the seed in force.
      contents: `Opened.contents`.
      recipe_seed: what the recipe says; the seed in force may be a kept one.
      fingerprint: of the recipe's order at a position, see `Order.fingerprint`.
    """
    if "data" not in origin.parts or not origin.data:
        return Position()
    theirs = origin.data
    _same_text(origin, data, contents, recipe_seed)
    if "step" not in origin.parts:
        return Position(base_rows=dict(theirs["drawn_rows"]))
    last = theirs["mixtures"][-1]
    found = Position(
        first_row=int(theirs["next_row"]),
        base_rows=dict(theirs["base_rows"]),
        past=order_lib.Past(first_row=last["first_row"], drawn=dict(last["drawn_rows"])),
        mixtures=tuple(theirs["mixtures"]),
    )
    if fingerprint(found) == last["fingerprint"]:
        return found
    before = found.base_rows
    drawn = {name: rows - before.get(name, 0) for name, rows in theirs["drawn_rows"].items()}
    past = order_lib.Past(first_row=found.first_row, drawn=drawn)
    return dataclasses.replace(found, past=past, changed=True)


def _same_text(
    origin: start_lib.Origin,
    data: loader_lib.Data,
    contents: Mapping[str, str],
    recipe_seed: int,
) -> None:
    """Row numbers of each source mean the rows that they meant."""
    theirs = origin.data
    wrong = [
        f"the tokens or packing of {name!r} changed"
        for name, content in contents.items()
        if theirs["contents"].get(name, content) != content
    ]
    if theirs["row_tokens"] != data.row_tokens:
        wrong.append(f"row_tokens was {theirs['row_tokens']} and is {data.row_tokens}")
    if theirs["seed"] != data.mixture.seed:
        wrong.append(
            f"Mixture.seed was {theirs['seed']} and is {data.mixture.seed} (put 'rng' in "
            "Start.keep)"
        )
    elif origin.kind == "own" and theirs["recipe_seed"] != recipe_seed:
        wrong.append(f"Mixture.seed was {theirs['recipe_seed']} and is {recipe_seed}")
    if wrong:
        advice = "or start a new run" if origin.kind == "own" else "or put 'data' in Start.reset"
        raise start_lib.StartError(
            f"The data position of {origin.run}, step {origin.step}, cannot be kept, as its row "
            f"numbers mean other text: {'; '.join(wrong)}. Undo the change, {advice}."
        )


def same_rows(origin: start_lib.Origin, position: Position, loader: loader_lib.Loader) -> None:
    """The rows before the position, computed anew, are those that the run read.

    Args:
      origin: where the run starts.
      position: `data_position` of it.
      loader: of this run.
    """
    if not {"data", "step"} <= origin.parts or not origin.data:
        return
    theirs = origin.data
    if position.changed:
        pairs = zip(theirs["last_rows"], theirs["last_numbers"], strict=True)
        same = all(
            loader.row_id(name, number) == row
            for (name, row), number in pairs
            if name in loader.names
        )
    else:
        same = theirs["last_rows"] == loader.last_rows(theirs["next_row"])
    if not same:
        raise start_lib.StartError(
            f"The same recipe and data give other rows than {origin.run} read before step "
            f"{origin.step}: this midjax orders rows differently. It was written by midjax "
            f"{theirs['midjax']}; install that version to resume it."
        )
