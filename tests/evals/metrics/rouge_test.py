# SPDX-License-Identifier: Apache-2.0
"""ROUGE against the library rouge_score, and one case by hand."""

import random

import pytest
from rouge_score import rouge_scorer

from midjax.evals.metrics import rouge


def test_equals_rouge_score():
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    words = ["the", "cat", "sat", "Mat.", "on", "2-3", "é", "don't", "", "a_b", "\n"]
    generator = random.Random(0)
    for _ in range(300):
        predicted, gold = (
            " ".join(generator.choices(words, k=generator.randint(0, 12))) for _ in range(2)
        )
        wanted = scorer.score(gold, predicted)
        assert rouge.rouge_n(predicted, gold, 1) == pytest.approx(wanted["rouge1"].fmeasure)
        assert rouge.rouge_n(predicted, gold, 2) == pytest.approx(wanted["rouge2"].fmeasure)
        assert rouge.rouge_l(predicted, gold) == pytest.approx(wanted["rougeL"].fmeasure)


def test_by_hand():
    """Lin 2004, section 3: "police kill the gunman" keeps 2 of 4 words of S1 in order."""
    reference = "police killed the gunman"
    assert rouge.rouge_l("police kill the gunman", reference) == pytest.approx(3 / 4)
    assert rouge.rouge_l("the gunman kill police", reference) == pytest.approx(2 / 4)
