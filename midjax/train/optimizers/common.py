# SPDX-License-Identifier: Apache-2.0
"""What every optimizer has around its rule, and what a rule says of its moments."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax

from midjax.train.optimizers import rules

Dtype = Literal["float32", "bfloat16"]
# path of a parameter -> an array, such as its gradient
Flat = dict[str, jax.Array]

# Matrices of the layers and the head decay; the embedding (OLMo 2, 2501.00656), norms and biases
# do not.
USUAL_DECAY: Mapping[str, float] = {
    "head|layers/(w[qkvo]|w_gate|w_up|w_down|router|expert_gate|expert_up|expert_down)": 1.0,
    "embed|(layers/)?[a-z_]*(norm|bias)": 0.0,
}


@dataclasses.dataclass(frozen=True)
class Moment:
    """How a moment of one parameter is kept.

    Attributes:
      axes: the axes of the parameter that it has, in order.
      dtype: in memory and in a checkpoint. Rules compute in float32.
    """

    axes: tuple[int, ...]
    dtype: Dtype


# path of a parameter -> kind -> how it is kept
Moments = dict[str, dict[str, Moment]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """The clip before a rule and the decay after it.

    Attributes:
      weight_decay: decoupled (1711.05101): times the learning rate and the parameter.
      clip_norm: global norm above which gradients are scaled down; None for no clip.
      decay_rules: pattern -> multiplier of weight_decay; every parameter matches exactly one.
        {".*": 1.0} decays all, as MaxText does.
    """

    weight_decay: float
    clip_norm: float | None
    decay_rules: Mapping[str, float] = dataclasses.field(default_factory=lambda: dict(USUAL_DECAY))

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.weight_decay < 0:
            raise ValueError(f"{name}.weight_decay must be 0 or more, got {self.weight_decay}.")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(
                f"{name}.clip_norm must be above 0, or None for no clip; got {self.clip_norm}."
            )
        rules.check(self.decay_rules, f"{name}.decay_rules")
        if any(multiplier < 0 for multiplier in self.decay_rules.values()):
            raise ValueError(
                f"{name}.decay_rules: multipliers must be 0 or more, got {dict(self.decay_rules)}."
            )


def check_means(config: Any, **dtypes: Dtype) -> None:
    """Refuses weights of a mean outside [0, 1), and those that bfloat16 cannot compute with.

    bfloat16 has 8 significant bits. A number at the bottom of its binade, times b with
    1 - b <= 2^-8, rounds to itself: a mean would rise and never fall.

    Args:
      config: an optimizer.
      dtypes: field of a weight, such as b2 -> dtype of its mean.
    """
    for field, dtype in dtypes.items():
        where, b = f"{type(config).__name__}.{field}", getattr(config, field)
        if not 0 <= b < 1:
            raise ValueError(f"{where} must lie in [0, 1), got {b}.")
        if dtype == "bfloat16" and 1 - b <= 2**-8:
            raise ValueError(
                f"{where} = {b} is too slow for a mean in bfloat16, which could not fall any more: "
                "b must be below 1 - 2^-8 = 0.99609. Keep it in float32."
            )
