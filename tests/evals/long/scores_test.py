# SPDX-License-Identifier: Apache-2.0
"""RULER's matches, chance against the hypergeometric mean, ranks by hand, published lengths."""

import math

import pytest

from midjax.evals import requests
from midjax.evals.long import prompts, scores


@pytest.mark.parametrize(
    ("answer", "references", "all_of", "part"),
    [
        (" the answer is 12 and 345.", ("12", "345"), 1.0, 1.0),
        ("12", ("12", "345"), 0.5, 1.0),
        ("", ("12",), 0.0, 0.0),
        ("PARIS\x00\n", ("paris",), 1.0, 1.0),
        ("a\tb", ("a\nb",), 1.0, 1.0),  # unprintable letters are line ends
        ("1 2", ("12",), 0.0, 0.0),
    ],
)
def test_matches(answer, references, all_of, part):
    assert scores.match(answer, references, "all") == all_of
    assert scores.match(answer, references, "part") == part


def prompt(references, pool):
    return prompts.Prompt(
        text="q", tokens=1, answer_tokens=1, references=references, decoys=("dd", "ee"), pool=pool,
        is_exact=True, redrawn=0,
    )  # fmt: skip


def test_chance_is_the_mean_of_what_is_drawn_without_putting_back():
    found = scores.chance(prompt(("a", "b", "c"), 8), "all")
    total = math.comb(8, 3)
    ways = [math.comb(3, k) * math.comb(5, 3 - k) for k in range(4)]
    assert found == pytest.approx(sum(k / 3 * n for k, n in enumerate(ways)) / total)
    assert scores.chance(prompt(("a", "b"), 5.0), "part") == 0.2


def test_numbers_of_what_was_written():
    made = [prompt(("a", "b"), 4), prompt(("c",), 2), prompt(("d",), 2), prompt(("e",), 8)]
    found = scores.written("vt", made, ["a", "c", "x", "e"])
    assert found["score"] == 0.625 and found["chance"] == 0.40625
    # deviations -1/8, 3/8, -5/8, 3/8: squares 44/64
    assert found["score_error"] == pytest.approx(math.sqrt(44 / 64 / 3) / 2)
    assert scores.written("vt", made[:1], ["a"])["score_error"] is None


def likelihoods(*nats):
    return [requests.Likelihood(nats=n, greedy=False, tokens=1) for n in nats]


def test_ranks_are_per_byte():
    (one, *others) = scores.candidates("cwe", prompt(("gold",), 3))
    assert one.continuation == " 1. gold" and [o.continuation for o in others] == [
        " 1. dd",
        " 1. ee",
    ]
    asked = [one, *others]  # 8, 6 and 6 bytes
    numbers = [
        (likelihoods(-8, -7, -6.6), 1.0, 1.0),  # 1, 1.17 and 1.1 nats a byte
        (likelihoods(-8, -5, -6.6), 0.0, 2.0),
        (likelihoods(-8, -6, -6), 1 / 3, 2.0),
        (likelihoods(-8, -6, -9), 1 / 2, 1.5),
    ]
    for told, first, rank in numbers:
        found = scores.ranked([asked], [told])
        assert (found["first"], found["rank"]) == (pytest.approx(first), rank)
        assert found["first_chance"] == pytest.approx(1 / 3)
        assert found["bits_per_byte"] == pytest.approx(1 / math.log(2))
    both = scores.ranked([asked, asked], [numbers[0][0], numbers[1][0]])
    assert (both["first"], both["first_error"], both["rank"]) == (0.5, 0.5, 1.5)
    lost = scores.ranked([asked], [likelihoods(math.nan, -1, -1)])
    assert lost["first"] is lost["rank"] is lost["bits_per_byte"] is None


# Of RULER's table: scores at 4K, 8K ... 128K, in percent, and the effective length it says.
PUBLISHED = {
    "Llama3.1 70B": ((96.5, 96.3, 95.4, 94.8, 88.4, 66.6), 64),
    "Llama3.1 8B": ((95.5, 93.8, 91.6, 87.4, 84.7, 77.0), 32),
    "Mistral 7B": ((93.6, 91.2, 87.2, 75.4, 49.0, 13.8), 16),
    "Mistral Nemo": ((87.8, 87.2, 87.7, 69.0, 46.8, 19.0), 16),
    "InternLM2.5": ((88.1, 85.5, 84.5, 82.7, 75.5, 68.9), 4),
    "LongChat": ((84.7, 79.9, 70.8, 59.3, 0.0, 0.0), None),
}


@pytest.mark.parametrize("model", sorted(PUBLISHED))
def test_effective_lengths_are_the_published_ones(model):
    percent, effective = PUBLISHED[model]
    means = [(4 * 2**n, value / 100) for n, value in enumerate(percent)]
    assert scores.effective(means, scores.LLAMA2_7B_AT_4K) == effective
