# SPDX-License-Identifier: Apache-2.0
"""Muon for the layers' matrices, AdamW for the rest."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import optax
import optax.contrib

from midjax.train.optimizers import adamw, common, matrices, rules
from midjax.train.optimizers.common import Flat

USUAL_MUON: Mapping[str, Literal["muon", "adamw"]] = {
    "layers/(w[qkvo]|w_gate|w_up|w_down|router|expert_gate|expert_up|expert_down)": "muon",
    "embed|head|(layers/)?[a-z_]*(norm|bias)": "adamw",
}
# Of Keller Jordan's muon.py: what keeps a matrix of zeros from being divided by its norm.
_EPS = 1e-7


@dataclasses.dataclass(frozen=True, kw_only=True)
class Muon(adamw.Adam):
    """Muon, Keller Jordan's (kellerjordan.github.io/posts/muon), and AdamW for other parameters.

    mu = beta mu + (1 - beta) g; the blend beta mu + (1 - beta) g, or mu itself without Nesterov, is
    orthogonalised by five Newton-Schulz steps, each layer's and each expert's matrix by itself (see
    `matrices`), and scaled. There is no bias correction, as Newton-Schulz forgets the blend's size:
    with published Muons mu is often beta mu + g, which is the same but for that size. The scale:

      "match_adamw"  0.2 sqrt(max(rows, columns)): the root mean square of AdamW's updates, so that
                     its learning rate and weight decay serve both (Moonlight, 2502.16982, 2.2)
      "keller"       sqrt(max(1, columns / rows)), where columns are the outputs. Learning rates
                     are then those of Muon (0.02), and `muon_multiplier` sets them apart.

    The iteration is in the precision of the machine's float32 products: bfloat16 on a TPU, which
    is what published Muons use.

    Attributes:
      b1, b2, eps: of AdamW, for its parameters.
      beta: weight of Muon's mean; 0.95 as published.
      nesterov: whether the gradient goes into the blend once more.
      scale: as above.
      muon_multiplier: of Muon's directions, but not of its weight decay.
      muon_rules: pattern -> "muon" or "adamw"; every parameter matches exactly one. Vectors
        cannot be Muon's.
      mu_dtype: of Muon's mean and of AdamW's mean of gradients.
      nu_dtype: of AdamW's mean of squares.
      weight_decay, clip_norm, decay_rules: see `common.Common`; for Muon's and AdamW's parameters.
    """

    beta: float
    nesterov: bool
    scale: Literal["match_adamw", "keller"]
    muon_multiplier: float = 1.0
    muon_rules: Mapping[str, Literal["muon", "adamw"]] = dataclasses.field(
        default_factory=lambda: dict(USUAL_MUON)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        common.check_means(self, beta=self.mu_dtype)
        rules.check(self.muon_rules, "Muon.muon_rules")
        if self.muon_multiplier <= 0:
            raise ValueError(f"Muon.muon_multiplier must be above 0, got {self.muon_multiplier}.")

    def moments(self, shapes: Mapping[str, Sequence[int]]) -> common.Moments:
        """mu of every parameter, nu of AdamW's."""
        muons = self._muons(shapes)
        found = {name: self.adam_moments(shape) for name, shape in shapes.items()}
        return {name: {"mu": of["mu"]} if name in muons else of for name, of in found.items()}

    def direction(
        self, gradients: Flat, moments: dict[str, Flat], count: jax.Array, params: Flat
    ) -> tuple[Flat, dict[str, Flat]]:
        """Muon's and AdamW's directions, and the moments after them."""
        muons = self._muons({name: leaf.shape for name, leaf in params.items()})

        def of(tree: Flat, *, muon: bool) -> Flat:
            return {name: leaf for name, leaf in tree.items() if (name in muons) is muon}

        rest = {kind: of(tree, muon=False) for kind, tree in moments.items()}
        directions, after = self.adam_direction(of(gradients, muon=False), rest, count)
        mine = of(gradients, muon=True)
        mu = optax.tree.update_moment(mine, of(moments["mu"], muon=True), self.beta, 1)
        blend = optax.tree.update_moment(mine, mu, self.beta, 1) if self.nesterov else mu
        for name, axes in muons.items():
            factor = self.muon_multiplier * self._scale(*axes.sizes(params[name].shape))
            directions[name] = factor * _orthogonalized(blend[name], axes)
        return directions, after | {"mu": after["mu"] | mu}

    def _muons(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, matrices.Axes]:
        """Muon's parameters and their axes."""
        whose = rules.assign(self.muon_rules, shapes, "Muon.muon_rules")
        every = matrices.axes(shapes)
        found = {name: every[name] for name, rule in whose.items() if rule == "muon"}
        if vectors := [name for name, axes in found.items() if not axes.rows]:
            raise ValueError(
                f"Muon.muon_rules gives Muon {vectors}, which are vectors, not matrices: let "
                "'adamw' have them."
            )
        return found

    def _scale(self, rows: int, columns: int) -> float:
        if self.scale == "match_adamw":
            return 0.2 * math.sqrt(max(rows, columns))
        return math.sqrt(max(1.0, columns / rows))


def _orthogonalized(x: jax.Array, axes: matrices.Axes) -> jax.Array:
    """Newton-Schulz on each matrix of a stack.

    Optax's transformation without a mean of its own: beta = 0, so that x passes unchanged. It could
    stack by itself, but as one axis: under vmap, experts that are split over devices stay split.
    """
    first = len(axes.stack)
    numbers = optax.contrib.MuonDimensionNumbers(
        reduction_axis=tuple(i - first for i in axes.rows),
        output_axis=tuple(i - first for i in axes.columns),
    )
    muon = optax.contrib.scale_by_muon(
        beta=0.0, nesterov=False, eps=_EPS, weight_dimension_numbers=[numbers]
    )

    def one(matrix: jax.Array) -> jax.Array:
        updates, _ = muon.update([matrix], muon.init([matrix]))
        return updates[0]

    for _ in axes.stack:
        one = jax.vmap(one)
    return one(x)
