# SPDX-License-Identifier: Apache-2.0
"""How far plans are from published runs: the error that every plan states of itself.

published.json is what `make plan-published` wrote, when it was last run: the same work as that of
runs whose utilisation others have published, planned with midjax's own step. Compared are tokens
per second: others count the FLOPs of attention otherwise.
"""

import functools
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from typing import Any


@functools.cache
def rows() -> tuple[Mapping[str, Any], ...]:
    """Each run: "run", "slice", "published_percent", "predicted_percent", "off_percent", ..."""
    text = importlib.resources.files("midjax.plan").joinpath("published.json").read_text("utf-8")
    return tuple(json.loads(text))


def sentence(known: Sequence[Mapping[str, Any]] | None = None) -> str:
    """What a reader of a plan must know of its utilisation.

    Args:
      known: rows, those of the file unless given.
    """
    found = [row for row in (rows() if known is None else known) if "off_percent" in row]
    if not found:
        return "It has not been set beside a published run."
    off = sorted(row["off_percent"] for row in found)
    mean = sum(map(abs, off)) / len(off)
    said = (
        f"Set beside {len(off)} published runs of other programs that do the same work, its tokens "
        f"per second are off by {off[0]:+.0f} to {off[-1]:+.0f} %, {mean:.0f} % in the mean."
    )
    if fitted := sum("mixtral" in row.get("run", "") for row in found):
        said += (
            f" ({fitted} of them were known when the efficiency of experts' kernels was chosen.)"
        )
    return said
