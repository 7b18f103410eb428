# SPDX-License-Identifier: Apache-2.0
"""Recipes as steps for TPUs: updates by batch, devices, names of arguments."""

import plan_recipes
import pytest
import tiny_run

from midjax.batches import starts
from midjax.hardware import slices
from midjax.model import sharding, torus
from midjax.plan import program


@pytest.fixture
def tpu():
    import tpu_compiler

    tpu_compiler.devices("v5e:2x2")  # or skips


def test_updates_are_counted_by_batch():
    config = plan_recipes.train(rows=4)
    assert program.updates(config) == {4: 10}
    ramp = starts.Ramp(rows=(4, 8), start_tokens=(0, 3 * 4 * 128))
    data = tiny_run.data(plan_recipes.NOWHERE, row_tokens=128, batch_rows=ramp)
    ramped = plan_recipes.train(data=data, train_tokens=(3 * 4 + 5 * 8) * 128)
    assert program.updates(ramped) == {4: 3, 8: 5}


@pytest.mark.parametrize("name", ["v4-8", "v5e-1", "v5e-8", "v5p-8", "v6e-4", "2xv5e-4"])
def test_a_device_for_each_chip(tpu, name):
    one = slices.parse(name)
    found = program.devices(one)
    assert len(found) == one.chips
    indices = {getattr(device, "slice_index", 0) for device in found}
    assert indices == set(range(one.slices))


def test_slices_lie_on_the_outer_part_of_data(tpu):
    there = program.devices(slices.parse("2xv5e-4"))
    mesh = sharding.make(sharding.Mesh(data=4, fsdp=2, tensor=1), there)
    by_copy = mesh.devices.reshape(4, 2)
    assert [[device.slice_index for device in copy] for copy in by_copy] == [
        [0, 0],
        [0, 0],
        [1, 1],
        [1, 1],
    ]
    with pytest.raises(ValueError, match="multiple of 2"):
        sharding.make(sharding.Mesh(data=1, fsdp=8, tensor=1), there)


@pytest.mark.parametrize("name", ["v5e-4", "v5e-16", "2xv5e-16", "v5p-16", "v5p-32", "v6e-32"])
def test_a_model_over_a_whole_slice_lies_along_its_dimensions(tpu, name):
    """What travels along `fsdp` has lines to go by, where JAX's own order winds on small slices."""
    one = slices.parse(name)
    mesh = sharding.make(sharding.Mesh(data=one.slices, fsdp=-1, tensor=1), program.devices(one))
    found = torus.of(mesh, ("fsdp",))
    assert found.sizes == tuple(sorted((size for size in one.torus if size > 1), reverse=True))
    assert found.sparse_cores == (one.chip.name in ("v5p", "v6e"))
    copies = mesh.devices.reshape(one.slices, -1)
    assert [{getattr(chip, "slice_index", 0) for chip in copy} for copy in copies] == [
        {number} for number in range(one.slices)
    ]


def test_arguments_have_the_names_of_the_state(tpu):
    lowered = program.lower(plan_recipes.train(), slices.parse("v5e-4"), 4)
    assert lowered.arguments[:2] == ("state/step", "state/schedule_count")
    assert "state/params/layers/wq" in lowered.arguments
    assert "state/opt_state/moments/nu/layers/wq" in lowered.arguments
    assert "batch/weights" in lowered.arguments
    assert [index for index, _ in lowered.places] == [0] * 4


def test_a_rate_that_a_checkpoint_would_tell_is_not_needed(tpu):
    config = plan_recipes.train(
        start=tiny_run.begin("anneal", run="/nowhere/run"),
        schedule=tiny_run.wsd(peak_lr="checkpoint", warmup_steps=0, decay_steps=10),
    )
    assert program.lower(config, slices.parse("v5e-4"), 4).mesh["fsdp"] == 4
