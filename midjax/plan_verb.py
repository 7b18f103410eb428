# SPDX-License-Identifier: Apache-2.0
"""The verb `plan`: its arguments, and what it is glued together of."""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

# Read before the recipe, so that any recipe of `train` is one of `plan` too.
_DEFAULTS = "settings/plan.gin"


def run(arguments: list[str]) -> None:
    """Plans, prints, writes.

    Raises:
      ValueError: a wrong argument or recipe, before anything is compiled; or, when all has been
        written, a recipe whose mesh or batch does not fit a slice.
    """
    root, stages = load(arguments)
    import jax

    from midjax import config, log
    from midjax.plan import compiler, table
    from midjax.plan import run as run_lib
    from midjax.report import plan_page

    # Shapes are all that is made here: no chip of this machine is taken, or waited for.
    jax.config.update("jax_platforms", "cpu")
    with compiler.Compiler(root.cache) as made:
        planned = run_lib.run(root, stages, made)
    config.save(root, root.output)
    where = run_lib.write(root, planned)
    page = plan_page.write(run_lib.to_json(root, planned), f"{root.output}/plan.html")
    print(
        table.text(
            planned.stages,
            planned.searches,
            prices={name: _price(root, name) for name in root.slices},
            versions=planned.versions,
        )
    )
    log.say(
        f"written to {where} and {page}; asked of the compiler: {planned.compilations}, the rest "
        "was kept"
    )
    if refusals := planned.refusals:
        raise ValueError("not planned:\n  " + "\n  ".join(refusals))


def load(arguments: list[str]) -> tuple[Any, list[tuple[str, Any]]]:
    """(the root, [(name, recipe) of each stage])."""
    from midjax import config

    parser = argparse.ArgumentParser(prog="midjax plan", exit_on_error=False, add_help=False)
    for name in ("--slice", "--stage", "--price"):
        parser.add_argument(name, action="append", default=[])
    parser.add_argument("--search", action="store_true")
    gin_files, bindings, rest = config.split_argv(arguments)
    options, unknown = parser.parse_known_args(rest)
    if unknown or not gin_files:
        raise ValueError(
            f"{f'unknown arguments {unknown}' if unknown else 'no recipe'}; plan takes "
            "--gin_file=RECIPE, --gin.Class.field=VALUE, --slice=SLICE, --stage=RECIPE (the stage "
            "after), --price=USD or --price=CHIP:USD, and --search"
        )
    asked = []
    if options.slice:
        asked.append(f"Plan.slices={tuple(options.slice)!r}")
    if options.stage:
        asked.append(f"Plan.later={tuple(options.stage)!r}")
    if options.price:
        asked.append(f"Plan.prices={_prices(options.price)!r}")
    if options.search:
        asked.append("Plan.search=@Search()")
    root = config.load("plan", [_DEFAULTS, *gin_files], [*bindings, *asked])
    # What was said of the recipe on the command line holds for every stage.
    shared = [line for line in bindings if not line.startswith(("Plan.", "Search."))]
    stages = [root.train, *(config.load("train", [file], shared) for file in root.later)]
    return root, _named(stages)


def _prices(given: Sequence[str]) -> float | dict[str, float]:
    pairs = [(chip, price) for chip, _, price in (text.rpartition(":") for text in given)]
    try:
        found = {chip: float(price) for chip, price in pairs}
    except ValueError:
        raise ValueError(
            f"--price takes USD per chip and hour, as --price=1.2 or --price=v5e:1.2; got {given}."
        ) from None
    if len(found) < len(pairs) or ("" in found and len(found) > 1):
        raise ValueError(f"--price: give one price, or one for each chip; got {given}.")
    return found.get("", found)


def _price(root: Any, slice_name: str) -> float | None:
    from midjax.hardware import slices

    return root.price(slices.parse(slice_name).chip.name)


def _named(stages: Sequence[Any]) -> list[tuple[str, Any]]:
    """Each by the last part of its run directory, which tells two with the same apart by number."""
    names = [pathlib.PurePath(stage.run_dir).name for stage in stages]
    return [
        (name if names.count(name) == 1 else f"{name} {number}", stage)
        for number, (name, stage) in enumerate(zip(names, stages, strict=True), 1)
    ]
