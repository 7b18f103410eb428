# SPDX-License-Identifier: Apache-2.0
"""The rough model: a bound that holds, and guesses that point the right way."""

import dataclasses

import plan_recipes
import pytest

from midjax.hardware import flags, slices
from midjax.model import architecture
from midjax.plan import rough

FOUR = slices.parse("v5e-4")
MESH = {"data": 1, "fsdp": 4, "context": 1, "expert": 1, "tensor": 1}


def of(config, mesh=MESH, rows=4):
    return rough.of(config, rough.Sizes(config), FOUR, mesh, rows)


def policy(name, **kwargs):
    config = plan_recipes.train(**kwargs)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, remat=name))


def test_the_state_is_what_the_compiler_holds(made):
    config = plan_recipes.train()
    options = flags.as_compiler_options(flags.flags("v5e"))
    compiled = made.compile(config, FOUR, 4, options, "a test")
    sizes = compiled.record["argument_bytes"]
    state = rough.Sizes(config).on_chip(MESH, "as_params")
    for name, prefix in (("params", "state/params/"), ("moments", "state/opt_state/")):
        held = sum(size for path, size in sizes.items() if path.startswith(prefix))
        assert state[name] == held
    # A bound: below what the compiler wants in all.
    sums = compiled.record["memory"]
    assert of(config).least_bytes < (sums["argument_size_in_bytes"] + sums["temp_size_in_bytes"])


def test_what_is_kept_is_memory_and_what_is_made_again_is_time():
    full, some, none = of(policy("full")), of(policy("save_attention")), of(policy("none"))
    assert full.least_bytes < some.least_bytes < none.least_bytes
    assert full.seconds > some.seconds > none.seconds
    away = of(policy("offload_inputs"))
    assert away.least_bytes < full.least_bytes


def test_dots_keeps_no_attention_and_no_products_in_8_bits():
    """Between full and none, and where the heads are wide, less than save_projections."""
    wide = {"heads": 4, "head_dim": 64, "kv_heads": 1}  # 256 numbers of heads to 128 of the stream
    held = {}
    for name in ("full", "dots", "save_projections", "none"):
        config = policy(name)
        held[name] = of(
            dataclasses.replace(config, model=dataclasses.replace(config.model, **wide))
        )
    least = {name: one.least_bytes for name, one in held.items()}
    assert least["full"] < least["dots"] < least["save_projections"] < least["none"]
    config = policy("dots")
    eight = dataclasses.replace(config.model, quantization=architecture.Quantization(dtype="int8"))
    found = of(dataclasses.replace(config, model=eight))
    assert found.least_bytes == of(policy("full")).least_bytes
    assert found.seconds > of(config).seconds


def test_parts_cost_gathers_and_save_activations():
    one, two = (of(policy("none", rows=8, microbatches=m), rows=8) for m in (1, 2))
    assert two.seconds > one.seconds


def test_an_array_that_does_not_divide_is_told():
    with pytest.raises(ValueError, match="does not divide"):
        rough.Sizes(plan_recipes.train()).on_chip(MESH | {"tensor": 3}, "as_params")
