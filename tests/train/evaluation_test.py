# SPDX-License-Identifier: Apache-2.0
"""A recipe says it in gin."""

import pytest

from midjax import config
from midjax.train import evaluation

LINES = [
    "Evaluation.name='held_out'",
    "Evaluation.every_steps=50",
    "Evaluation.tokens='tokens'",
    "Evaluation.domains=('prose',)",
    "Evaluation.row_tokens=16",
    "Evaluation.batch_rows=4",
    "Evaluation.tokenizer='tokenizer'",
]
GATES = [
    "Evaluation.comparison=@Comparison()",
    "Comparison.gates=(@old/Gate(), @all/Gate())",
    "old/Gate.scores='domain/prose/*'",
    "old/Gate.largest_loss=0.02",
    "all/Gate.scores='retention'",
    "all/Gate.largest_loss=0.01",
    "all/Gate.must_hold_for='best_case'",
]


def test_gates_of_a_recipe():
    found = config.load_class(evaluation.Evaluation, (), LINES + GATES)
    assert [(g.scores, g.largest_loss, g.of, g.must_hold_for) for g in found.comparison.gates] == [
        ("domain/prose/*", 0.02, "relative", "estimate"),
        ("retention", 0.01, "relative", "best_case"),
    ]
    assert config.load_class(evaluation.Evaluation, (), LINES).comparison.gates == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["Evaluation.every_steps=0"], "every_steps must be 1 or more"),
        (["Evaluation.parent='before.json'"], "Comparison.gates is empty"),
    ],
)
def test_bad_fields_are_refused(changes, words):
    bound = {line.partition("=")[0]: line for line in LINES + changes}
    with pytest.raises(ValueError, match=words):
        config.load_class(evaluation.Evaluation, (), list(bound.values()))
