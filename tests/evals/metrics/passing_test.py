# SPDX-License-Identifier: Apache-2.0
"""pass@k against its definition: the share of all draws of k samples that hold a right one."""

import itertools

import pytest

from midjax.evals.metrics import passing


@pytest.mark.parametrize("samples, passed", [(5, 0), (5, 1), (5, 3), (6, 6), (1, 1)])
def test_equals_the_mean_over_all_draws(samples, passed):
    right = [i < passed for i in range(samples)]
    for k in range(1, samples + 1):
        draws = list(itertools.combinations(right, k))
        assert passing.pass_at_k(samples, passed, k) == pytest.approx(
            sum(map(any, draws)) / len(draws)
        )


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="pass@10 needs 10 samples or more, and there are 5"):
        passing.pass_at_k(5, 1, 10)
    with pytest.raises(ValueError, match="6 of 5 samples"):
        passing.pass_at_k(5, 6, 1)
