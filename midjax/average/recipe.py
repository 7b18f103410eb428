# SPDX-License-Identifier: Apache-2.0
"""The root of the verb `average`, and what it does: choose, average, write a run directory."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from midjax import checkpoint, files, log, trees
from midjax.average import greedy, ingredients, merge
from midjax.average.ingredients import AverageError, Find, Ingredient
from midjax.average.methods import GreedySoup, Interpolation, LastN, Soup
from midjax.model import architecture, sharding, transformer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Average:
    """Several checkpoints of one model, to become one.

    Attributes:
      output: the run directory to write. Its checkpoint holds parameters only and has the step of
        the newest ingredient.
      method: which checkpoints, which weights.
      mesh: devices that the arrays pass through, and on which a greedy soup is scored.
    """

    output: str
    method: LastN | Soup | GreedySoup | Interpolation
    mesh: sharding.Mesh

    def __post_init__(self) -> None:
        if "://" in self.output:
            raise ValueError(
                f"Average.output = {self.output!r}: runs are written to local disks only, so far."
            )


# (recipe, model, mesh, hash of the tokenizer) -> score; refuses what cannot be scored.
Scorer = Callable[
    [Average, architecture.TransformerConfig, jax.sharding.Mesh, str | None], greedy.Score
]


def run(config: Average, *, find: Find, scorer: Scorer) -> architecture.TransformerConfig:
    """Writes `output/checkpoints/<step>`, `output/average.json` and, where found, `tokenizer/`.

    Args:
      config: the recipe.
      find: opens a checkpoint's JSON.
      scorer: makes the score of a greedy soup; called before any array is read.

    Returns:
      The model.

    Raises:
      AverageError: the checkpoints are not of one model, or `output` is taken.
      CheckpointError: one is missing, damaged or out of reach; names it.
    """
    if taken := checkpoint.steps(config.output):
        raise AverageError(
            f"{config.output} holds the checkpoints {taken} already. Name another folder, or "
            "delete it."
        )
    found = ingredients.gather(config.method.checkpoints(), find)
    tokenizer_hash = ingredients.check(found)
    model, mesh = found[0].model, sharding.make(config.mesh)
    targets = _targets(model, mesh)
    trials: list[greedy.Trial] = []
    log.say(f"average of {len(found)} checkpoints, {type(config.method).__name__}")
    members = list(range(len(found)))
    if isinstance(config.method, GreedySoup):
        score = scorer(config, model, mesh, tokenizer_hash)
        members, trials = greedy.choose(
            [one.place for one in found],
            lambda chosen: _mixed([found[i] for i in chosen], None, targets),
            score,
        )
        weights = [1.0 / len(members)] * len(members)
    else:
        weights = config.method.shares()
    taken_up = [found[i] for i in members]
    params = _mixed(taken_up, weights, targets)
    record = {
        "method": type(config.method).__name__,
        "step": max(one.step for one in taken_up),
        "ingredients": _record(taken_up, weights),
        "left out": [_name(one) for i, one in enumerate(found) if i not in members],
        "scored": [_trial(trial, found) for trial in trials],
    }
    _write(config, model, params, record, tokenizer_hash=tokenizer_hash, found=taken_up, mesh=mesh)
    return model


def _targets(model: architecture.TransformerConfig, mesh: jax.sharding.Mesh) -> Any:
    abstract = transformer.abstract(model)
    shardings = sharding.tree(mesh, transformer.logical_axes(model), abstract)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
    )


def _mixed(found: Sequence[Ingredient], weights: Sequence[float] | None, targets: Any) -> Any:
    return merge.mean(found, weights or [1.0 / len(found)] * len(found), targets)


def _name(one: Ingredient) -> dict[str, Any]:
    return {"run": one.run, "step": one.step}


def _record(found: Sequence[Ingredient], weights: Sequence[float]) -> list[dict[str, Any]]:
    """What the manifest keeps of each ingredient, so that it is known when that is gone."""
    return [
        _name(one)
        | {
            "weight": weight,
            "hash": one.hash,
            "stages, oldest first": checkpoint.lineage(one.run, one.step),
        }
        for one, weight in zip(found, weights, strict=True)
    ]


def _trial(trial: greedy.Trial, found: Sequence[Ingredient]) -> dict[str, Any]:
    return {
        "ingredients": [_name(found[i]) for i in trial.members],
        "bits per byte": trial.domains,
        "mean": trial.mean,
        "kept": trial.kept,
    }


def _write(
    config: Average,
    model: architecture.TransformerConfig,
    params: Any,
    record: Mapping[str, Any],
    *,
    tokenizer_hash: str | None,
    found: Sequence[Ingredient],
    mesh: jax.sharding.Mesh,
) -> None:
    facts = {
        "step": record["step"],
        "adam_count": None,
        "schedule_count": None,
        "lr": {"last": None, "next": None},
        "peak_lr": None,
        "model": dataclasses.asdict(model),
        "tokenizer_hash": tokenizer_hash,
        "parent": {
            "run": None,
            "step": None,
            "huggingface": None,
            "averaged": {key: record[key] for key in ("method", "ingredients")},
        },
        "versions": {"jax": jax.__version__},
    }
    with jax.set_mesh(mesh):
        norm = trees.norms({"params": params})["params"]
        if not math.isfinite(norm):
            raise AverageError(
                f"The average is not finite (its norm is {norm}), though its ingredients are: its "
                f"numbers exceed {model.param_dtype}. Choose weights nearer to [0, 1]."
            )
        tokenizer = _copy_tokenizer(found, tokenizer_hash, config.output)
        keep = checkpoint.Keep(every_steps=1, last=1, forever_every_steps=None)
        with checkpoint.Store(config.output, keep) as store:
            store.save(record["step"], params=params, opt_state=None, data={}, facts=facts)
    record = dict(record) | {"norm": norm, "tokenizer": tokenizer}
    files.write_json(files.path(config.output) / "average.json", record)
    for one, kept in zip(found, record["ingredients"], strict=True):
        log.say(
            f"  {kept['weight']:.6g} of {one.place}: norm {one.manifest['norms']['params']:.6g}"
        )
    if tokenizer is None:
        log.say("  no run that it comes from holds the tokenizer's files: name them to export")
    log.say(f"norm {norm:.6g}; written to {config.output}; average.json says what is in it")


def _copy_tokenizer(found: Sequence[Ingredient], wanted: str | None, output: str) -> str | None:
    """Copies tokenizer/ of the first ingredient, or forebear of one, that has it; says where from.

    An import has the folder; a run that started from one has not, and its lineage leads there.
    """
    runs: dict[str, None] = {}
    for one in found:
        stages = checkpoint.lineage(one.run, one.step)
        runs |= dict.fromkeys(stage["run"] for stage in reversed(stages) if "run" in stage)
    for run_dir in runs:
        folder = files.path(run_dir) / "tokenizer"
        if (folder / "tokenizer.json").exists():
            if files.sha256_of(folder / "tokenizer.json") != wanted:
                continue
            for file in sorted(folder.iterdir()):
                if not file.is_dir():
                    target = files.path(output) / "tokenizer" / file.name
                    files.write_bytes(target, file.read_bytes())
            return str(folder)
    return None
