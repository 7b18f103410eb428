# SPDX-License-Identifier: Apache-2.0
"""Whether a foreign checkpoint is what its importer says: names, shapes, dtypes; reads no array."""

import fnmatch
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from midjax import trees
from midjax.importing import foreign as foreign_lib
from midjax.model import architecture, transformer


def check(foreign: foreign_lib.Foreign) -> dict[str, str]:
    """Holds what is there against what the model wants.

    Returns:
      Name of each array of theirs that is left out -> why.

    Raises:
      ForeignError: with every finding: arrays of ours that nothing fills, of theirs that nothing
        uses, shapes that do not fit, numbers that would be rounded or are used in part only.
    """
    if foreign.load is not None:
        return {}
    wrong: list[str] = []
    used: set[str] = set()
    for kind in foreign_lib.kinds(foreign):
        wrong += _misfits(foreign, kind)
        used |= {x for take in foreign.params.values() for x in foreign.names(take, kind)}
    left_out = {}
    for name in sorted(foreign.arrays.keys() - used):
        reasons = [w for p, w in foreign.left_out.items() if fnmatch.fnmatchcase(name, p)]
        if reasons:
            left_out[name] = reasons[0]
        else:
            wrong.append(f"{name} {_text(foreign.arrays[name])} is there and nothing uses it")
    if wrong:
        raise foreign_lib.ForeignError(
            f"{foreign.place} does not fit the model: {foreign_lib.listed(wrong)}. Give the model "
            "that it was made with. An array that is not needed is named in Import.leave_out."
        )
    return left_out


def shapes(foreign: foreign_lib.Foreign, kind: foreign_lib.Moment | None) -> dict[str, Any]:
    """Our name -> shape and dtype of a parameter or of its moment.

    nu has the parameters' dtype, as Optax has it; mu bfloat16 where theirs is all of it.
    """
    ours = _parameters(foreign.model)
    if kind != "mu":
        return ours
    names = [x for take in foreign.params.values() for x in foreign.names(take, kind)]
    if any(foreign.arrays[x].dtype != np.dtype(jnp.bfloat16) for x in names if x in foreign.arrays):
        return ours
    return {name: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for name, x in ours.items()}


def _parameters(model: architecture.TransformerConfig) -> dict[str, Any]:
    return dict(trees.named_leaves(transformer.abstract(model)))


def _misfits(foreign: foreign_lib.Foreign, kind: foreign_lib.Moment | None) -> list[str]:
    """Findings about the parameters, or about one of their moments."""
    what = f"{kind} of " if kind else ""
    ours, takes = shapes(foreign, kind), foreign.params
    wrong = [f"nothing there fills {what}{name}" for name in ours.keys() - takes.keys()]
    wrong += [f"the model has no {name}" for name in takes.keys() - ours.keys()]
    sizes: dict[tuple[str, ...], int] = {}
    for name in ours.keys() & takes.keys():
        theirs = foreign.names(takes[name], kind)
        if lost := [x for x in theirs if x not in foreign.arrays]:
            wrong.append(f"{what}{name} needs {foreign_lib.listed(lost)}, which is not there")
        elif found := _misfit(takes[name], ours[name], {x: foreign.arrays[x] for x in theirs}):
            wrong.append(f"{what}{name} {found}")
        sizes[theirs] = sizes.get(theirs, 0) + math.prod(ours[name].shape)
    return sorted(wrong) or _used_in_part(foreign, sizes)


def _misfit(take: foreign_lib.Take, ours: Any, theirs: Mapping[str, Any]) -> str | None:
    """Why one of our arrays cannot be made of theirs."""
    first = next(iter(theirs))
    given = f"{first} {_text(theirs[first])}" + (
        f" and {len(theirs) - 1} more like it" * (len(theirs) > 1)
    )
    try:
        made = jax.eval_shape(take.change, *theirs.values())
    except (ValueError, TypeError, IndexError) as error:
        return f"is {_text(ours)} here and cannot be made of {given}: {str(error).splitlines()[0]}"
    if made.shape != ours.shape:
        return f"is {_text(ours)} here, and {given} makes {_text(made)}"
    if any(jnp.promote_types(x.dtype, ours.dtype) != ours.dtype for x in theirs.values()):
        return f"is {ours.dtype} here, and {given} would be rounded to it"
    return None


def _used_in_part(foreign: foreign_lib.Foreign, sizes: Mapping[tuple[str, ...], int]) -> list[str]:
    """Arrays of theirs of which numbers are lost, or used twice."""
    wrong = []
    for theirs, size in sizes.items():
        held = sum(math.prod(foreign.arrays[x].shape) for x in theirs)
        if held != size:
            wrong.append(
                f"of the {held} numbers of {foreign_lib.listed(list(theirs))}, {size} are used"
            )
    return wrong


def _text(array: Any) -> str:
    return f"{array.dtype}{list(array.shape)}"
