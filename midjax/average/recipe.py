# SPDX-License-Identifier: Apache-2.0
"""The root of the verb `average`, and what it does: choose, average, write a run directory."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from midjax import checkpoint, files, lineage, log, trees
from midjax.average import greedy, ingredients, merge, methods
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
    method: methods.LastN | methods.Soup | methods.GreedySoup | methods.Interpolation
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


def run(
    config: Average, *, find: ingredients.Find, scorer: Scorer
) -> architecture.TransformerConfig:
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
        raise ingredients.AverageError(
            f"{config.output} holds the checkpoints {taken} already. Name another folder, or "
            "delete it."
        )
    found = ingredients.gather(config.method.checkpoints(), find)
    tokenizer_hash = ingredients.check(found)
    model, mesh = found[0].model, sharding.make(config.mesh)
    targets = _targets(model, mesh)
    log.say(f"average of {len(found)} checkpoints, {type(config.method).__name__}")
    if isinstance(config.method, methods.GreedySoup):
        score = scorer(config, model, mesh, tokenizer_hash)
        members, trials = _greedy(found, targets, score)
        weights = [1.0] * len(members)
    else:
        members, trials, weights = list(range(len(found))), [], config.method.parts()
    taken_up = [found[i] for i in members]
    record: dict[str, Any] = {
        "method": type(config.method).__name__,
        "step": max(one.step for one in taken_up),
        "ingredients": _record(taken_up, weights),
        "left out": [_name(one) for i, one in enumerate(found) if i not in members],
        "scored": [_trial(trial, found) for trial in trials],
    }
    with jax.set_mesh(mesh):
        params = merge.mean(taken_up, weights, targets)
        record["norm"] = _finite_norm(params, model)
        record["tokenizer"] = _copy_tokenizer(taken_up, tokenizer_hash, config.output)
        keep = checkpoint.Keep(every_steps=1, last=1, forever_every_steps=None)
        with checkpoint.Store(config.output, keep) as store:
            facts = _facts(model, record, tokenizer_hash, config.output)
            store.save(record["step"], params=params, opt_state=None, data={}, facts=facts)
    files.write_json(files.path(config.output) / "average.json", record)
    _announce(taken_up, record, config.output)
    return model


def _greedy(
    found: Sequence[ingredients.Ingredient], targets: Any, score: greedy.Score
) -> tuple[list[int], list[greedy.Trial]]:
    def mixed(some: Sequence[int]) -> Any:
        return merge.mean([found[i] for i in some], [1.0] * len(some), targets)

    return greedy.choose([one.place for one in found], mixed, score)


def _finite_norm(params: Any, model: architecture.TransformerConfig) -> float:
    norm = trees.norms({"params": params})["params"]
    if not math.isfinite(norm):
        raise ingredients.AverageError(
            f"The average is not finite (its norm is {norm}), though its ingredients are: its "
            f"numbers are too large for {model.param_dtype}. Choose weights nearer to [0, 1]."
        )
    return norm


def _targets(model: architecture.TransformerConfig, mesh: jax.sharding.Mesh) -> Any:
    abstract = transformer.abstract(model)
    shardings = sharding.tree(mesh, transformer.logical_axes(model), abstract)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
    )


def _name(one: ingredients.Ingredient) -> dict[str, Any]:
    return {"run": one.run, "step": one.step}


def _record(
    found: Sequence[ingredients.Ingredient], weights: Sequence[float]
) -> list[dict[str, Any]]:
    """What the manifest keeps of each ingredient, so that it is known when that is gone."""
    return [
        _name(one)
        | {
            "weight": weight / math.fsum(weights),
            "hash": one.hash,
            "stages, oldest first": lineage.of(one.run, one.step),
        }
        for one, weight in zip(found, weights, strict=True)
    ]


def _trial(trial: greedy.Trial, found: Sequence[ingredients.Ingredient]) -> dict[str, Any]:
    return {
        "ingredients": [_name(found[i]) for i in trial.members],
        "bits per byte": trial.domains,
        "mean": trial.mean,
        "kept": trial.kept,
    }


def _facts(
    model: architecture.TransformerConfig,
    record: Mapping[str, Any],
    tokenizer_hash: str | None,
    output: str,
) -> dict[str, Any]:
    """What the manifest says besides norms and digests; the keys are those of a run's own."""
    before = [{"average of": {key: record[key] for key in ("method", "ingredients")}}]
    own = lineage.stage(output, record["step"], data={}, facts={}, recipe=None)
    return {
        "step": record["step"],
        "adam_count": None,
        "schedule_count": None,
        "lr": {"last": None, "next": None},
        "peak_lr": None,
        "model": dataclasses.asdict(model),
        "tokenizer_hash": tokenizer_hash,
        "lineage": lineage.extended(before, own),
        "versions": {"jax": jax.__version__},
    }


def _announce(
    found: Sequence[ingredients.Ingredient], record: Mapping[str, Any], output: str
) -> None:
    for one, kept in zip(found, record["ingredients"], strict=True):
        norm = one.manifest["norms"]["params"]
        log.say(f"  {kept['weight']:.6g} of {one.place}: norm {norm:.6g}")
    if record["tokenizer"] is None:
        log.say("  no run that it comes from holds the tokenizer's files: name them to export")
    log.say(
        f"norm {record['norm']:.6g}; written to {output}; average.json says what is in it. "
        "Parameters only: runs can start from it with Start.kind = 'weights'"
    )


def _copy_tokenizer(
    found: Sequence[ingredients.Ingredient], wanted: str | None, output: str
) -> str | None:
    """Copies tokenizer/ of the first ingredient, or forebear of one, that has it; says where from.

    An import has the folder; a run that started from one has not, and its lineage leads there.
    """
    runs: dict[str, None] = {}
    for one in found:
        stages = lineage.of(one.run, one.step)
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
