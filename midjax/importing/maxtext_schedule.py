# SPDX-License-Identifier: Apache-2.0
"""MaxText's learning rates (0.2.5, utils/maxtext_utils.py), to know which one was in force.

With S = learning_rate_schedule_steps, W = int(S * warmup_steps_fraction) and
D = int(S * wsd_decay_steps_fraction), update number s (from 0) has

    s < W             peak * s / W
    cosine, s < S     final + (peak - final) * (1 + cos(pi p)) / 2,  p = (s - W) / (S - W - 1)
    wsd, s < S - D    peak
    wsd, s < S        the same with p = (s - (S - D)) / (D - 1), or final + (peak - final) * (1 - p)
    s >= S            final: the schedule is over

Both decays reach `final` at the last update, one step earlier than midjax's own.
"""

import dataclasses
import math
from typing import Literal

from midjax.importing import foreign


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaxTextSchedule:
    """The fields of MaxText's config, under their names there.

    Attributes:
      learning_rate: the peak.
      learning_rate_schedule_steps: S; MaxText takes `steps` where it is not given.
      learning_rate_final_fraction: final = this * learning_rate.
      warmup_steps_fraction: of S.
      lr_schedule_type: "cosine" or "wsd".
      wsd_decay_steps_fraction, wsd_decay_style: of "wsd"; None for "cosine".
    """

    learning_rate: float
    learning_rate_schedule_steps: int
    learning_rate_final_fraction: float
    warmup_steps_fraction: float
    lr_schedule_type: Literal["cosine", "wsd"]
    wsd_decay_steps_fraction: float | None
    wsd_decay_style: Literal["linear", "cosine"] | None

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.learning_rate_schedule_steps < 1:
            raise ValueError(
                "MaxTextSchedule needs a learning_rate over 0 and learning_rate_schedule_steps of "
                f"1 or more, got {self.learning_rate}, {self.learning_rate_schedule_steps}."
            )
        wsd = (self.wsd_decay_steps_fraction, self.wsd_decay_style)
        if any((part is None) != (self.lr_schedule_type == "cosine") for part in wsd):
            raise ValueError(
                "MaxTextSchedule.wsd_decay_steps_fraction and wsd_decay_style belong to 'wsd' and "
                f"are None for 'cosine', got {wsd} with {self.lr_schedule_type!r}."
            )

    def eta(self, step: int) -> float:
        """The learning rate of update number `step`, from 0; formulas in the module's docstring."""
        peak, total = self.learning_rate, self.learning_rate_schedule_steps
        final = peak * self.learning_rate_final_fraction
        warmup = int(total * self.warmup_steps_fraction)
        if step < warmup:
            return peak * step / warmup
        length = total - warmup
        if self.lr_schedule_type == "wsd":
            length = int(total * (self.wsd_decay_steps_fraction or 0.0))
        into = step - (total - length)
        if into < 0:
            return peak
        if step >= total:
            return final
        p = into / (length - 1) if length > 1 else 1.0
        linear = self.wsd_decay_style == "linear"
        return final + (peak - final) * (1 - p if linear else (1 + math.cos(math.pi * p)) / 2)

    def rate(self, count: int) -> foreign.Rate:
        """Rates around a checkpoint whose schedule has seen `count` updates."""
        return foreign.Rate(
            last=self.eta(max(count - 1, 0)), next=self.eta(count), peak=self.learning_rate
        )
