# SPDX-License-Identifier: Apache-2.0
import pytest

from midjax.train.optimizers import rules

NAMES = ["embed", "head", "head_bias", "layers/wq"]


def test_each_parameter_has_the_value_of_its_rule():
    given = {"embed|head": 0.5, "layers/.*": 1.0, "(layers/)?[a-z_]*bias": 0.0}
    assert rules.assign(given, NAMES, "X.y") == {
        "embed": 0.5, "head": 0.5, "head_bias": 0.0, "layers/wq": 1.0
    }  # fmt: skip


def test_no_rule_and_two_rules_are_refused_with_parameter_and_rules():
    with pytest.raises(ValueError, match=r"X\.y: no rule matches the parameter 'head_bias'.*wq"):
        rules.assign({"embed|head": 0.0, "layers/wq": 1.0}, NAMES, "X.y")
    with pytest.raises(
        ValueError, match=r"X\.y: the rules \['\.\*', 'layers/w\.'\] all match .*'layers/wq'"
    ):
        rules.assign({".*": 0.0, "layers/w.": 1.0}, NAMES, "X.y")


def test_a_pattern_stands_for_the_whole_path():
    with pytest.raises(ValueError, match="no rule matches the parameter 'layers/wq'"):
        rules.assign({"layers/w": 1.0}, ["layers/wq"], "X.y")
    with pytest.raises(ValueError, match="no rule matches the parameter 'layers/wq'"):
        rules.assign({"wq": 1.0}, ["layers/wq"], "X.y")


def test_patterns_must_be_regular_expressions():
    with pytest.raises(ValueError, match=r"X\.y: '\(' is not a regular expression"):
        rules.check({"(": 1.0}, "X.y")
