# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest

from midjax.train.optimizers import common


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule(common.Common):
    b: float = 0.9


def test_the_usual_rules_are_there_without_being_said():
    made = Rule(weight_decay=0.1, clip_norm=None)
    assert dict(made.decay_rules) == dict(common.USUAL_DECAY)
    assert made.decay_rules is not common.USUAL_DECAY


@pytest.mark.parametrize(
    "change",
    [{"weight_decay": -1.0}, {"clip_norm": 0.0}, {"decay_rules": {"(": 1.0}},
     {"decay_rules": {".*": -1.0}}],
)  # fmt: skip
def test_bad_numbers_are_told_by_the_class_that_has_them(change):
    with pytest.raises(ValueError, match=rf"Rule\.{next(iter(change))}"):
        Rule(**({"weight_decay": 0.1, "clip_norm": 1.0} | change))


def test_weights_of_means():
    common.check_means(Rule(weight_decay=0.0, clip_norm=None, b=0.996), b="bfloat16")
    common.check_means(Rule(weight_decay=0.0, clip_norm=None, b=0.9999), b="float32")
    for b, dtype, message in (
        (1.0, "float32", r"Rule\.b must lie in \[0, 1\)"),
        (-0.1, "float32", r"Rule\.b must lie in \[0, 1\)"),
        (1 - 2**-8, "bfloat16", r"Rule\.b = 0\.99609375 is too slow"),
    ):
        with pytest.raises(ValueError, match=message):
            common.check_means(Rule(weight_decay=0.0, clip_norm=None, b=b), b=dtype)
