# SPDX-License-Identifier: Apache-2.0
"""The average against a weighted sum over everything that the parameters were."""

import jax.numpy as jnp
import numpy as np
import pytest

from midjax.train import ema


def test_it_is_the_weighted_sum_of_the_past():
    config = ema.Ema(half_life_steps=3.0)
    rng = np.random.default_rng(0)
    path = rng.normal(size=(9, 4)).astype(np.float32)
    average = ema.begin({"w": jnp.array(path[0])})
    for params in path[1:]:
        average = ema.update(config, average, {"w": jnp.array(params)}, jnp.bool_(True))
    weights = np.array([(1 - config.decay) * config.decay**age for age in range(7, -1, -1)])
    expected = config.decay**8 * path[0] + weights @ path[1:]
    np.testing.assert_allclose(average["w"], expected, rtol=1e-5)
    assert config.decay**3 == pytest.approx(0.5)


def test_a_skipped_update_leaves_it_and_parameters_that_stay_are_its_fixed_point():
    config = ema.Ema(half_life_steps=7.0)
    old, new = {"w": jnp.float32([1.7, -0.3])}, {"w": jnp.float32([9.0, jnp.nan])}
    average = ema.begin(old)
    assert (
        (ema.update(config, average, {"w": new["w"] * 0 + 5}, jnp.bool_(False))["w"][0])
        == old["w"][0]
    )
    assert (ema.update(config, average, old, jnp.bool_(True))["w"] == old["w"]).all()


def test_it_is_float32_and_a_copy():
    params = {"w": jnp.bfloat16([1.0, 2.0])}
    average = ema.begin(params)
    assert average["w"].dtype == jnp.float32
    same = {"w": jnp.float32([1.0])}
    assert ema.begin(same)["w"].unsafe_buffer_pointer() != same["w"].unsafe_buffer_pointer()


@pytest.mark.parametrize("steps", [0.0, -1.0, float("inf"), float("nan")])
def test_bad_numbers(steps):
    with pytest.raises(ValueError, match=r"Ema\.half_life_steps must be above 0"):
        ema.Ema(half_life_steps=steps)
