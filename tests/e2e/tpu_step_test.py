# SPDX-License-Identifier: Apache-2.0
"""The comparison of tests/bench/tpu_speed.py in short: a 1B model's step for v5e-16, and its judge.

MaxText is not installed here. Its figures are those of 0.2.5 with libtpu 0.0.52 and the best flags
known for it ("ours" in tests/bench/tpu_steps/cases.py), as `make bench-tpu-short` prints
them: the same judge on the program that its own script compiles.
"""

import pathlib
import re
import sys

import plan_recipes
import pytest

from midjax.hardware import flags, slices
from midjax.plan import compiler, predict

BENCH = pathlib.Path(__file__).resolve().parents[1] / "bench"
MAXTEXT_MS, MAXTEXT_PEAK_BYTES = 285.3, 4_858_637_824


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """The case, midjax's step of it, and the program."""
    plan_recipes.need_compiler()
    before = list(sys.path)
    sys.path[:0] = [str(BENCH), str(BENCH / "tpu_steps")]
    import tpu_speed

    sys.path[:] = before
    case = tpu_speed.cases_lib.CASES[tpu_speed.SHORT]
    with compiler.Compiler(str(tmp_path_factory.mktemp("step")), lambda _: None) as made:
        mine = tpu_speed.ours(case, made, tpu_speed.SHORT)
        one = slices.parse(case.slice)
        options = flags.as_compiler_options(flags.flags(one.chip.name))
        kept = made.compile(case.recipe(), one, case.rows, options, "kept")
        assert made.compilations == 1
        return tpu_speed, case, mine, kept.text("text")


def test_it_is_faster_than_maxtexts_in_no_more_memory(compared):
    _, _, mine, _ = compared
    assert mine.said is None
    assert mine.ms <= 0.93 * MAXTEXT_MS
    assert mine.peak_bytes <= MAXTEXT_PEAK_BYTES


def test_little_is_computed_or_sent_twice(compared):
    tpu_speed, case, mine, _ = compared
    chips = slices.parse(case.slice).chips
    worth = predict.model_flops(case.recipe(), case.rows) / chips
    assert 1 <= mine.judged.hardware_flops / worth <= case.most_hardware_flops
    sent = sum(c.bytes_sent for c in mine.judged.collectives)
    ideal = tpu_speed.ideal_bytes(case, chips, case.microbatches)
    assert ideal <= sent <= tpu_speed.MOST_OVER_IDEAL * ideal


def test_no_product_is_a_ring(compared):
    """Of small products, for which each chip would send a part on: see midjax/model/fsdp.py.

    Where a gradient is summed along an open line of chips the compiler evens out the parts, and
    the last of each line sends none.
    """
    text = compared[3]
    chips = slices.parse(compared[1].slice).chips
    senders = [
        len(re.findall(r"{\d+,\d+}", pairs))
        for pairs in re.findall(r"source_target_pairs={(.*?)}, ", text)
    ]
    # A ring has every chip send.
    assert "windowed_dot_general" not in text and max(senders, default=0) < chips
