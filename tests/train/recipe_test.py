# SPDX-License-Identifier: Apache-2.0
"""The root of a run: numbers that do not go together."""

import pathlib

import pytest
import tiny_run as tiny

TOKENS = pathlib.Path("tokens")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "train_tokens must be positive"),
        ({"microbatches": 3}, "microbatches = 3 does not divide Data.batch_rows = 8"),
        ({"max_consecutive_skips": -1}, "must be 0 or more"),
        ({"data": tiny.data(TOKENS, row_tokens=32)}, "row_tokens = 32 is above the model's cont"),
        ({"run_dir": "gs://bucket/run"}, "local disks only"),
    ],
)
def test_bad_numbers(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        tiny.train(tmp_path, **change)


def test_steps_are_rounded_up_to_whole_batches(tmp_path):
    assert tiny.train(tmp_path, steps=3).total_steps == 3
    assert tiny.train(tmp_path, train_tokens=3 * tiny.T * tiny.B + 1).total_steps == 4
