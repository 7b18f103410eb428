# SPDX-License-Identifier: Apache-2.0
"""Lion."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import optax

from midjax.train.optimizers import common
from midjax.train.optimizers.common import Flat


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lion(common.Common):
    """Lion, Chen et al. 2302.06675, program 1: the sign of a blend of mean and gradient.

    Every number moves by the learning rate: the paper's rates are 3 to 10 times smaller than
    AdamW's, and its weight decay as many times larger. Nothing is computed with the moments' age.

    Attributes:
      b1: weight of the mean in the blend.
      b2: weight of the mean when it takes in the gradient.
      mu_dtype: of the mean.
      weight_decay, clip_norm, decay_rules: see `common.Common`.
    """

    b1: float
    b2: float
    mu_dtype: common.Dtype

    def __post_init__(self) -> None:
        super().__post_init__()
        common.check_means(self, b1="float32", b2=self.mu_dtype)

    def moments(self, shapes: Mapping[str, Sequence[int]]) -> common.Moments:
        """mu of every parameter."""
        return {
            name: {"mu": common.Moment(tuple(range(len(shape))), self.mu_dtype)}
            for name, shape in shapes.items()
        }

    def direction(
        self, gradients: Flat, moments: dict[str, Flat], count: jax.Array, params: Flat
    ) -> tuple[Flat, dict[str, Flat]]:
        """sign(b1 mu + (1 - b1) g), and mu after it."""
        del params
        lion = optax.scale_by_lion(b1=self.b1, b2=self.b2)
        state = optax.ScaleByLionState(count=count, mu=moments["mu"])
        directions, after = lion.update(gradients, state)
        return directions, {"mu": after.mu}
