# SPDX-License-Identifier: Apache-2.0
"""The rule of spikes against NumPy's medians, on histories made by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run as tiny

from midjax.train import guard

RULE = guard.Spikes(window_steps=8, deviations=6.0, least_history_steps=4)
HEALTHY = [3.0, 2.9, 3.1, 2.8, 3.2, 2.95, 3.05, 2.9, 3.0, 3.1, 2.85]


@functools.cache
def decide(rule):
    return jax.jit(functools.partial(guard.decide, rule))


def run(losses, norms=None, rule=RULE):
    """Whys and metrics of updates one after the other, with the last state."""
    state, whys, rows = guard.fresh(rule), [], []
    for k, loss in enumerate(losses):
        norm = norms[k] if norms else 1.0
        why, state, metrics = decide(rule)(
            state, loss=jnp.float32(loss), grad_norm=jnp.float32(norm), has_loss=True
        )
        whys.append(int(why))
        rows.append({name: float(x) for name, x in metrics.items()})
    return whys, rows, state


def limit(values):
    """The rule in NumPy, written from the docstring."""
    median = np.median(values)
    spread = 1.4826 * np.median(np.abs(np.array(values) - median))
    return median + 6.0 * max(spread, 0.01 * median)


def test_limits_are_those_of_numpy_over_the_window():
    norms = [1.0, 1.4, 0.7, 1.1, 2.0, 0.9, 1.0, 1.2, 0.8, 1.1, 0.6]
    whys, rows, _ = run(HEALTHY, norms)
    assert whys == [0] * len(HEALTHY)
    for k, row in enumerate(rows):
        for name, values in (("loss", HEALTHY), ("grad_norm", norms)):
            past = values[max(0, k - 8) : k]
            if past:
                assert row[f"{name}_median"] == pytest.approx(np.median(past), rel=1e-6)
            expected = limit(past) if len(past) >= 4 else np.inf
            assert row[f"{name}_limit"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("where", [0, 2, 7, 10])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("of", ["loss", "grad_norm"])
def test_one_value_that_is_not_finite_costs_one_update(where, bad, of):
    """Also while the history is short. MaxText and Levanter skip 129 updates for one NaN."""
    losses, norms = list(HEALTHY), [1.0] * len(HEALTHY)
    (losses if of == "loss" else norms).insert(where, bad)
    (norms if of == "loss" else losses).insert(where, 1.0)
    whys, _, state = run(losses, norms)
    assert whys == [guard.NOT_FINITE if k == where else 0 for k in range(len(losses))]
    assert int(state.count) == len(HEALTHY)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def test_a_spike_is_skipped_and_leaves_the_history_as_it_was():
    _, rows, clean = run(HEALTHY)
    bad = {5: 5.0, 6: np.nan, 7: 4.9, 8: 50.0}
    mixed = HEALTHY[:5] + list(bad.values()) + HEALTHY[5:]
    whys, mixed_rows, state = run(mixed)
    assert whys[5:9] == [guard.SPIKE, guard.NOT_FINITE, guard.SPIKE, guard.SPIKE]
    assert whys[:5] + whys[9:] == [0] * len(HEALTHY)
    assert mixed_rows[:5] + mixed_rows[9:] == rows
    for ours, theirs in zip(*map(jax.tree.leaves, (state, clean)), strict=True):
        assert (ours == theirs).all()


def test_a_gradient_spike_with_a_healthy_loss_is_a_spike():
    norms = [1.0, 1.1, 0.9, 1.0, 1.0, 9.0, 1.0]
    assert run(HEALTHY[:7], norms)[0] == [0, 0, 0, 0, 0, guard.SPIKE, 0]


def test_nothing_is_a_spike_before_there_is_a_history():
    assert run([3.0, 30.0, 300.0, 3000.0])[0] == [0, 0, 0, 0]
    assert run([3.0, 3.1, 2.9, 300.0, 3.0])[0] == [0] * 5  # the history has 3 values at the spike
    assert run([3.0, 3.1, 2.9, 3.0, 300.0, 3.0])[0] == [0, 0, 0, 0, guard.SPIKE, 0]


def test_a_flat_history_makes_no_spikes_of_noise():
    """6 * 1 % of the median are granted; more is a spike."""
    assert run([2.0] * 6 + [2.11])[0] == [0] * 7
    assert run([2.0] * 6 + [2.13])[0] == [0] * 6 + [guard.SPIKE]


def test_downwards_is_never_a_spike():
    assert run([3.0] * 6 + [0.01, 1e-6, 0.0])[0] == [0] * 9


def test_a_new_level_is_skipped_for_good():
    """The rule cannot know it: the run's bound on skips in a row ends it, or a rollback."""
    whys, _, _ = run([*HEALTHY, *[9.0] * 30])
    assert whys[len(HEALTHY) :] == [guard.SPIKE] * 30


def test_a_batch_without_loss_is_not_remembered():
    why, state, _ = decide(RULE)(guard.fresh(RULE), loss=0.0, grad_norm=0.0, has_loss=False)
    assert int(why) == 0 and int(state.count) == 0


def test_without_a_rule_only_what_is_not_finite_is_skipped():
    given = {"grad_norm": jnp.float32(1), "has_loss": True}
    for loss, why in ((3.0, 0), (1e30, 0), (np.nan, guard.NOT_FINITE), (np.inf, guard.NOT_FINITE)):
        found, state, metrics = guard.decide(None, None, loss=jnp.float32(loss), **given)
        assert int(found) == why and state is None and metrics == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"least_history_steps": 1}, "2 or more and not above window_steps, got 1 and 8"),
        ({"least_history_steps": 9}, "not above window_steps, got 9 and 8"),
        ({"deviations": 0.0}, "deviations and least_spread must be above 0"),
        ({"least_spread": -1.0}, "deviations and least_spread must be above 0"),
    ],
)
def test_bad_rules(given, message):
    with pytest.raises(ValueError, match=message):
        tiny.replace(RULE, **given)


@pytest.mark.parametrize("given", [{"after_skips": 0}, {"skip_steps_before": -1}, {"most": 0}])
def test_bad_rollbacks(given):
    good = guard.Rollback(after_skips=3, skip_steps_before=10, most=2)
    with pytest.raises(ValueError, match="must be 1 or more and skip_steps_before 0 or more"):
        tiny.replace(good, **given)
