# SPDX-License-Identifier: Apache-2.0
"""The root of a run: numbers that do not go together."""

import pathlib

import pytest
import tiny_run as tiny

from midjax import checkpoint
from midjax.batches import starts
from midjax.train import guard

TOKENS = pathlib.Path("tokens")


def rollback(**kwargs):
    return guard.Rollback(**({"after_skips": 3, "skip_steps_before": 0, "most": 1} | kwargs))


KEEP = checkpoint.Keep(every_steps=4, last=9, forever_every_steps=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "train_tokens must be positive"),
        ({"microbatches": 3}, "microbatches = 3 does not divide Data.batch_rows = 8"),
        ({"max_consecutive_skips": 0}, "layer_norms_every_steps must be 1 or more, got 0 and None"),
        ({"layer_norms_every_steps": 0}, "layer_norms_every_steps must be 1 or more, got 3 and 0"),
        ({"fsdp_sums": "at-once"}, "fsdp_sums = 'at-once'; allowed: by_dimension, at_once"),
        ({"state_sharding": "zero"}, "state_sharding = 'zero'; allowed: as_params, over_data"),
        ({"state_memory": "host"}, "state_memory = 'host'; allowed: device, pinned_host"),
        ({"rollback": rollback(after_skips=4)}, "after_skips = 4 is above Train.max_consecutive_"),
        # 9 checkpoints, one every 4 updates: the oldest is 32 updates before the newest.
        (
            {"rollback": rollback(skip_steps_before=29)},
            "goes back 33 updates or more, and 9",
        ),
        # Two of the nine may be the ends of a phase, beside others.
        (
            {
                "rollback": rollback(skip_steps_before=21),
                "checkpoint": tiny.replace(KEEP, at_phase_ends=True),
            },
            "goes back 25 updates or more, and 9 checkpoints every 4 updates reach back 24",
        ),
        ({"data": tiny.data(TOKENS, row_tokens=32)}, "row_tokens = 32 is above the model's cont"),
        ({"run_dir": "s3://bucket/run"}, "Google Cloud Storage .gs://BUCKET/FOLDER"),
    ],
)
def test_bad_numbers(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        tiny.train(tmp_path, **change)


def test_a_rollback_that_the_checkpoints_reach_is_taken(tmp_path):
    """The largest of each kind: 32 updates, and 24 where phases' ends are kept as well."""
    tiny.train(tmp_path, rollback=rollback(skip_steps_before=28))
    ends = tiny.replace(KEEP, at_phase_ends=True)
    tiny.train(tmp_path, rollback=rollback(skip_steps_before=20), checkpoint=ends)


def test_smaller_batches_are_computed_in_no_larger_parts(tmp_path):
    ramp = starts.Ramp(rows=(2, 6, 16), start_tokens=(0, 100, 200))
    config = tiny.train(
        tmp_path, data=tiny.data(tmp_path / "tokens", batch_rows=ramp), microbatches=4
    )
    assert [config.parts(rows) for rows in (2, 6, 16)] == [1, 2, 4]
    assert tiny.train(tmp_path, microbatches=4).parts(tiny.B) == 4


def test_a_rollback_that_the_checkpoints_reach(tmp_path):
    assert tiny.train(tmp_path, rollback=rollback(skip_steps_before=28)).rollback is not None
