# SPDX-License-Identifier: Apache-2.0
"""The average against a weighted sum over everything that the parameters were."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run as tiny

from midjax import checkpoint, verbs
from midjax.model import sharding, transformer
from midjax.train import ema, loop


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


def read(run_dir, step, item):
    """The arrays of a checkpoint's item, as NumPy's."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
        transformer.abstract(tiny.model()),
    )
    found = checkpoint.restore(str(run_dir), step, {item: target})[item]
    return jax.tree.map(lambda x: np.asarray(x, np.float64), found)


def test_a_run_keeps_it_over_a_resume_and_begins_it_anew_in_another(source):
    """Every update is saved: the average of a run of 6, broken off after 3, is NumPy's."""
    config = tiny.train(
        source, "averaged", steps=6, ema=ema.Ema(half_life_steps=2.0),
        start=tiny.begin("anneal", run=str(source / "run")), schedule=tiny.wsd(
            peak_lr="checkpoint", warmup_steps=0
        ),
        checkpoint=checkpoint.Keep(every_steps=1, last=9, forever_every_steps=None),
    )  # fmt: skip
    loop.run(config)
    for step in (4, 5, 6):
        checkpoint.set_aside(config.run_dir, step)
    loop.run(config)
    expected = read(source / "run", 8, "params")
    for step in range(1, 7):
        params = read(config.run_dir, step, "params")
        expected = jax.tree.map(
            lambda e, p: e * config.ema.decay + p * (1 - config.ema.decay), expected, params
        )
        jax.tree.map(
            lambda e, found: np.testing.assert_allclose(found, e, rtol=2e-6, atol=1e-7),
            expected, read(config.run_dir, step, "ema"),
        )  # fmt: skip
    again = tiny.anneal(source, "again", ema=config.ema)
    begun = loop.begin(tiny.replace(again, start=tiny.begin("anneal", run=config.run_dir, step=6)))
    for average, params in zip(*map(jax.tree.leaves, (begun.state.ema, begun.state.params)),
                               strict=True):  # fmt: skip
        assert (average == params).all()


def test_evaluations_and_exports_find_it_or_say_that_there_is_none(source):
    config = tiny.train(source, "averaged", steps=4, ema=ema.Ema(half_life_steps=2.0))
    loop.run(config)
    mesh = sharding.make(config.mesh)
    facts = checkpoint.read_facts(config.run_dir, 4)
    found = verbs.params_of(config.model, facts, config.run_dir, "ema", mesh)
    average = read(config.run_dir, 4, "ema")
    assert all((a == b).all() for a, b in zip(*map(jax.tree.leaves, (found, average)), strict=True))
    plain = str(source / "run")
    with pytest.raises(checkpoint.CheckpointError, match="holds no average of its parameters"):
        verbs.params_of(config.model, checkpoint.read_facts(plain, 8), plain, "ema", mesh)


def test_noise_is_measured_when_due_and_changes_no_update(source):
    """`noise_test` has the formula; here, that a run's rows have it and that nothing else moves."""
    plain = tiny.train(source, "plain", steps=6, microbatches=2)
    noisy = tiny.train(source, "noisy", steps=6, microbatches=2, noise_scale_every_steps=3)
    loop.run(plain)
    loop.run(noisy)
    rows = [json.loads(line) for line in (source / "noisy" / "metrics.jsonl").open()]
    assert [row["step"] for row in rows if "noise/covariance_trace" in row] == [3, 6]
    assert all(np.isfinite(row["noise/gradient_square"]) for row in rows[2::3])
    others = [json.loads(line) for line in (source / "plain" / "metrics.jsonl").open()]
    for row, other in zip(rows, others, strict=True):  # another program: rounding may differ
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert row["param_norm"] == pytest.approx(other["param_norm"], rel=1e-5)
    for change in ({"microbatches": 1}, {"noise_scale_every_steps": 0}):
        with pytest.raises(ValueError, match=r"noise_scale_every_steps"):
            tiny.replace(noisy, **change)
