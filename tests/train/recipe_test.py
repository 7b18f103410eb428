# SPDX-License-Identifier: Apache-2.0
"""The root of a run: numbers that do not go together."""

import pathlib

import pytest
import tiny_run as tiny

from midjax.batches import starts

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


def test_smaller_batches_are_computed_in_no_larger_parts(tmp_path):
    ramp = starts.Ramp(rows=(2, 6, 16), start_tokens=(0, 100, 200))
    config = tiny.train(
        tmp_path, data=tiny.data(tmp_path / "tokens", batch_rows=ramp), microbatches=4
    )
    assert [config.parts(rows) for rows in (2, 6, 16)] == [1, 2, 4]
    assert tiny.train(tmp_path, microbatches=4).parts(tiny.B) == 4
