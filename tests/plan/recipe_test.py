# SPDX-License-Identifier: Apache-2.0
"""What a plan's recipe refuses before anything is compiled."""

import plan_recipes
import pytest

from midjax.hardware import flags, slices
from midjax.plan import recipe


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"slices": ("v5e-63",)}, "Nearest: .*v5e-64"),
        ({"slices": ()}, "name at least one"),
        ({"slices": ("v5e-4", "v5e-4")}, "twice"),
        ({"prices": 0.0}, "over 0"),
        ({"prices": {"v5x": 1.0}}, "prices are by chip"),
        ({"compiler_flags": "--xla_a=1 --xla_a=2"}, "given twice"),
        ({"compiler_flags": "--xla_enable_async_all_gather=true"}, "given twice"),
        ({"compiler_flags": "JAX_X=1"}, "no flag"),
        ({"checkpoint_gb_per_second": 0.0}, "over 0"),
        ({"kernel_efficiency": 1.5}, "at most 1"),
    ],
)
def test_wrong_settings_are_told(wrong, said):
    with pytest.raises(ValueError, match=said):
        plan_recipes.plan(**wrong)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"axes": ("rows",)}, "allowed: data"),
        ({"remat": ()}, "is empty"),
        ({"most_compiles": 0}, "1 or more"),
        ({"microbatches": (0,)}, "1 or more"),
    ],
)
def test_wrong_searches_are_told(wrong, said):
    with pytest.raises(ValueError, match=said):
        recipe.Search(**wrong)


def test_flags_are_those_of_a_launch_with_the_recipes_in_their_place():
    plan = plan_recipes.plan(compiler_flags="--xla_tpu_scoped_vmem_limit_kib=1234 --xla_mine=1")
    found = plan.options(slices.parse("v5p-8"), plan.train)
    table = flags.as_compiler_options(flags.flags("v5p"))
    assert found == table | {"xla_tpu_scoped_vmem_limit_kib": "1234", "xla_mine": "1"}


def test_prices_are_of_all_chips_or_by_chip():
    assert plan_recipes.plan(prices=1.5).price("v4") == 1.5
    by_chip = plan_recipes.plan(prices={"v5e": 1.2})
    assert by_chip.price("v5e") == 1.2 and by_chip.price("v4") is None
    assert plan_recipes.plan().price("v5e") is None
