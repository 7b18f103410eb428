# SPDX-License-Identifier: Apache-2.0
"""The comparison of tests/bench/tpu_speed.py in short: a 1B model's step for v5e-16, and its judge.

MaxText is not installed here. Its figures are those of 0.2.5 with libtpu 0.0.52 and the best flags
known for it ("no rings" in tests/bench/tpu_steps/cases.py), as `make bench-tpu-short` prints them:
the same judge on the program that its own script compiles.
"""

import pathlib
import sys

import plan_recipes
import pytest

from midjax.hardware import slices
from midjax.plan import compiler, predict

BENCH = pathlib.Path(__file__).resolve().parents[1] / "bench"
MAXTEXT_MS, MAXTEXT_PEAK_BYTES = 303.5, 4_849_589_760


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """The case, and midjax's step of it."""
    plan_recipes.need_compiler()
    before = list(sys.path)
    sys.path[:0] = [str(BENCH), str(BENCH / "tpu_steps")]
    import tpu_speed

    sys.path[:] = before
    case = tpu_speed.cases_lib.CASES[tpu_speed.SHORT]
    with compiler.Compiler(str(tmp_path_factory.mktemp("step")), lambda _: None) as made:
        return tpu_speed, case, tpu_speed.ours(case, made, tpu_speed.SHORT)


def test_it_is_faster_than_maxtexts_in_no_more_memory(compared):
    _, _, mine = compared
    assert mine.said is None
    assert mine.ms <= 0.93 * MAXTEXT_MS
    assert mine.peak_bytes <= MAXTEXT_PEAK_BYTES


def test_little_is_computed_or_sent_twice(compared):
    tpu_speed, case, mine = compared
    chips = slices.parse(case.slice).chips
    worth = predict.model_flops(case.recipe(), case.rows) / chips
    assert 1 <= mine.judged.hardware_flops / worth <= case.most_hardware_flops
    sent = sum(c.bytes_sent for c in mine.judged.collectives)
    ideal = tpu_speed.ideal_bytes(case.recipe().model, chips)
    assert ideal <= sent <= tpu_speed.MOST_OVER_IDEAL * ideal


def test_no_product_is_a_ring(compared):
    """What a ring of small products would move, step by step: see midjax/model/fsdp.py."""
    _, _, mine = compared
    assert "collective-permute" not in {c.kind for c in mine.judged.collectives}
