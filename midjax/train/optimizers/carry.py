# SPDX-License-Identifier: Apache-2.0
"""What an optimizer can take over from the moments in a checkpoint, whoever wrote them.

    names, dtypes, shapes of both  --carry-->  kept, new, unused: each array once, with the reason

Moments go by kind and path. What they mean, where the optimizer changes:

    mu  A mean of (clipped) gradients for AdamW, Lion and Muon alike, each gradient weighted 1 - b:
        the scale is the same, and only how far the mean reaches back differs until 1 / (1 - b)
        updates have passed. AdamW's is uncorrected and near zero when young; Lion and Muon look at
        its sign or its directions, not at its size.
    nu and Adafactor's nu_row, nu_col, nu_full   Correct only together with `adam_count`, and the mu
        of AdamW with them.

So the arrays that are read under the count stand or fall together: if one of them is not there, all
of them begin at zero, and so does the count. A count of many updates over a moment of none would
make AdamW's first steps too small or too large by 1 / (1 - b^t), and with b2 the root of it.
Moments that the count does not concern, Lion's and Muon's own, are kept by themselves.

Adafactor's mu_update is a mean of directions: nobody else's mu.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import NamedTuple

PREFIX = "opt_state/moments/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Carried:
    """Each wanted and each saved moment, by name, such as "opt_state/moments/mu/layers/wq".

    Attributes:
      kept: wanted arrays to read from the checkpoint, under their own names.
      cast: those of them whose dtype changes -> "bfloat16 -> float32".
      new: wanted arrays that begin at zero -> why.
      unused: saved arrays that are not read -> why.
      count_kept: whether `adam_count` goes on; otherwise it is 0.
    """

    kept: tuple[str, ...]
    cast: Mapping[str, str]
    new: Mapping[str, str]
    unused: Mapping[str, str]
    count_kept: bool

    @property
    def exact(self) -> bool:
        """Whether the checkpoint is this optimizer's: all is kept, and nothing else there."""
        return not (self.cast or self.new or self.unused)

    def told(self) -> list[str]:
        """Sentences for the log, arrays of one kind and reason together."""
        said = [] if self.count_kept else ["the moments' age (adam_count) begins at 0"]
        for what, found in (
            ("new, at zero", self.new),
            ("cast", self.cast),
            ("not used", self.unused),
        ):
            groups: dict[tuple[str, str], list[str]] = {}
            for name, why in found.items():
                kind, _, path = name.removeprefix(PREFIX).partition("/")
                groups.setdefault((kind, why), []).append(path)
            for (kind, why), paths in groups.items():
                some = ", ".join(paths[:3]) + (", ..." if len(paths) > 3 else "")
                said.append(f"{kind} of {len(paths)} ({some}) {what}: {why}")
        return said


def carry(saved: Mapping[str, str], wanted: Mapping[str, str]) -> Carried:
    """Maps the moments of a checkpoint onto those of an optimizer.

    Args:
      saved: name -> dtype and shape, as `trees.describe` gives and a manifest's "arrays" holds:
        "opt_state/moments/mu/layers/wq" -> "float32[2, 32, 16]". Other names are not looked at.
      wanted: the same of the optimizer's state: `trees.describe({"opt_state": to_parts(...)})`.

    `restore` reads `kept` from the checkpoint (in the checkpoint's dtype where `cast` names it),
    fills `new` with zeros, and keeps or resets the count as `count_kept` says.
    """
    theirs, ours = _moments(saved), _moments(wanted)
    new = {name: why for name in ours if (why := _lacking(name, theirs, ours))}
    counted = _counted(ours)
    if lacking := [name for name in counted if name in new]:
        why = (
            f"reset with all that adam_count is the age of, as {lacking[0].removeprefix(PREFIX)} "
            f"is not to be had ({new[lacking[0]]})"
        )
        new |= {name: why for name in counted if name not in new}
    kept = tuple(name for name in ours if name not in new)
    cast = {
        name: f"{theirs[name].dtype} -> {ours[name].dtype}"
        for name in kept
        if theirs[name].dtype != ours[name].dtype
    }
    unused = {
        name: new.get(name, "this optimizer has no such moment")
        for name in theirs
        if name not in kept
    }
    count_kept = bool(kept) and not lacking
    return Carried(kept=kept, cast=cast, new=new, unused=unused, count_kept=count_kept)


class _Array(NamedTuple):
    dtype: str
    shape: str


def _moments(described: Mapping[str, str]) -> dict[str, _Array]:
    found = {}
    for name, what in sorted(described.items()):
        if name.startswith(PREFIX):
            dtype, _, shape = what.partition("[")
            found[name] = _Array(dtype, f"[{shape}")
    return found


def _counted(names: Iterable[str]) -> list[str]:
    """The moments that are read under the count: means of squares, and what they divide."""
    split = [name.removeprefix(PREFIX).partition("/") for name in names]
    divided = {path for kind, _, path in split if kind == "nu"}
    return [
        f"{PREFIX}{kind}/{path}"
        for kind, _, path in split
        if kind.startswith("nu") or (kind == "mu" and path in divided)
    ]


def _lacking(name: str, theirs: Mapping[str, _Array], ours: Mapping[str, _Array]) -> str | None:
    """Why a wanted array is not in the checkpoint; None where it is."""
    if name not in theirs:
        return "the checkpoint has no such moment"
    if theirs[name].shape != ours[name].shape:
        return f"its shape is {theirs[name].shape} in the checkpoint, {ours[name].shape} here"
    return None
