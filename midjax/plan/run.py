# SPDX-License-Identifier: Apache-2.0
"""The verb `plan`: every stage on every slice, compiled, judged, added up."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import midjax
from midjax import files
from midjax.hardware import slices as slices_lib
from midjax.plan import analysis, compiler, predict, program, published, table
from midjax.plan import recipe as recipe_lib
from midjax.plan import search as search_lib
from midjax.train import recipe as train_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
    """What a plan found.

    Attributes:
      stages: on each slice in turn.
      searches: of the same, where the recipe asks for them.
      versions: of what compiled.
      compilations: done now; the rest came out of the cache.
    """

    stages: tuple[predict.Stage, ...]
    searches: tuple[search_lib.Searched, ...]
    versions: Mapping[str, str]
    compilations: int

    @property
    def refusals(self) -> list[str]:
        """Steps that the recipe's own checks refuse, or that the compiler broke on, in words."""
        return [
            f"{stage.name} on {stage.slice}: {step.said}"
            for stage in self.stages
            for step in stage.steps
            if step.outcome in ("refused", "failed")
        ]


def knobs(root: recipe_lib.Plan) -> analysis.Knobs:
    """The recipe's, and the defaults."""
    given = {
        "kernel_efficiency": root.kernel_efficiency,
        "ici_efficiency": root.link_efficiency,
    }
    return analysis.Knobs(**{name: value for name, value in given.items() if value is not None})


def run(
    root: recipe_lib.Plan,
    stages: Sequence[tuple[str, train_lib.Train]],
    made: compiler.Compiler,
) -> Planned:
    """Plans the stages on the recipe's slices, one after the other.

    Args:
      root: the recipe.
      stages: (name, recipe of `train`) in the order in which they run.
      made: the compiler.
    """
    asked = [
        (name, config, slices_lib.parse(slice_name))
        for slice_name in root.slices
        for name, config in stages
    ]
    found = [plan_stage(root, *one, made) for one in asked]
    searches = [search(root, root.search, *one, made) for one in asked if root.search is not None]
    return Planned(
        stages=tuple(found),
        searches=tuple(searches),
        versions=made.versions,
        compilations=made.compilations,
    )


def plan_stage(
    root: recipe_lib.Plan,
    name: str,
    config: train_lib.Train,
    slice_: slices_lib.Slice,
    made: compiler.Compiler,
) -> predict.Stage:
    """One stage on one slice."""
    options = root.options(slice_, config)
    steps, checkpoint_bytes = [], None
    for rows, updates in program.updates(config).items():
        title = f"{name} for {slice_.name}: {rows:,} rows of {config.data.row_tokens:,} tokens"
        compiled = made.compile(config, slice_, rows, options, title)
        checkpoint_bytes = compiled.record.get("checkpoint_bytes", checkpoint_bytes)
        steps.append(predict.step(config, slice_, rows, updates, compiled, knobs(root)))
    return predict.stage(
        name,
        config,
        slice_,
        steps,
        checkpoint_bytes,
        price=root.price(slice_.chip.name),
        checkpoint_gb_per_second=root.checkpoint_gb_per_second,
    )


def search(
    root: recipe_lib.Plan,
    asked: recipe_lib.Search,
    name: str,
    config: train_lib.Train,
    slice_: slices_lib.Slice,
    made: compiler.Compiler,
) -> search_lib.Searched:
    """Other settings of one stage on one slice, by its largest batch."""
    rows, updates = max(program.updates(config).items())
    tried = 0

    def judge(setting: train_lib.Train) -> predict.Step:
        nonlocal tried
        tried += 1
        said = table.setting(setting)
        compiled = made.compile(
            setting,
            slice_,
            rows,
            root.options(slice_, config),
            f"{name} for {slice_.name}, setting {tried}: {said}",
        )
        return predict.step(setting, slice_, rows, updates, compiled, knobs(root))

    return search_lib.run(asked, name, config, slice_, made, judge)


def to_json(root: recipe_lib.Plan, planned: Planned) -> dict[str, Any]:
    """What `plan.json` holds."""
    return {
        "midjax": midjax.__version__,
        "is": "a prediction by the TPU's compiler and a model of the chip; nothing was measured",
        "error": published.sentence(),
        "versions": dict(planned.versions),
        "assumptions": dataclasses.asdict(knobs(root)),
        "slices": {name: _slice(root, slices_lib.parse(name)) for name in root.slices},
        "stages": [dataclasses.asdict(stage) for stage in planned.stages],
        "searches": [dataclasses.asdict(one) for one in planned.searches],
    }


def _slice(root: recipe_lib.Plan, one: slices_lib.Slice) -> dict[str, Any]:
    chip = one.chip
    return {
        "chips": one.chips,
        "hosts": one.hosts,
        "torus": one.torus_name,
        "flops_per_second": chip.bf16_flops_per_second,
        "hbm_bytes_per_second": chip.hbm_bytes_per_second,
        "usable_hbm_bytes": chip.usable_hbm_bytes,
        "usd_per_chip_hour": root.price(chip.name),
    }


def write(root: recipe_lib.Plan, planned: Planned) -> str:
    """Writes `plan.json`; returns where."""
    place = files.path(root.output) / "plan.json"
    files.write_json(place, to_json(root, planned))
    return str(place)
