# SPDX-License-Identifier: Apache-2.0
"""Which axes of a parameter make a matrix: what Muon orthogonalises and Adafactor factors.

Layers are stacked on the first axis and experts on the next one; each layer's and each expert's
matrix is one of its own. A matrix maps its rows (the axes that the activations are summed over) to
its columns:

    layers/wq, wk, wv [L, D, N, H]     D x N*H: all heads together, as published Muon runs have it
    layers/wo         [L, N, H, D]     N*H x D
    layers/w_gate ... [L, D, F]        D x F
    layers/expert_... [L, E, D, F]     D x F
    embed [V, D], head [D, V]          as they are

Norms and biases are vectors, though some have axes of heads.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from midjax.train.optimizers import rules

# Pattern -> (axes that stack, axes that make the rows; None for a vector).
_RULES: Mapping[str, tuple[int, int | None]] = {
    "embed|head": (0, 1),
    "[a-z_]*(norm|bias)": (0, None),
    "layers/[a-z_]*(norm|bias)": (1, None),
    "layers/w[qkv]": (1, 1),
    "layers/wo": (1, 2),
    "layers/(w_gate|w_up|w_down|router)": (1, 1),
    "layers/expert_(gate|up|down)": (2, 1),
}


@dataclasses.dataclass(frozen=True)
class Axes:
    """The axes of one parameter, in order: stack, rows, columns. A vector has no rows."""

    stack: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def within(self) -> tuple[int, ...]:
        """The axes of one matrix or vector."""
        return self.rows + self.columns

    def sizes(self, shape: Sequence[int]) -> tuple[int, int]:
        """(rows, columns) of one matrix; a vector is one row."""
        return math.prod(shape[i] for i in self.rows), math.prod(shape[i] for i in self.columns)


def axes(shapes: Mapping[str, Sequence[int]]) -> dict[str, Axes]:
    """The axes of every parameter.

    Args:
      shapes: path -> shape.

    Raises:
      ValueError: a parameter that this module does not know.
    """
    found = {}
    for name, (stack, rows) in rules.assign(_RULES, shapes, "matrices._RULES").items():
        places, first = tuple(range(len(shapes[name]))), stack + (rows or 0)
        found[name] = Axes(places[:stack], places[stack:first], places[first:])
    return found
