# SPDX-License-Identifier: Apache-2.0
"""Where a trunk's rate is held, and where it is not."""

import pytest
import schedules
import tiny_run as tiny

from midjax import config
from midjax.branch import trunk as trunk_lib
from midjax.train import start


def of(folder, train=None):
    return trunk_lib.Trunk(str(folder / "trunk"), train)


def test_steps_and_tokens_are_read_from_the_checkpoints(folder):
    trunk = of(folder)
    assert trunk.steps == [2, 4, 6, 8]
    assert [trunk.tokens(step) for step in trunk.steps] == [
        n * tiny.T * tiny.B for n in trunk.steps
    ]
    assert trunk.step_at(6 * tiny.T * tiny.B) == 6
    with pytest.raises(trunk_lib.TrunkError, match=r"from_tokens = 700.*768 \(step 6\)"):
        trunk.step_at(700)
    with pytest.raises(trunk_lib.TrunkError, match=r"step = 5, and the trunk .*\[2, 4, 6, 8\]"):
        trunk.facts(5)
    with pytest.raises(trunk_lib.TrunkError, match="holds no finished checkpoint"):
        trunk_lib.Trunk(str(folder / "nothing"), None)


def test_a_warm_up_is_not_stable_and_a_run_that_is_not_ours_is_not_known(folder, capsys):
    trunk = of(folder, config.load_run(folder / "trunk", "train"))
    assert "its phase 'warm-up'" in trunk.unstable(2)
    assert [trunk.unstable(step) for step in (4, 6, 8)] == [None, None, None]
    assert not capsys.readouterr().out
    assert of(folder).unstable(2) is None
    assert "no run of `midjax train`" in capsys.readouterr().out


def test_stable_is_where_the_last_update_was_held_or_ended_a_rise_to_a_hold():
    """WSD-S: 4 up, 6 held, 5 down, 6 held, 5 down; what is stable is counted by hand."""
    curve = schedules.curve(
        (
            schedules.move(0.0, 1e-2, steps=4, name="up"),
            schedules.hold(1e-2, steps=6, name="one"),
            schedules.move(1e-2, 1e-3, steps=5, name="down"),
            schedules.hold(1e-2, steps=6, name="two"),
            schedules.move(1e-2, 1e-3, steps=5, name="last"),
        ),
        total_steps=26,
    )
    stable = [count for count in range(1, 27) if trunk_lib._unstable(curve, count) is None]
    assert stable == [4, *range(5, 11), *range(16, 22)]
    assert "at the end of its phase 'down'" in trunk_lib._unstable(curve, 15)
    assert "inside its phase 'last'; its last update had the rate 0.01" in trunk_lib._unstable(
        curve, 22
    )
    assert "past the end" in trunk_lib._unstable(curve, 40)


def test_a_cosine_has_no_stable_phase(tmp_path):
    curve = schedules.curve((schedules.move(1e-2, 0.0, "cosine", steps=50),))
    assert all(trunk_lib._unstable(curve, count) for count in range(1, 51))


def test_the_origin_is_what_a_run_would_start_from(folder):
    asked = tiny.begin("anneal", run=str(folder / "trunk"), step=4)
    found = of(folder).origin(4, "anneal", frozenset(asked.parts))
    assert found == start.choose(asked, str(folder / "nowhere"))
