# SPDX-License-Identifier: Apache-2.0
"""AdamW, and Adam for the parameters that Muon leaves to it."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import optax

from midjax.train.optimizers import common
from midjax.train.optimizers.common import Flat


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adam(common.Common):
    """The numbers of Adam, Kingma and Ba 1412.6980, algorithm 1.

    Attributes:
      b1, b2, eps: weights of the means; eps is added outside the square root.
      mu_dtype, nu_dtype: of the means of gradients and of their squares.
      weight_decay, clip_norm, decay_rules: see `common.Common`.
    """

    b1: float
    b2: float
    eps: float
    mu_dtype: common.Dtype
    nu_dtype: common.Dtype

    def __post_init__(self) -> None:
        super().__post_init__()
        common.check_means(self, b1=self.mu_dtype, b2=self.nu_dtype)
        if self.eps <= 0:
            raise ValueError(f"{type(self).__name__}.eps must be above 0, got {self.eps}.")

    def adam_moments(self, shape: Sequence[int]) -> dict[str, common.Moment]:
        """mu and nu of a parameter of that shape."""
        every = tuple(range(len(shape)))
        return {
            "mu": common.Moment(every, self.mu_dtype),
            "nu": common.Moment(every, self.nu_dtype),
        }

    def adam_direction(
        self, gradients: Flat, moments: dict[str, Flat], count: jax.Array
    ) -> tuple[Flat, dict[str, Flat]]:
        """mu / (1 - b1^t) / (sqrt(nu / (1 - b2^t)) + eps) with t = count + 1, and mu and nu."""
        adam = optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps)
        state = optax.ScaleByAdamState(count=count, mu=moments["mu"], nu=moments["nu"])
        directions, after = adam.update(gradients, state)
        return directions, {"mu": after.mu, "nu": after.nu}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """AdamW, Loshchilov and Hutter 1711.05101, algorithm 2; its fields are those of `Adam`."""

    def moments(self, shapes: Mapping[str, Sequence[int]]) -> common.Moments:
        """mu and nu of every parameter."""
        return {name: self.adam_moments(shape) for name, shape in shapes.items()}

    def direction(
        self, gradients: Flat, moments: dict[str, Flat], count: jax.Array, params: Flat
    ) -> tuple[Flat, dict[str, Flat]]:
        """See `Adam.adam_direction`."""
        del params
        return self.adam_direction(gradients, moments, count)
