# SPDX-License-Identifier: Apache-2.0
"""Drawn tokens against probabilities in closed form."""

import jax
import numpy as np
import pytest

from midjax.evals import sampling

LOGITS = np.log(np.array([0.02, 0.3, 0.05, 0.25, 0.01, 0.2, 0.07, 0.1], np.float32))
DRAWS = 20_000
# 99.9th percentiles of chi-square with 1..7 degrees of freedom (Abramowitz and Stegun, table 26.8).
CHI_SQUARE = (10.83, 13.82, 16.27, 18.47, 20.52, 22.46, 24.32)


def draw(policy, temperature, top_p, logits=LOGITS, rows=DRAWS):
    keys = np.stack([sampling.key_of(1, [5, 7], sample) for sample in range(rows)])
    full = np.full(rows, 1, np.float32)
    return np.asarray(
        jax.jit(sampling.choose, static_argnums=0)(
            policy,
            np.broadcast_to(logits, (rows, len(logits))),
            keys,
            np.full(rows, 3, np.int32),
            full * temperature,
            full * top_p,
        )
    )


def exact(temperature, top_p):
    """Probabilities by sorting, in float64."""
    raised = np.exp(LOGITS.astype(np.float64) / temperature)
    share = raised / raised.sum()
    order = np.argsort(-share)
    before = np.cumsum(share[order]) - share[order]
    kept = order[before < top_p]
    found = np.zeros_like(share)
    found[kept] = share[kept] / share[kept].sum()
    return found


@pytest.mark.parametrize(
    ("policy", "temperature", "top_p", "tokens"),
    [
        ("whole", 1.0, 1.0, 8),
        ("whole", 0.5, 1.0, 8),
        ("nucleus", 1.0, 0.7, 3),
        ("nucleus", 1.0, 0.76, 4),
        ("nucleus", 2.0, 0.9, 6),
        ("nucleus", 1.5, 1.0, 8),
    ],
)
def test_frequencies(policy, temperature, top_p, tokens):
    want = exact(temperature, top_p)
    assert np.count_nonzero(want) == tokens
    counts = np.bincount(draw(policy, temperature, top_p), minlength=8)
    assert not counts[want == 0].any()
    expected = DRAWS * want[want > 0]
    statistic = np.sum((counts[want > 0] - expected) ** 2 / expected)
    assert statistic < CHI_SQUARE[tokens - 2]


def test_the_likeliest_needs_no_luck():
    assert set(draw("nucleus", 1.0, 1e-6, rows=50)) == {1}
    assert set(draw("whole", 0.0, 1.0, rows=50)) == {1}
    assert set(draw("greedy", 0.0, 1.0, rows=2)) == {1}
    equal = np.array([1.0, 2.0, 2.0], np.float32)
    assert set(draw("greedy", 0.0, 1.0, logits=equal, rows=2)) == {1}  # the first
    assert set(draw("nucleus", 1.0, 0.1, logits=equal, rows=50)) == {1, 2}  # both or none


def test_a_nucleus_of_many_is_that_of_sorting():
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 3, (6, 5000)).astype(np.float32)
    top_p = np.array([0.05, 0.5, 0.9, 0.99, 0.9999, 1.0], np.float32)
    found = np.asarray(jax.jit(sampling.nucleus)(scores, top_p))
    for row, wanted in enumerate(top_p[:4]):
        raised = np.exp(scores[row].astype(np.float64))
        share = np.sort(raised / raised.sum())[::-1]
        assert abs(found[row].sum() - (1 + np.searchsorted(np.cumsum(share), wanted))) <= 1
        assert scores[row][found[row]].min() > scores[row][~found[row]].max()
    assert found[5].all()


def test_keys_tell_seeds_prompts_and_samples_apart():
    keys = [(0, [1, 2], 0), (1, [1, 2], 0), (0, [12], 0), (0, [1, 2], 1), (0, [2, 1], 0)]
    assert len({sampling.key_of(*key).tobytes() for key in keys}) == 5
    assert (sampling.key_of(0, [1, 2], 0) == sampling.key_of(0, (1, 2), 0)).all()


def test_the_number_of_the_token_counts():
    key = np.stack([sampling.key_of(0, [1], 0)] * 64)
    flat, ones = np.zeros((64, 1000), np.float32), np.ones(64, np.float32)
    numbers = np.arange(64, dtype=np.int32)
    choose = jax.jit(sampling.choose, static_argnums=0)
    found = choose("whole", flat, key, numbers, ones, ones)
    assert len(set(found.tolist())) > 55


def test_policies():
    assert sampling.policy_of([0.0, 0.0], [0.5, 1.0]) == "greedy"
    assert sampling.policy_of([0.0, 1.0], [0.5, 1.0]) == "whole"
    assert sampling.policy_of([0.0, 1.0], [1.0, 0.9]) == "nucleus"
