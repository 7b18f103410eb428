# SPDX-License-Identifier: Apache-2.0
"""Which mesh, microbatches and remat: settings compiled, best guess first, and the front of them.

The rough model orders the grid; what has been compiled corrects it, mesh by mesh and policy by
policy. It knows nothing of how gradients are summed: the fastest setting found is compiled with
each way. Nothing that the model says is reported: every row is a compiled program.
"""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence

from midjax.hardware import slices as slices_lib
from midjax.plan import compiler, grid, predict, rough
from midjax.plan import recipe as recipe_lib
from midjax.train import recipe as train_lib

# Of the programs, every so many-th is chosen for its memory instead of its time.
_EVERY = 4
# From what keeps least on a chip to what keeps most. Offloading keeps less than all; "dots" less or
# more than save_projections, by the widths of heads and stream.
_KEEPS = ("full", "save_attention", "save_projections", "none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One setting, compiled.

    Attributes:
      setting: it.
      overrides: it, as arguments.
      step: what came of the largest batch.
      on_front: no other row is both faster and smaller.
    """

    setting: grid.Setting
    overrides: str
    step: predict.Step
    on_front: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Searched:
    """The search for one stage on one slice.

    Attributes:
      stage, slice: which.
      size: of the grid.
      rows: compiled, the fastest first, then what does not fit.
      left_out: why other settings were not compiled -> how many.
    """

    stage: str
    slice: str
    size: int
    rows: tuple[Row, ...]
    left_out: Mapping[str, int]

    @property
    def best(self) -> Row | None:
        """The fastest that fits."""
        return next((row for row in self.rows if row.step.outcome == "fits"), None)


Judge = Callable[[train_lib.Train], predict.Step]


def run(
    search: recipe_lib.Search,
    name: str,
    config: train_lib.Train,
    slice_: slices_lib.Slice,
    made: compiler.Compiler,
    judge: Judge,
) -> Searched:
    """Searches the settings of one stage on one slice.

    Args:
      search: what may be chosen.
      name, config, slice_: the stage.
      made: lays meshes on the torus.
      judge: compiles the largest batch of a recipe.
    """
    found = grid.of(
        search,
        config,
        slice_,
        lambda meshes: made.placeable(slice_, meshes),
        usable_bytes=slice_.chip.usable_hbm_bytes,
    )
    rows, left_out = compiled(search, config, found.settings, judge)
    return Searched(
        stage=name,
        slice=slice_.name,
        size=found.size,
        rows=tuple(_ordered(rows)),
        left_out=dict(found.left_out) | left_out,
    )


def compiled(
    search: recipe_lib.Search,
    config: train_lib.Train,
    settings: Sequence[tuple[grid.Setting, rough.Rough]],
    judge: Judge,
) -> tuple[list[Row], dict[str, int]]:
    """(rows, why the rest was not compiled -> how many)."""
    of_sums = [] if search.exhaustive else [x for x, _ in settings if _is_variant(search, x)]
    left = [one for one in settings if one[0] not in of_sums]
    rows: list[Row] = []
    skipped: collections.Counter[str] = collections.Counter()
    while left and (search.exhaustive or len(rows) < search.most_compiles):
        by_memory = len(rows) % _EVERY == _EVERY - 1 and not search.exhaustive
        setting, guess = _next(left, rows, settings, by_memory)
        left.remove((setting, guess))
        if any(_is_hungrier(setting, row) for row in rows):
            skipped["they keep more than one that did not fit"] += 1
            continue
        rows.append(_row(setting, config, judge))
    variants = _variants_of_best(rows, of_sums)
    rows += [_row(setting, config, judge) for setting in variants]
    if rest := len(of_sums) - len(variants):
        skipped["slower settings with other sums of gradients"] += rest
    if left:
        skipped["the rough model puts them after those compiled (Search.most_compiles)"] += len(
            left
        )
    return rows, dict(skipped)


def _row(setting: grid.Setting, config: train_lib.Train, judge: Judge) -> Row:
    step = judge(setting.of(config))
    return Row(setting=setting, overrides=setting.overrides(), step=step)


def _is_variant(search: recipe_lib.Search, setting: grid.Setting) -> bool:
    return setting.fsdp_sums != search.fsdp_sums[0]


def _variants_of_best(rows: Sequence[Row], of_sums: Sequence[grid.Setting]) -> list[grid.Setting]:
    """Those that differ from the fastest row in their sums alone."""
    fits = [row for row in rows if row.step.found is not None]
    if not fits:
        return []
    best = min(fits, key=_seconds).setting
    return [one for one in of_sums if dataclasses.replace(one, fsdp_sums=best.fsdp_sums) == best]


_Guessed = tuple[grid.Setting, rough.Rough]


def _next(
    left: Sequence[_Guessed],
    rows: Sequence[Row],
    settings: Sequence[_Guessed],
    by_memory: bool,
) -> _Guessed:
    """The fastest by the corrected guess: first one of each policy, so that each is corrected, then
    of all; or, where asked, of those that hold less than any that fits."""
    seconds = _corrected(rows, settings)
    tried = {row.setting.remat for row in rows}
    untried = [one for one in left if one[0].remat not in tried]
    fits = [row for row in rows if row.step.outcome == "fits"]
    if untried:
        left = untried
    elif by_memory and fits:
        guesses = {id(setting): guess for setting, guess in settings}
        least = min(guesses[id(row.setting)].least_bytes for row in fits)
        left = [one for one in left if one[1].least_bytes < least] or left
    return min(left, key=seconds)


def _corrected(rows: Sequence[Row], settings: Sequence[_Guessed]) -> Callable[[_Guessed], float]:
    """A guess times how wrong those of its mesh and of its policy were."""
    guesses = {id(setting): guess for setting, guess in settings}
    ratios: dict[str, list[float]] = collections.defaultdict(list)
    for row in rows:
        if row.step.found is not None:
            ratio = row.step.found.step_seconds / guesses[id(row.setting)].seconds
            for name in ("", _mesh(row.setting), row.setting.remat):
                ratios[name].append(ratio)
    means = {name: sum(some) / len(some) for name, some in ratios.items()}
    usual = means.get("", 1.0)

    def seconds(one: _Guessed) -> float:
        setting, guess = one
        own = [means.get(name, usual) / usual for name in (_mesh(setting), setting.remat)]
        return guess.seconds * usual * own[0] * own[1]

    return seconds


def _mesh(setting: grid.Setting) -> str:
    return ",".join(f"{name}={size}" for name, size in setting.mesh.items())


def _is_hungrier(setting: grid.Setting, row: Row) -> bool:
    """Whether a setting needs at least what a row needed that did not fit."""
    one, other = setting, row.setting
    if row.step.outcome != "out of memory" or one.remat not in _KEEPS or other.remat not in _KEEPS:
        return False
    same = (
        one.mesh == other.mesh
        and one.state_sharding == other.state_sharding
        and one.state_memory == other.state_memory
        and one.fsdp_sums == other.fsdp_sums
    )
    # Parts beyond the first cost the sums of gradients: 1 may need less than 2.
    fewer = one.microbatches <= other.microbatches and (one.microbatches > 1) == (
        other.microbatches > 1
    )
    return same and fewer and _KEEPS.index(one.remat) >= _KEEPS.index(other.remat)


def _ordered(rows: Sequence[Row]) -> list[Row]:
    """Fastest first, with the front marked: nothing that is as fast holds less."""
    fits = [row for row in rows if row.step.found is not None]
    fits.sort(key=lambda row: (_seconds(row), _peak(row)))
    least: float | None = None
    marked = []
    for row in fits:
        better = least is None or _peak(row) < least
        least = _peak(row) if better else least
        marked.append(dataclasses.replace(row, on_front=better))
    rest = sorted(
        (row for row in rows if row.step.found is None), key=lambda row: row.step.missing_bytes or 0
    )
    return [*marked, *rest]


def _seconds(row: Row) -> float:
    assert row.step.found is not None
    return row.step.found.step_seconds


def _peak(row: Row) -> int:
    assert row.step.found is not None
    return row.step.found.peak_bytes
