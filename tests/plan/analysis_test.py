# SPDX-License-Identifier: Apache-2.0
"""The judge's findings: parts that add up, read once."""

import plan_recipes
import pytest

from midjax.hardware import flags, slices
from midjax.plan import analysis, cost

FOUR = slices.parse("v5e-4")


@pytest.fixture(scope="module")
def compiled(made):
    options = flags.as_compiler_options(flags.flags("v5e"))
    return made.compile(plan_recipes.train(), FOUR, 4, options, "a test")


def test_parts_add_up(compiled):
    found = analysis.of(compiled, FOUR, analysis.Knobs())
    assert sum(found.memory.values()) == found.peak_bytes
    assert sum(found.parts.values()) == pytest.approx(found.step_seconds)
    assert set(found.collectives) <= {"fsdp", "other"}
    waited = sum(one["exposed_seconds"] for one in found.collectives.values())
    assert waited == pytest.approx(found.parts["collectives"])
    assert found.memory["parameters"] > 0 and found.timeline
    # The state and the program lie in HBM together, whatever else does.
    sums = compiled.record["memory"]
    assert found.peak_bytes >= sums["argument_size_in_bytes"] + sums["generated_code_size_in_bytes"]


def test_it_is_found_once_for_each_setting_of_the_knobs(compiled, monkeypatch):
    first = analysis.of(compiled, FOUR, analysis.Knobs())
    slower = analysis.of(compiled, FOUR, analysis.Knobs(ici_efficiency=0.4))
    assert slower.step_seconds > first.step_seconds
    monkeypatch.setattr(cost, "estimate", None)
    again = analysis.of(compiled, FOUR, analysis.Knobs())
    assert again.step_seconds == first.step_seconds and dict(again.memory) == dict(first.memory)
