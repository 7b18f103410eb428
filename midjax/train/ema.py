# SPDX-License-Identifier: Apache-2.0
"""An exponential moving average of the parameters, in float32, beside the run.

    ema <- decay * ema + (1 - decay) * params        after every update that was applied

It begins at the parameters that the run begins with, so it needs no correction of a bias, and a
skipped update leaves it. Evaluations and exports take it instead of the parameters on request
(`Eval.weights`, `Export.weights` = "ema"); training never reads it.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ema:
    """Which average.

    Attributes:
      half_life_steps: updates after which parameters count half as much: decay = 2^(-1 / it).
        1 / (1 - decay), another way to say it, is 1.44 half-lives.
    """

    half_life_steps: float

    def __post_init__(self) -> None:
        if not 0 < self.half_life_steps < math.inf:
            raise ValueError(
                f"Ema.half_life_steps must be above 0 and finite, got {self.half_life_steps}."
            )

    @property
    def decay(self) -> float:
        """What is left of the average after an update."""
        return 2.0 ** (-1.0 / self.half_life_steps)


def begin(params: Any) -> Any:
    """The average of a run that has seen no update: a copy of the parameters in float32."""
    return jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params)


def update(config: Ema, average: Any, params: Any, applied: jax.Array) -> Any:
    """The average after an update.

    Args:
      config: which average.
      average: before it.
      params: after it.
      applied: bool scalar; of a skipped update the average stays.
    """
    part = jnp.where(applied, 1.0 - config.decay, 0.0)
    # Not decay * average + ...: where they agree, they must go on agreeing to the last bit.
    return jax.tree.map(lambda e, p: e + part * (p.astype(jnp.float32) - e), average, params)
