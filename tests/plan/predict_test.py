# SPDX-License-Identifier: Apache-2.0
"""From a step's cost to a run's: arithmetic, on findings that are made up."""

import pathlib

import plan_recipes
import pytest

from midjax.hardware import slices
from midjax.plan import analysis, compiler, predict

FOUR = slices.parse("v5e-4")


def found(**kwargs) -> analysis.Found:
    given = {
        "peak_bytes": 10, "memory": {"parameters": 10}, "largest": (), "timeline": ((0, 10),),
        "positions": 1, "peak_position": 0, "peak_op_name": "", "host_bytes": 0,
        "step_seconds": 0.5, "parts": {"matrix": 0.5}, "collectives": {},
        "hidden_host_seconds": 0.0, "host_transfer_bytes": 0.0, "matrix_flops": 1e9,
        "kernel_flops": 0.0, "roofline": (), "notes": {},
    }  # fmt: skip
    return analysis.Found(**(given | kwargs))


def made(outcome="compiled", **record) -> compiler.Compiled:
    record = {"mesh": {"data": 1, "fsdp": 4}, "compiling_seconds": 1.0} | record
    return compiler.Compiled(
        outcome=outcome, record=record, entry=pathlib.Path("x"), was_kept=False
    )


@pytest.fixture
def judged(monkeypatch):
    monkeypatch.setattr(analysis, "of", lambda made, slice_, knobs: found())


def step(outcome="compiled", updates=10, **record):
    config = plan_recipes.train()
    return predict.step(config, FOUR, 4, updates, made(outcome, **record), analysis.Knobs())


def test_a_step_that_fits(judged):
    one = step()
    assert one.outcome == "fits" and one.mesh == {"fsdp": 4}
    # 4 rows of 128 tokens: the closed form of PaLM's appendix B, with half of the pairs.
    entries = 256 * 128 + 2 * (2 * 128 * 64 * (2 + 1) + 3 * 128 * 256)
    pairs = 128 * 129 // 2
    flops = 4 * (6 * entries * 128 + 12 * 2 * 64 * 2 * pairs)
    assert one.model_flops == flops / 4
    assert one.tokens_per_second == 4 * 128 / 0.5
    assert one.utilisation == pytest.approx(flops / 4 / 0.5 / 197e12)


@pytest.mark.parametrize(
    "kind, outcome, missing",
    [("hbm", "out of memory", 5), ("vmem", "out of VMEM", None), ("recipe", "refused", None)],
)
def test_a_step_that_does_not(kind, outcome, missing):
    refusal = {"kind": kind, "said": "no", "needs_bytes": 15, "has_bytes": 10}
    one = step("refused", refusal=refusal)
    assert (one.outcome, one.said, one.missing_bytes) == (outcome, "no", missing)
    assert one.found is None and one.utilisation is None


def test_a_compiler_that_broke():
    one = step("failed", said="INTERNAL: x")
    assert (one.outcome, one.said) == ("failed", "INTERNAL: x")


def test_a_stage_is_the_sum_of_its_updates(judged):
    config = plan_recipes.train()
    steps = [step(updates=3600), step(updates=7200)]
    one = predict.stage(
        "s", config, FOUR, steps, 2_000_000_000, price=1.5, checkpoint_gb_per_second=0.5
    )
    assert one.seconds == 0.5 * 10800 and one.chip_hours == 1.5 * 4
    assert one.cost_usd == 9.0 and one.checkpoint_seconds == 4.0
    assert one.updates == 10800 and one.fits


def test_a_stage_with_a_step_that_does_not_fit_has_no_price(judged):
    steps = [step(), step("failed", said="x")]
    one = predict.stage(
        "s", plan_recipes.train(), FOUR, steps, None, price=1.5, checkpoint_gb_per_second=0.5
    )
    assert not one.fits
    assert (one.seconds, one.chip_hours, one.cost_usd, one.checkpoint_seconds) == (None,) * 4
