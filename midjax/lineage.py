# SPDX-License-Identifier: Apache-2.0
"""Where a checkpoint comes from: every stage since pretraining, told by its own manifest.

stages of the parent + this run's own --extended--> manifest["lineage"] --of--> stages

A stage is a JSON object, and the oldest comes first. What is not a run of midjax has one key:
"imported from", "Hugging Face folder" or "average of". A run has

    run, step, hash             the checkpoint that the next stage began from; `hash` is its seal,
                                which is over the digests of all arrays
    recipe                      path, hash and content of its config.json; None where there is none
    mixtures                    step, first_row and fingerprint of each, and the mixture itself
    learning rate               of its first and of its newest update, and a jump at its beginning
    tokens by source            what it drew itself
    tokens by source in all     what was drawn since pretraining; see `totals`
    midjax                      version

Each checkpoint holds all of them, so nothing is lost with the folder of an older run.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import midjax
from midjax import checkpoint, files, units

Stage = dict[str, Any]


def of(run_dir: str, step: int) -> list[Stage]:
    """The stages of a checkpoint, its own last.

    Raises:
      CheckpointError: there is no such checkpoint, or its JSON is not what was saved.
    """
    facts = checkpoint.read_facts(run_dir, step)
    return told(run_dir, step, data=facts["data"], manifest=facts["manifest"])


def told(
    run_dir: str, step: int, *, data: Mapping[str, Any], manifest: Mapping[str, Any]
) -> list[Stage]:
    """`of`, for a checkpoint whose JSON items have been read.

    One of format 3 holds its parent's name alone: older stages are looked up where they lie, and
    end early, with the name, at a checkpoint that is gone.
    """
    if "lineage" in manifest:
        *before, own = manifest["lineage"]
        return [*before, own | {"run": run_dir, "hash": manifest["seal"]}]
    before = _looked_up(manifest["parent"])
    stages = extended(before, stage(run_dir, step, data=data, facts=manifest, recipe=None))
    return [*before, stages[-1] | {"hash": manifest.get("seal")}]


def _looked_up(parent: Mapping[str, Any]) -> list[Stage]:
    if parent.get("imported"):
        return [{"imported from": parent["imported"]}]
    if parent.get("averaged"):
        return [{"average of": parent["averaged"]}]
    if parent["huggingface"]:
        return [{"Hugging Face folder": parent["huggingface"]}]
    if not parent["run"]:
        return []
    try:
        return of(parent["run"], parent["step"])
    except checkpoint.CheckpointError:
        return [{"run": parent["run"], "step": parent["step"]}]


def stage(
    run_dir: str,
    step: int,
    *,
    data: Mapping[str, Any],
    facts: Mapping[str, Any],
    recipe: Mapping[str, Any] | None,
) -> Stage:
    """A run's own stage, for the manifest of its checkpoint at `step`.

    Args:
      run_dir, step: where it is saved.
      data: the item of that name; empty where nothing was drawn.
      facts: the manifest; of it "lr" is used: "first", "last" and "jump".
      recipe: `recipe_of` the run.
    """
    found: Stage = {"run": run_dir, "step": step}
    if not data:
        return found
    begun, length = data["begun_rows"], data["row_tokens"]
    return found | {
        "recipe": recipe and dict(recipe),
        "mixtures": [
            {key: mixture[key] for key in ("step", "first_row", "fingerprint", "mixture")}
            for mixture in data["mixtures"]
        ],
        "learning rate": {name: facts["lr"].get(name) for name in ("first", "last", "jump")},
        "tokens by source": {
            name: (rows - begun.get(name, 0)) * length for name, rows in data["drawn_rows"].items()
        },
        "midjax": data.get("midjax", midjax.__version__),
    }


def recipe_of(run_dir: str) -> dict[str, Any] | None:
    """Path, SHA-256 and content of the recipe that lies in a run's folder."""
    place = files.path(run_dir) / "config.json"
    if not place.is_file():
        return None
    return {"path": str(place), "hash": files.sha256_of(place), "content": files.read_json(place)}


def extended(before: Sequence[Stage], own: Stage) -> list[Stage]:
    """What a manifest holds: the stages before the run, and its own with the tokens in all."""
    if "tokens by source" not in own:
        return [*before, own]
    return [*before, own | {"tokens by source in all": totals([*before, own])}]


