# SPDX-License-Identifier: Apache-2.0
"""Which updates are thrown away, decided on the device: those that are not finite, and spikes.

    (State, loss, gradient norm) --decide--> why, the next State, the limits for the metrics

A spike is an outlier upwards from the median of the updates before it. Medians do not move for one
bad value, and no value of a skipped update enters the history at all: one NaN costs one update,
where a mean over 128 steps that holds the NaN rejects all that follow.
"""

import dataclasses

import jax
import jax.numpy as jnp

# Why an update was skipped, as the metric `skipped` says it.
APPLIED, NOT_FINITE, SPIKE, LEFT_OUT = 0, 1, 2, 3
WORDS = {
    NOT_FINITE: "loss or gradient not finite",
    SPIKE: "spike",
    LEFT_OUT: "left out after a rollback",
}
# Standard deviations per median absolute deviation, of a normal distribution: 1 / Phi^-1(3/4).
_MAD = 1.4826


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spikes:
    """The rule by which an update is a spike and skipped.

    Loss (cross-entropy, no z-loss) or gradient norm (before the clip) lies above

        median + deviations * max(1.4826 * MAD, least_spread * median)

    of the last accepted updates; MAD is their median absolute deviation from the median, the robust
    measure of spread of Hampel (1974). OLMo-core takes mean and standard deviation, 128 steps and 6
    deviations. The history begins anew where a stage of the mixture begins or the batch size
    changes, as its values are of other data.

    Attributes:
      window_steps: accepted updates that are remembered.
      deviations: how far above the median an update may lie. Gradient norms have long tails; the
        limits of every update are in its row of metrics, also of those that passed.
      least_history_steps: with fewer accepted updates nothing is a spike.
      least_spread: spread that is always granted, as a share of the median, so that a flat history
        does not make spikes of noise.
    """

    window_steps: int
    deviations: float
    least_history_steps: int
    least_spread: float = 0.01

    def __post_init__(self) -> None:
        if not 2 <= self.least_history_steps <= self.window_steps:
            raise ValueError(
                "Spikes.least_history_steps must be 2 or more and not above window_steps, got "
                f"{self.least_history_steps} and {self.window_steps}."
            )
        if self.deviations <= 0 or self.least_spread <= 0:
            raise ValueError(
                "Spikes.deviations and least_spread must be above 0, got "
                f"{self.deviations} and {self.least_spread}."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollback:
    """When a run goes back to an earlier checkpoint, and which updates it then leaves out.

    PaLM (2204.02311, section 5.1) restarted some 100 steps before a spike and left out 200 to 500
    batches, those before and during it; the same batches did no harm elsewhere.

    Attributes:
      after_skips: this many skipped updates in a row mean that the damage was done before them.
      skip_steps_before: updates before the first skipped one that are left out as well.
      most: rollbacks in a run; where another one is needed it ends with exit code 4.
    """

    after_skips: int
    skip_steps_before: int
    most: int

    def __post_init__(self) -> None:
        if self.after_skips < 1 or self.skip_steps_before < 0 or self.most < 1:
            raise ValueError(
                "Rollback.after_skips and most must be 1 or more and skip_steps_before 0 or more, "
                f"got {self.after_skips}, {self.most} and {self.skip_steps_before}."
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """The last accepted updates, W = window_steps.

    Attributes:
      loss, grad_norm: float32 [W], a ring; places never written hold 0.
      count: updates accepted since the history began, int32 scalar.
    """

    loss: jax.Array
    grad_norm: jax.Array
    count: jax.Array


def fresh(spikes: Spikes) -> State:
    """A history without a value."""
    empty = jnp.zeros(spikes.window_steps, jnp.float32)
    return State(loss=empty, grad_norm=empty.copy(), count=jnp.int32(0))


def to_item(state: State) -> dict[str, jax.Array]:
    """What a checkpoint keeps, by name: `State(**item)` is the way back."""
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}


def decide(
    spikes: Spikes | None,
    state: State | None,
    *,
    loss: jax.Array,
    grad_norm: jax.Array,
    has_loss: jax.Array,
) -> tuple[jax.Array, State | None, dict[str, jax.Array]]:
    """What becomes of an update.

    Args:
      spikes: the rule; without one only what is not finite is skipped.
      state: of the updates before; None without a rule.
      loss, grad_norm: scalars of this update.
      has_loss: whether its batch has a token that bears loss; otherwise there is nothing to
        remember.

    Returns:
      APPLIED, NOT_FINITE or SPIKE as an int32 scalar; the history with this update, if it was
      accepted; and with a rule the scalars "loss_median", "loss_limit", "grad_norm_median" and
      "grad_norm_limit", infinite while the history is short.
    """
    fine = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    if spikes is None or state is None:
        return jnp.where(fine, APPLIED, NOT_FINITE), state, {}
    enough = state.count >= spikes.least_history_steps
    places = jnp.arange(spikes.window_steps)
    used = places < state.count
    over = jnp.bool_(False)
    metrics: dict[str, jax.Array] = {}
    pairs = ("loss", loss, state.loss), ("grad_norm", grad_norm, state.grad_norm)
    for name, value, past in pairs:
        median = _median(past, used)
        mad = _median(jnp.abs(past - median), used)
        spread = jnp.maximum(_MAD * mad, spikes.least_spread * median)
        limit = jnp.where(enough, median + spikes.deviations * spread, jnp.inf)
        over |= value > limit
        metrics |= {f"{name}_median": median, f"{name}_limit": limit}
    why = jnp.where(fine, jnp.where(over, SPIKE, APPLIED), NOT_FINITE)
    accepted = (why == APPLIED) & has_loss
    here = (places == state.count % spikes.window_steps) & accepted
    after = State(
        loss=jnp.where(here, loss, state.loss),
        grad_norm=jnp.where(here, grad_norm, state.grad_norm),
        count=state.count + accepted,
    )
    return why, after, metrics


def _median(values: jax.Array, used: jax.Array) -> jax.Array:
    """Of the used values; infinite where there are none."""
    rising = jnp.sort(jnp.where(used, values, jnp.inf))
    count = used.sum()
    low, high = rising[jnp.maximum(count - 1, 0) // 2], rising[count // 2]
    return jnp.where(count > 0, (low + high) / 2, jnp.inf)
