# SPDX-License-Identifier: Apache-2.0
"""The noise scale of gradients that are drawn from a normal distribution: known beforehand."""

import jax.numpy as jnp
import numpy as np
import pytest

from midjax.train import noise

DIM, SCALE = 200, 3.0


def test_of_normal_gradients_it_is_the_ratio_of_their_moments():
    """Every token's gradient is G + noise of variance SCALE^2 in each of DIM places."""
    rng = np.random.default_rng(0)
    true = rng.normal(size=DIM)
    sizes = np.array([5, 9, 20, 2])
    running = noise.Running()
    for _ in range(3000):
        parts = [true + SCALE * rng.normal(size=(n, DIM)).mean(0) for n in sizes]
        whole = sum(n * g for n, g in zip(sizes, parts, strict=True)) / sizes.sum()
        found = noise.estimate(
            jnp.array([g @ g for g in parts]), jnp.array(sizes, jnp.float32),
            jnp.float32(whole @ whole), jnp.float32(sizes.sum()),
        )  # fmt: skip
        running.add(**{name: float(value) for name, value in found.items()})
    assert running.covariance_trace == pytest.approx(DIM * SCALE**2, rel=0.02)
    assert running.gradient_square == pytest.approx(true @ true, rel=0.02)
    assert running.scale_tokens == pytest.approx(DIM * SCALE**2 / (true @ true), rel=0.03)


def test_equal_parts_give_the_formula_of_the_paper():
    """1812.06162, A.2 and A.3, for two parts of b = 4 in a batch of B = 8."""
    small, big = np.array([3.0, 5.0]), 2.5
    found = noise.estimate(
        jnp.array(small), jnp.array([4.0, 4.0]), jnp.float32(big), jnp.float32(8.0)
    )
    square = (8 * big - 4 * small.mean()) / (8 - 4)
    trace = (small.mean() - big) / (1 / 4 - 1 / 8)
    assert float(found["gradient_square"]) == pytest.approx(square)
    assert float(found["covariance_trace"]) == pytest.approx(trace)


def test_parts_without_loss_are_left_out():
    both = noise.estimate(
        jnp.array([3.0, 5.0]), jnp.array([4.0, 6.0]), jnp.float32(2.0), jnp.float32(10.0)
    )
    more = noise.estimate(
        jnp.array([3.0, 0.0, 5.0]), jnp.array([4.0, 0.0, 6.0]), jnp.float32(2.0), jnp.float32(10.0)
    )
    assert both == more
    alone = noise.estimate(
        jnp.array([3.0, 0.0]), jnp.array([4.0, 0.0]), jnp.float32(3.0), jnp.float32(4.0)
    )
    assert np.isnan(float(alone["covariance_trace"]))


def test_no_ratio_without_a_gradient():
    running = noise.Running()
    assert running.scale_tokens is None
    running.add(2.0, -1.0)
    assert running.scale_tokens is None