def totals(stages: Iterable[Stage]) -> dict[str, int]:
    """Source -> tokens that these stages drew of it, forebears of averages included.

    A run that several ingredients of an average come from counts once, as far as any of them
    followed it. Runs are told apart by their folder and by what they began from, as a folder's name
    may be used again; sources by name. What was drawn before an import is not known.
    """
    furthest: dict[tuple[str, str], Stage] = {}
    for parent, one in _runs(stages):
        key = one["run"], parent
        if one["step"] >= furthest.get(key, one)["step"]:
            furthest[key] = one
    summed: dict[str, int] = {}
    for one in furthest.values():
        for name, tokens in one.get("tokens by source", {}).items():
            summed[name] = summed.get(name, 0) + tokens
    return dict(sorted(summed.items()))


def _runs(stages: Iterable[Stage]) -> Iterable[tuple[str, Stage]]:
    """(what it began from, stage) of every run."""
    parent = ""
    for one in stages:
        if "run" in one:
            yield parent, one
        parent = one.get("hash") or files.sha256(json.dumps(one, sort_keys=True).encode())
        for ingredient in one.get("average of", {}).get("ingredients", ()):
            yield from _runs(ingredient.get("stages, oldest first", ()))


def where(one: Stage) -> str:
    """Whether the checkpoint of a run's stage still lies where it did.

    Returns:
      "there"; "gone"; "another": one of that name whose hash is not the stage's; "unknown": the
      stage was told without a hash.
    """
    try:
        seal = checkpoint.read_facts(one["run"], one["step"])["manifest"]["seal"]
    except checkpoint.CheckpointError:
        return "gone"
    if one.get("hash") is None:
        return "unknown"
    return "there" if seal == one["hash"] else "another"


def brief(stages: Sequence[Stage]) -> list[Stage]:
    """The stages for people: of recipes and mixtures the hashes only."""
    return [_brief(one) for one in stages]


def _brief(one: Stage) -> Stage:
    found = dict(one)
    if one.get("recipe"):
        found["recipe"] = {key: one["recipe"][key] for key in ("path", "hash")}
    if "mixtures" in one:
        found["mixtures"] = [
            {key: value for key, value in mixture.items() if key != "mixture"}
            for mixture in one["mixtures"]
        ]
    if "average of" in one:
        inner = "stages, oldest first"
        ingredients = [
            x | {inner: brief(x[inner])} if inner in x else x
            for x in one["average of"]["ingredients"]
        ]
        found["average of"] = one["average of"] | {"ingredients": ingredients}
    return found


def text(stages: Sequence[Stage], indent: str = "") -> str:
    """Stages as `midjax show lineage` prints them."""
    lines: list[str] = []
    for number, one in enumerate(stages, 1):
        head, *rest = _lines(one)
        lines += [f"{indent}{number}. {head}", *(f"{indent}   {line}" for line in rest)]
    return "\n".join(lines)


_STATES = {"gone": " (gone)", "another": " (ANOTHER checkpoint lies there now)"}


def _lines(one: Stage) -> list[str]:
    if "average of" in one:
        average = one["average of"]
        lines = [f"average, {average['method']}"]
        for x in average["ingredients"]:
            lines.append(f"{x['weight']:.4g} of {x['run']}, step {x['step']}, hash {_short(x)}")
            lines += text(x.get("stages, oldest first", ()), "  ").splitlines()
        return lines
    if "run" not in one:
        ((kind, what),) = one.items()
        facts = what.items() if isinstance(what, dict) else [("", what)]
        return [f"{kind} " + ", ".join(f"{key} {value}".strip() for key, value in facts)]
    lines = [f"{one['run']}, step {one['step']}{_STATES.get(where(one), '')}"]
    lines.append(f"hash {_short(one)}" + (f", midjax {one['midjax']}" if "midjax" in one else ""))
    if recipe := one.get("recipe"):
        lines.append(f"recipe {recipe['path']}, hash {_short(recipe)}")
    if rate := one.get("learning rate"):
        first = "unknown" if rate["first"] is None else f"{rate['first']:.6g}"
        lines.append(f"learning rate {first} at its first update, {rate['last']:.6g} at its last")
        if jump := rate["jump"]:
            what = f"{jump['from']:.6g} -> {jump['to']:.6g}, {jump['reason']}"
            lines.append(f"it jumped at the beginning: {what}")
    for mixture in one.get("mixtures", ()):
        lines.append(f"mixture {mixture['fingerprint'][:12]} from step {mixture['step'] + 1} on")
    every = one.get("tokens by source in all", {})
    for name, tokens in one.get("tokens by source", {}).items():
        since = units.human(every.get(name, tokens))
        lines.append(f"{name}: {units.human(tokens)} tokens, {since} since pretraining")
    return lines


def _short(one: Mapping[str, Any]) -> str:
    return (one.get("hash") or "unknown")[:12]
