# SPDX-License-Identifier: Apache-2.0
"""The grid of a search: every mesh, and a reason for each that is none."""

import math

import plan_recipes
import pytest
import tiny_run

from midjax.batches import starts
from midjax.hardware import slices
from midjax.plan import grid, recipe

FOUR = slices.parse("v5e-4")
ALL = recipe.Search(remat=("full",))


def of(search=ALL, config=None, slice_=FOUR, usable=10**12, placeable=None):
    placeable = placeable or (lambda meshes: [True] * len(meshes))
    return grid.of(search, config or plan_recipes.train(rows=8), slice_, placeable, usable)


@pytest.mark.parametrize("chips, axes, count", [(4, 1, 1), (4, 2, 3), (8, 3, 10), (12, 2, 6)])
def test_meshes_multiply_to_the_chips(chips, axes, count):
    names = ("data", "fsdp", "tensor")[:axes]
    found = list(grid.meshes(names, chips))
    assert len(found) == count == len({tuple(mesh.items()) for mesh in found})
    assert all(math.prod(mesh.values()) == chips for mesh in found)
    assert all(mesh["context"] == mesh["expert"] == 1 for mesh in found)


def test_every_setting_is_there_or_has_a_reason():
    found = of()
    assert len(found.settings) + sum(found.left_out.values()) == found.size
    assert "the model has no experts" in found.left_out
    # 4 on tensor: the model has 2 heads.
    assert any("heads" in reason for reason in found.left_out)
    for setting, _ in found.settings:
        shards = setting.mesh["data"] * setting.mesh["fsdp"]
        assert 8 % (shards * setting.microbatches) == 0


def test_sums_are_a_choice_where_fsdp_is_written_out():
    found = of()
    at_once = [one for one, _ in found.settings if one.fsdp_sums == "at_once"]
    other = [one for one, _ in found.settings if one.fsdp_sums != "at_once"]
    assert at_once and all(one.mesh["fsdp"] * one.mesh["context"] > 1 for one in at_once)
    assert {one.mesh["tensor"] for one in at_once} == {1}
    assert {one.mesh["tensor"] for one in other} == {1, 2}
    assert found.left_out["the compiler sums the layers' gradients, and not FSDP's own code"] > 0


def test_sums_are_no_choice_where_the_layers_do_not_ask_for_them():
    found = of(recipe.Search(remat=("none",)))
    assert {one.fsdp_sums for one, _ in found.settings} == {"by_dimension"}


def test_all_batches_of_a_ramp_divide_over_the_mesh():
    """`train` refuses a mesh for any of its batches, and so must a search."""
    config = plan_recipes.train(
        data=tiny_run.data(
            plan_recipes.NOWHERE,
            row_tokens=plan_recipes.TOKENS,
            batch_rows=starts.Ramp(rows=(2, 8), start_tokens=(0, 4096)),
        )
    )
    found = of(config=config)
    shards = {setting.mesh["data"] * setting.mesh["fsdp"] for setting, _ in found.settings}
    assert shards == {1, 2}  # 4 devices of rows would have half a row each of the first batches
    for setting, _ in found.settings:
        rows = [size // setting.of(config).parts(size) for size in (2, 8)]
        mesh = setting.mesh
        assert not any(one % (mesh["data"] * mesh["fsdp"]) for one in rows)
    assert len(found.settings) + sum(found.left_out.values()) == found.size


def test_noise_needs_two_microbatches():
    config = plan_recipes.train(rows=8, microbatches=2, noise_scale_every_steps=5)
    found = of(config=config)
    assert found.settings and {s.microbatches for s, _ in found.settings} == {2, 4, 8}


def test_the_torus_and_the_memory_leave_some_out():
    found = of(placeable=lambda meshes: [mesh["fsdp"] == 4 for mesh in meshes])
    assert {setting.mesh["fsdp"] for setting, _ in found.settings} == {4}
    assert any("torus 2x2" in reason for reason in found.left_out)
    none = of(usable=1000)
    assert not none.settings and sum(none.left_out.values()) == none.size


def test_slices_need_copies():
    two = of(slice_=slices.parse("2xv5e-4"))
    assert {setting.mesh["data"] % 2 for setting, _ in two.settings} == {0}


def test_overrides_are_the_setting():
    from midjax import config as config_lib

    setting, _ = of().settings[-1]
    config = plan_recipes.train(rows=8)
    changed = setting.of(config)
    said = dict(
        config_lib.split_argv(setting.overrides().split())[1][i].split("=") for i in range(9)
    )
    assert int(said["Mesh.fsdp"]) == changed.mesh.fsdp
    assert int(said["Train.microbatches"]) == changed.microbatches
    assert said["TransformerConfig.remat"] == changed.model.remat == "full"
