# SPDX-License-Identifier: Apache-2.0
"""`midjax eval --against PARENT`: what was lost since PARENT, and whether the gates hold.

PARENT --find--> its result with the same settings, or --measure--> run/eval/NAME-STEP.json
                            |
result of `midjax eval` ----+--evals.compare--> table, run/eval/NAME.against.json, exit code 6
"""

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from midjax import checkpoint, files, log, verbs
from midjax.evals import compare, pairing
from midjax.evals import recipe as eval_recipe

# A root whose model is measured, and the file's stem: its result.
Measure = Callable[[eval_recipe.Eval, str | None], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parent:
    """What a result is compared with: a result, or a run's checkpoint."""

    path: str | None = None
    run: str = ""
    step: int = 0


def split(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """(arguments without `--against PARENT`, PARENT or None)."""
    parser = argparse.ArgumentParser(prog="midjax eval", exit_on_error=False, add_help=False)
    parser.add_argument("--against", default=None)
    try:
        options, rest = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ValueError(f"{error}: give --against PARENT, a run directory.") from error
    return rest, options.against


def open_parent(given: str) -> Parent:
    """A run directory (its newest checkpoint), RUN/checkpoints/STEP, or a result's file (.json).

    Raises:
      FileNotFoundError, checkpoint.CheckpointError: it is not there.
    """
    place = files.path(given)
    if place.suffix == ".json":
        pairing.read(place)
        return Parent(path=str(place))
    step = None
    if place.parent.name == "checkpoints" and place.name.isdigit():
        given, step = str(place.parent.parent), int(place.name)
    if not checkpoint.steps(given):
        raise checkpoint.CheckpointError(
            f"--against {given}: no checkpoint there. Give a run directory, RUN/checkpoints/STEP, "
            "or the result of an evaluation (.json), such as one of a Hugging Face folder."
        )
    return Parent(run=given, step=verbs.chosen(given, step))


def check(root: eval_recipe.Eval, expected: Mapping[str, Any], parent: Parent) -> None:
    """Refuses, before anything is measured, what can't be compared afterwards.

    Args:
      expected: from `evals.run.expected`.

    Raises:
      ValueError: a gate names no score.
      pairing.IncomparableError: the parent's result was measured otherwise.
    """
    compare.check_names(pairing.scores_of(expected), root.comparison)
    if parent.path:
        pairing.check(pairing.read(parent.path), expected)


def run(root: eval_recipe.Eval, now: pairing.Measured, parent: Parent, measure: Measure) -> None:
    """Compares, prints and writes.

    Args:
      root: what was measured, and how it is compared.
      now: its result.
      parent: from `open_parent`.
      measure: `midjax eval` of another root; writes its result.

    Raises:
      compare.ForgottenError: a gate failed.
      pairing.IncomparableError: the parent's result can't be compared.
    """
    before = pairing.read(parent.path) if parent.path else _result(root, now, parent, measure)
    found = compare.compare(before, now, root.comparison)
    target = compare.path(str(now.result["run"]), root.name)
    files.write_json(target, found)
    log.say(f"against {before.where}:")
    for line in compare.table(found).splitlines():
        log.say(f"  {line}")
    for score, why in found["retention"]["left_out"].items():
        log.say(f"  not in retention: {score} ({why})")
    for score, why in found["retention"]["lost"].items():
        log.say(f"  retention is not known: {score} ({why})")
    for what in found["not_compared"]:
        log.say(f"  not compared: {what}")
    log.say(f"written to {target}")
    if not found["passed"]:
        listed = "\n  ".join(compare.failures(found))
        raise compare.ForgottenError(
            f"{now.result['run']}, step {now.result['step']}, has forgotten more than its gates "
            f"allow:\n  {listed}"
        )


def _result(
    root: eval_recipe.Eval, now: pairing.Measured, parent: Parent, measure: Measure
) -> pairing.Measured:
    """The parent's result, whatever its name, that was measured like this one; else a new one."""
    folder, stem = files.path(parent.run) / "eval", f"{root.name}-{parent.step}"
    for path in sorted(folder.glob("*.json")):
        if path.name.endswith(".against.json"):
            continue
        try:
            found = pairing.read(path)
            pairing.pairs(found, now)
        except (FileNotFoundError, pairing.IncomparableError):
            continue
        of = (found.result.get("step"), found.result.get("weights", "params"))
        if of == (parent.step, root.weights):
            return found
    log.say(f"{parent.run}, step {parent.step}, has no such result yet, and is measured:")
    # Parts without a number for each document, which are not compared, are left out.
    names = ("long", "samples", "needle", "long_tasks", "folder", "output")
    rest: dict[str, Any] = dict.fromkeys(names)
    # The parent's own may be another one.
    rest["compute_dtype"] = now.result["compute_dtype"]
    result = measure(
        dataclasses.replace(root, run=parent.run, step=parent.step, **rest),
        stem,
    )
    return pairing.of(result, folder / f"{stem}.json")
