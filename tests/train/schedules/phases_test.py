# SPDX-License-Identifier: Apache-2.0
"""What a recipe may and may not say."""

import pytest
import schedules as short

from midjax import config
from midjax.train.schedules import phases

GIN = """
Phases.phases = (@up/Move(), @stable/Hold(), @down/Move(), @stable/Hold(), @down/Move())
up/Move.name = "up"
up/Move.steps = 5
up/Move.tokens = None
up/Move.start_lr = 0
up/Move.end_lr = 1e-3
up/Move.shape = "linear"
stable/Hold.name = "stable"
stable/Hold.steps = None
stable/Hold.tokens = 100
stable/Hold.lr = 1e-3
down/Move.name = "down"
down/Move.steps = 10
down/Move.tokens = None
down/Move.start_lr = "previous"
down/Move.end_lr = "checkpoint"
down/Move.shape = "linear"
"""


def test_from_a_recipe_and_through_json(tmp_path):
    """A phase that stands twice in the tuple is a cycle."""
    place = tmp_path / "wsds.gin"
    place.write_text(GIN)
    loaded = config.load_class(phases.Phases, [str(place)])
    stable, down = short.hold(1e-3, tokens=100, name="stable"), short.move(
        "previous", "checkpoint", steps=10, name="down"
    )  # fmt: skip
    up = short.move(0.0, 1e-3, steps=5, name="up")
    assert loaded == phases.Phases(phases=(up, stable, down, stable, down))
    assert config.from_json(phases.Phases, config.to_json(loaded)) == loaded
    for old in ('"previous"', '"linear"'):
        place.write_text(GIN.replace(old, '"linaer"'))
        with pytest.raises(config.ConfigError, match="linaer"):
            config.load_class(phases.Phases, [str(place)])


def test_the_short_form_is_three_phases():
    up, stable, down = short.wsd().phases()
    assert up == short.move(1e-4, 3e-3, steps=7, name="warm-up")
    assert stable == short.hold(3e-3, name="stable")
    assert down == short.move(3e-3, 2e-5, steps=20, name="decay")
    bare = short.wsd(warmup_steps=0, decay_steps=None, decay_tokens=0)
    assert bare.phases() == (stable,)
    root = short.wsd(decay_shape="inverse_sqrt", decay_steps=None, decay_tokens=5).phases()[-1]
    assert root == short.decay(3e-3, floor=2e-5, tokens=5, name="decay")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"warmup_tokens": 5}, "give warmup_steps or warmup_tokens"),
        ({"decay_steps": None}, "give decay_steps or decay_tokens"),
        ({"warmup_steps": -1}, "must not be negative"),
        ({"final_lr": -1e-3}, "must not be negative"),
        ({"peak_lr": 0.0}, "must be above 0"),
        ({"decay_shape": "exponential", "final_lr": 0.0}, "never reaches 0"),
    ],
)
def test_bad_schedules(change, message):
    with pytest.raises(ValueError, match=message):
        short.wsd(**change)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: short.hold(1.0, steps=1, tokens=1), "Hold 'hold': give steps or tokens"),
        (lambda: short.move(1.0, 0.0, steps=0), "1 or more"),
        (lambda: short.hold(0.0), "lr must be above 0"),
        (lambda: short.move(-1.0, 1.0), "start_lr must be 0 or more"),
        (lambda: short.move(1.0, 0.0, "exponential"), "end_lr must be above 0"),
        (lambda: short.decay(1.0, 0.5), "exponent must be below 0"),
        (lambda: short.decay(1.0, tau_steps=1, tau_tokens=1), "timescale_steps or"),
        (lambda: short.decay(1.0, floor=-1.0), "floor_lr must be 0 or more"),
        (lambda: short.law(1.0, b=0.5), "exponent below 0"),
        (lambda: phases.Phases(phases=()), "needs one phase or more"),
        (lambda: phases.Phases(phases=(short.hold(1.0, name="a"), short.hold(1.0, name="b"))),
         r"without a length: \['a', 'b'\]"),
        (lambda: phases.Phases(phases=(short.hold("previous"),)), "no previous one"),
        (lambda: phases.Phases(phases=(short.move("previous", 1.0),)), "no previous one"),
    ],
)  # fmt: skip
def test_bad_phases(make, message):
    with pytest.raises(ValueError, match=message):
        make()
