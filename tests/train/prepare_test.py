# SPDX-License-Identifier: Apache-2.0
"""What is known of a run before a device is touched."""

import pytest
import tiny_run as tiny

from midjax.train import loop, prepare


def test_a_fresh_run(source):
    prepared = prepare.prepare(tiny.train(source, "new", steps=5, schedule=tiny.wsd()))
    assert prepared.origin.kind == "fresh" and prepared.position.base_rows == {}
    assert (prepared.first_step, prepared.first_row, prepared.schedule_count) == (0, 0, 0)
    assert prepared.loader.order.total_rows == 5 * tiny.B
    assert prepared.lr(0) == 0 and prepared.lr(3) == pytest.approx(1e-2)


def test_the_schedule_goes_on_from_its_own_count(source):
    prepared = prepare.prepare(tiny.train(source))
    assert prepared.origin.kind == "own" and prepared.first_step == prepared.schedule_count == 8


def test_a_kept_schedule_has_the_peak_that_it_had(source):
    """An anneal continued in another folder from the middle of its decay: the same rates."""
    anneal = tiny.anneal(source, "middle")
    loop.run(anneal)
    kept = tiny.begin("resume", run=anneal.run_dir, step=4)
    prepared = prepare.prepare(tiny.anneal(source, "on", start=kept))
    assert prepared.schedule_count == 4 and prepared.lr(4) == pytest.approx(1e-2 * 4 / 8)


def test_refusals(source):
    with pytest.raises(ValueError, match="3 warm-up and 7 decay steps are more than the run's 8"):
        prepare.prepare(tiny.train(source, "x", schedule=tiny.wsd(decay_steps=7)))
    with pytest.raises(ValueError, match="has 64 tokens and the model's vocab_size is 63"):
        prepare.prepare(tiny.train(source, "x", model=tiny.model(vocab_size=63)))
    late = tiny.mixture((0, {"prose": 1.0}), (8 * tiny.T * tiny.B, {"code": 1.0}))
    with pytest.raises(ValueError, match=r"'s1' begins at 1024 tokens and the run ends at 1024"):
        prepare.prepare(tiny.train(source, "x", data=tiny.data(source / "tokens", late)))
