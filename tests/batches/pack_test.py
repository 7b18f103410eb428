# SPDX-License-Identifier: Apache-2.0
"""Packing against the definition: every (input, target) pair of every document exactly once."""

import collections

import numpy as np
import pytest

from midjax.batches import pack


class Documents:
    """A token source in memory; token t of document d is 1000 * d + t."""

    def __init__(self, lengths):
        self.lengths = np.array(lengths)

    def __getitem__(self, index):
        return (1000 * index + np.arange(self.lengths[index])).astype(np.int32)


LENGTHS = [5, 1, 40, 2, 17, 8, 9, 100, 3, 0, 33]


@pytest.mark.parametrize("policy", ["concat", "best_fit"])
@pytest.mark.parametrize("row_tokens", [1, 7, 16, 64, 1000])
def test_every_pair_once_and_none_across_documents(policy, row_tokens):
    plan = pack.plan(np.array(LENGTHS), row_tokens, policy)
    rows = pack.Rows(Documents(LENGTHS), plan, source_index=4)
    pairs = collections.Counter()
    padding = 0
    for i in range(len(rows)):
        row = rows[i]
        real = row["segments"] > 0
        assert (row["weights"] == real).all() and (row["source"] == 4).all()
        pairs.update(zip(row["tokens"][real].tolist(), row["targets"][real].tolist(), strict=True))
        padding += (~real).sum()
        for segment in range(1, row["segments"].max() + 1):
            here = row["segments"] == segment
            assert np.diff(np.nonzero(here)[0]).max(initial=1) == 1  # contiguous
            assert row["positions"][here].tolist() == list(range(here.sum()))
            assert len({t // 1000 for t in row["tokens"][here]}) == 1  # one document
    expected = {
        (1000 * d + t, 1000 * d + t + 1) for d, n in enumerate(LENGTHS) for t in range(n - 1)
    }
    assert pairs == collections.Counter(expected)
    assert plan.padding == padding
    assert plan.dropped == {"fewer than 2 tokens": 2}


@pytest.mark.parametrize("policy", ["concat", "best_fit", "whole"])
@pytest.mark.parametrize("bounds", [(None, 9), (9, 40), (40, None), (None, 17), (18, None)])
def test_bounds_are_the_plan_of_the_documents_within_them(policy, bounds):
    least, most = bounds
    plan = pack.plan(np.array(LENGTHS), 8, policy, least_tokens=least, most_tokens=most)
    inside = [d for d, n in enumerate(LENGTHS) if (least or 0) <= n <= (most or 1000)]
    alone = pack.plan(np.array([LENGTHS[d] for d in inside]), 8, policy)
    assert plan.document.tolist() == [inside[d] for d in alone.document]
    for field in ("start", "length", "row_start"):
        assert getattr(plan, field).tolist() == getattr(alone, field).tolist()


def test_documents_out_of_bounds_are_counted_once_with_their_reason():
    plan = pack.plan(np.array(LENGTHS), 8, "best_fit", least_tokens=5, most_tokens=33)
    assert plan.dropped == {"fewer than 5 tokens": 4, "more than 33 tokens": 2}
    assert len(plan) and sum(plan.dropped.values()) + len(set(plan.document)) == len(LENGTHS)
    plan = pack.plan(np.array(LENGTHS), 8, "whole", least_tokens=9, most_tokens=33)
    assert plan.dropped == {"fewer than 9 tokens": 6, "more than 33 tokens": 2}
    assert pack.plan(np.array(LENGTHS), 8, "concat", most_tokens=100).dropped == {
        "fewer than 2 tokens": 2
    }


def test_concat_pads_only_the_last_row():
    plan = pack.plan(np.array(LENGTHS), 16, "concat")
    total = sum(max(n - 1, 0) for n in LENGTHS)
    assert len(plan) == -(-total // 16) and plan.padding == len(plan) * 16 - total


def test_best_fit_cuts_no_document_that_fits():
    plan = pack.plan(np.array(LENGTHS), 64, "best_fit")
    pieces = collections.Counter(plan.document.tolist())
    assert all(pieces[d] == 1 for d, n in enumerate(LENGTHS) if 2 <= n <= 65)
    assert pieces[7] == 2  # 99 pairs in rows of 64


def test_best_fit_decreasing_by_hand():
    # Pairs 8, 7, 6, 3, 2, 2 into rows of 10: [8 2] [7 3] [6 2], none of which a worse fit reaches.
    plan = pack.plan(np.array([3, 9, 4, 8, 7, 3]), 10, "best_fit")
    rows = [
        sorted(plan.length[plan.row_start[r] : plan.row_start[r + 1]].tolist())
        for r in range(len(plan))
    ]
    assert sorted(rows) == [[2, 6], [2, 8], [3, 7]]


def test_whole_takes_the_head_of_long_documents_and_counts_the_rest():
    plan = pack.plan(np.array(LENGTHS), 32, "whole")
    assert plan.document.tolist() == [2, 7, 10]
    assert plan.dropped == {"fewer than 2 tokens": 2, "fewer than 33 tokens": 6}
    row = pack.Rows(Documents(LENGTHS), plan, 0)[1]
    assert row["tokens"].tolist() == [7000 + t for t in range(32)]
    assert row["targets"][-1] == 7032


def test_the_plan_is_a_function_of_its_arguments():
    one, two = (pack.plan(np.array(LENGTHS), 16, "best_fit") for _ in range(2))
    for field in ("row_start", "document", "start", "length"):
        assert (getattr(one, field) == getattr(two, field)).all()


def test_no_documents_no_rows():
    for policy in ("concat", "best_fit", "whole"):
        assert len(pack.plan(np.array([], np.int64), 8, policy)) == 0


def test_bad_arguments():
    with pytest.raises(ValueError, match="row_tokens must be 1 or more"):
        pack.plan(np.array([3]), 0, "concat")
    with pytest.raises(ValueError, match="Unknown packing policy 'first'"):
        pack.plan(np.array([3]), 4, "first")
