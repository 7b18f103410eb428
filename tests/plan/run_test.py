# SPDX-License-Identifier: Apache-2.0
"""Whole plans: what fits, what does not and by how much, and what is kept."""

import json
import math

import plan_recipes
import pytest
import tiny_run

from midjax.batches import starts
from midjax.hardware import slices
from midjax.model import sharding, transformer
from midjax.plan import recipe, run

FOUR = slices.parse("v5e-4")


def planned(made, root, *stages):
    return run.run(root, stages or (("one", root.train),), made)


@pytest.mark.parametrize("rows", [16, 32, 64])
def test_memory_is_refused_where_the_compiler_refuses_it(made, rows):
    """By the plan's own figure: with a little more than it the program is taken, with a little less
    it is refused, and the plan says by how much.

    The model is on each chip whole: of one split over fsdp the compiler, pressed, finds orders of
    operations that take up to 3 MiB less, a quarter of what a model this small takes.
    """
    config = plan_recipes.train(rows=rows, mesh=sharding.Mesh(data=4, fsdp=1, tensor=1))
    (free,) = run.plan_stage(plan_recipes.plan(), "free", config, FOUR, made).steps
    peak = free.found.peak_bytes / 2**20

    def within(mebibytes):
        limit = plan_recipes.plan(compiler_flags=f"--xla_tpu_max_hbm_size_mib={mebibytes}")
        return run.plan_stage(limit, "limited", config, FOUR, made)

    assert within(math.ceil(peak) + 1).fits
    lacking = within(math.floor(peak) - 1)
    (step,) = lacking.steps
    assert step.outcome == "out of memory" and lacking.seconds is None
    assert 0 < step.missing_bytes < 3 * 2**20


def test_every_size_of_batch_is_a_step_and_every_stage_a_row(made):
    ramp = starts.Ramp(rows=(4, 8), start_tokens=(0, 3 * 4 * 128))
    data = tiny_run.data(plan_recipes.NOWHERE, row_tokens=128, batch_rows=ramp)
    ramped = plan_recipes.train(data=data, train_tokens=(3 * 4 + 5 * 8) * 128)
    root = plan_recipes.plan(prices={"v5e": 2.0})
    found = planned(made, root, ("one", root.train), ("two", ramped))
    one, two = found.stages
    assert [step.batch_rows for step in two.steps] == [4, 8]
    assert [step.updates for step in two.steps] == [3, 5]
    both = [step.found.step_seconds for step in two.steps]
    assert two.seconds == pytest.approx(3 * both[0] + 5 * both[1])
    assert two.cost_usd == pytest.approx(two.seconds / 3600 * 4 * 2.0)
    assert one.steps[0].found == two.steps[0].found
    assert found.refusals == []


def test_copies_on_several_slices_meet_over_the_network_of_the_data_centre(made):
    """Each chip's quarter of the gradients goes there and its sum comes back, in float32."""
    over_two = plan_recipes.train(rows=8, mesh=sharding.Mesh(data=2, fsdp=4, tensor=1))
    (stage,) = planned(made, plan_recipes.plan(over_two, slices=("2xv5e-4",))).stages
    assert stage.fits and stage.chips == 8
    (step,) = stage.steps
    between, within = (step.found.collectives[axis] for axis in ("data", "fsdp"))
    ideal = 4 * transformer.parameter_count(over_two.model) / 4  # of two copies, twice a half
    assert ideal <= between["bytes_sent"] <= 1.05 * ideal
    rates = [one["bytes_sent"] / one["seconds"] for one in (between, within)]
    assert 5 * rates[0] < rates[1]


def test_a_plan_again_compiles_nothing(made):
    root = plan_recipes.plan()
    first = planned(made, root)
    count = made.compilations
    again = planned(made, root)
    assert made.compilations == count
    assert again.stages[0].steps[0].was_kept
    assert again.stages[0].seconds == first.stages[0].seconds


def test_what_the_recipe_itself_refuses_is_named(made):
    root = plan_recipes.plan(plan_recipes.train(mesh=sharding.Mesh(data=1, fsdp=3, tensor=1)))
    found = planned(made, root)
    assert found.stages[0].steps[0].outcome == "refused"
    assert len(found.refusals) == 1 and "does not fit 4 devices" in found.refusals[0]


def test_a_search_finds_what_all_of_its_grid_would(made):
    """Three programs of six, and the best of all among them."""
    asked = {"axes": ("data", "fsdp"), "microbatches": (1,), "remat": ("none", "full")}
    root = plan_recipes.plan(plan_recipes.train(rows=8))
    given = ("one", root.train, FOUR, made)
    every = run.search(root, recipe.Search(**asked, exhaustive=True), *given)
    some = run.search(root, recipe.Search(**asked, most_compiles=3), *given)
    assert every.size == 12 and len(every.rows) + sum(every.left_out.values()) == 12
    assert len(some.rows) == 3 and len(some.rows) + sum(some.left_out.values()) == 12
    best, found = every.best.step.found, some.best.step.found
    assert found.step_seconds <= 1.03 * best.step_seconds


def test_it_is_written_as_json(made, tmp_path):
    root = plan_recipes.plan(output=str(tmp_path))
    found = planned(made, root)
    where = run.write(root, found)
    read = json.loads((tmp_path / "plan.json").read_text())
    assert where == str(tmp_path / "plan.json")
    assert read["stages"][0]["steps"][0]["outcome"] == "fits"
    assert "nothing was measured" in read["is"]
    assert set(read["versions"]) == {"jax", "jaxlib", "libtpu"}
