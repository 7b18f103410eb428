# SPDX-License-Identifier: Apache-2.0
"""Learning rates: linear warm-up, stable, and a decay of one of five shapes. Together: WSD.

Let s be the number of updates that the schedule has seen, so update number s (from 0) uses eta(s).
With W warm-up steps, S steps in all and D decay steps, the decay starts at T = S - D:

    s < W        eta = start + (peak - start) * s / W              warm-up; eta(0) = start
    W <= s < T   eta = peak                                       s = W is the first stable step
    T <= s < S   eta = final + (peak - final) * f(p), p = (s - T) / D
    s >= S       eta = final                                      after the last update

Without a decay (D = 0) the rate stays at the peak, at s >= S too: that is what a later anneal
finds in force.
s = T has p = 0: the first decay step still uses the peak (as torchtitan and Hagele et al., not as
MaxText, whose p runs to D - 1). The last update, s = S - 1, has p = (D - 1) / D and is therefore
one step short of `final`.

The shapes f, from 1 at p = 0 to 0 at p = 1:

    linear         1 - p                                          OLMo 2
    cosine         (1 + cos(pi p)) / 2
    one_minus_sqrt 1 - sqrt(p)                                    Hagele et al. 2405.18392
    exponential    eta = peak^(1 - p) * final^p, so final > 0     MiniCPM 2404.06395, MPL 2503.12811
    inverse_sqrt   eta = max(final, peak * sqrt(T' / (T' + s - T))), T' = max(T, 1): the decay of T5
                   and Noam from where it starts; it need not reach `final`, except at s >= S
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from midjax import units

Shape = Literal["linear", "cosine", "exponential", "inverse_sqrt", "one_minus_sqrt"]
FROM_CHECKPOINT: Literal["checkpoint"] = "checkpoint"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """Warm-up, stable, decay. Lengths in steps or in tokens: of each pair, one is None.

    Attributes:
      peak_lr: learning rate of the stable phase; `"checkpoint"` takes the rate in force at the
        checkpoint that the run starts from.
      start_lr: rate of the first warm-up step; without warm-up it is not used.
      final_lr: rate after the last step.
      warmup_steps, warmup_tokens: length of the warm-up; 0 for none.
      decay_steps, decay_tokens: length of the decay, which ends with the run; 0 for none.
      decay_shape: one of the shapes above.
    """

    peak_lr: float | Literal["checkpoint"]
    start_lr: float
    final_lr: float
    warmup_steps: int | None
    warmup_tokens: int | None
    decay_steps: int | None
    decay_tokens: int | None
    decay_shape: Shape

    def __post_init__(self) -> None:
        for phase in ("warmup", "decay"):
            steps, tokens = getattr(self, f"{phase}_steps"), getattr(self, f"{phase}_tokens")
            if (steps is None) == (tokens is None):
                raise ValueError(
                    f"Schedule: give {phase}_steps or {phase}_tokens and set the other to None, "
                    f"got {phase}_steps={steps}, {phase}_tokens={tokens}. Use 0 for no {phase}."
                )
            if (steps or 0) < 0 or (tokens or 0) < 0:
                raise ValueError(f"Schedule: {phase} must not be negative: {steps}, {tokens}.")
        if self.start_lr < 0 or self.final_lr < 0:
            raise ValueError(
                f"Schedule: rates must not be negative: {self.start_lr}, {self.final_lr}."
            )
        if self.peak_lr != FROM_CHECKPOINT and not self.peak_lr > 0:
            raise ValueError(f"Schedule.peak_lr must be above 0, got {self.peak_lr}.")
        if self.decay_shape == "exponential" and self._decays and self.final_lr == 0:
            raise ValueError(
                "Schedule: an exponential decay never reaches 0. Set final_lr above 0 or take "
                "another decay_shape."
            )

    @property
    def _decays(self) -> bool:
        return bool(self.decay_steps or self.decay_tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resolved:
    """A schedule in steps, with every number known."""

    peak_lr: float
    start_lr: float
    final_lr: float
    warmup_steps: int
    decay_steps: int
    total_steps: int
    decay_shape: Shape

    @property
    def decay_start(self) -> int:
        """T: the first step of the decay."""
        return self.total_steps - self.decay_steps


def resolve(
    schedule: Schedule, *, total_steps: int, batch_tokens: int, lr_in_force: float | None
) -> Resolved:
    """Tokens -> steps (rounded up) and `"checkpoint"` -> the rate in force there.

    Raises:
      ValueError: the phases are longer than the run, or there is no rate to take over.
    """

    def steps(count: int | None, tokens: int | None) -> int:
        return count if count is not None else units.steps_of_tokens(tokens or 0, batch_tokens)

    peak = schedule.peak_lr
    if peak == FROM_CHECKPOINT:
        if not lr_in_force:
            raise ValueError(
                "Schedule.peak_lr = 'checkpoint', and the start has no learning rate in force "
                f"(found: {lr_in_force}). Start from a midjax checkpoint whose rate is above 0, or "
                "give a number."
            )
        peak = lr_in_force
    resolved = Resolved(
        peak_lr=float(peak),
        start_lr=schedule.start_lr,
        final_lr=schedule.final_lr,
        warmup_steps=steps(schedule.warmup_steps, schedule.warmup_tokens),
        decay_steps=steps(schedule.decay_steps, schedule.decay_tokens),
        total_steps=total_steps,
        decay_shape=schedule.decay_shape,
    )
    if resolved.warmup_steps + resolved.decay_steps > total_steps:
        raise ValueError(
            f"Schedule: {resolved.warmup_steps} warm-up and {resolved.decay_steps} decay steps are "
            f"more than the run's {total_steps}. Shorten them or train longer."
        )
    if resolved.final_lr > resolved.peak_lr:
        raise ValueError(
            f"Schedule.final_lr = {resolved.final_lr:g} is above the peak {resolved.peak_lr:g}."
        )
    return resolved


def learning_rate(r: Resolved) -> Callable[[jax.typing.ArrayLike], jax.Array]:
    """`eta(s)` as in the module's docstring, float32, for a scalar or array s; traceable."""
    return functools.partial(_learning_rate, r)


def _learning_rate(r: Resolved, step: jax.typing.ArrayLike) -> jax.Array:
    s = jnp.asarray(step, jnp.float32)
    warm = r.start_lr + (r.peak_lr - r.start_lr) * s / max(r.warmup_steps, 1)
    eta = jnp.where(s < r.warmup_steps, warm, r.peak_lr)
    if r.decay_steps:
        eta = jnp.where(s < r.decay_start, eta, _decay(r, s))
        eta = jnp.where(s < r.total_steps, eta, r.final_lr)
    return eta.astype(jnp.float32)


def _decay(r: Resolved, s: jax.Array) -> jax.Array:
    into = jnp.maximum(s - r.decay_start, 0.0)
    p = jnp.clip(into / r.decay_steps, 0.0, 1.0)
    if r.decay_shape == "exponential":
        return r.peak_lr * (r.final_lr / r.peak_lr) ** p
    if r.decay_shape == "inverse_sqrt":
        timescale = max(r.decay_start, 1)
        return jnp.maximum(r.peak_lr * jnp.sqrt(timescale / (timescale + into)), r.final_lr)
    fraction = {
        "linear": lambda: 1.0 - p,
        "cosine": lambda: 0.5 * (1.0 + jnp.cos(jnp.pi * p)),
        "one_minus_sqrt": lambda: 1.0 - jnp.sqrt(p),
    }[r.decay_shape]()
    return r.final_lr + (r.peak_lr - r.final_lr) * fraction
