# SPDX-License-Identifier: Apache-2.0
"""Epochs: each holds every document, in an order of its own, and any row is found by its number."""

import collections

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from midjax.batches import pack, permute, rows

KEY = permute.key("test")


def source(lengths, row_tokens, policy, mask="document", key=KEY):
    packing = pack.Packing(row_tokens=row_tokens, policy=policy, mask=mask)
    lengths = np.array(lengths, np.int64)
    if policy == "concat":
        return rows.Laid(pack.stream(lengths, packing), lengths, mask, key)
    return rows.Planned(pack.plan(lengths, packing), key)


def places(pieces):
    """(document, place) of everything in some rows."""
    found = collections.Counter()
    columns = (pieces.document, pieces.start, pieces.length)
    for document, start, length in zip(*(c.tolist() for c in columns), strict=True):
        found.update((document, start + i) for i in range(length))
    return found


def part(pieces, begin, end):
    """The pieces of rows [begin, end)."""
    here = slice(pieces.first[begin], pieces.first[end])
    columns = {f: getattr(pieces, f)[here] for f in ("document", "start", "length")}
    return rows.Pieces(first=pieces.first[begin : end + 1] - here.start, **columns)


@hypothesis.given(
    # Few lengths, so that some are shared by many documents.
    lengths=st.lists(st.sampled_from([0, 2, 3, 4, 9, 30, 47]), min_size=1, max_size=40),
    row_tokens=st.integers(1, 20),
    policy=st.sampled_from(pack.POLICIES),
    mask=st.sampled_from(["document", "none"]),
    epoch=st.integers(0, 1 << 33),
)
@hypothesis.settings(max_examples=200, deadline=None)
def test_every_epoch_holds_the_same_as_the_plan(lengths, row_tokens, policy, mask, epoch):
    made = source(lengths, row_tokens, policy, mask)
    packing = pack.Packing(row_tokens=row_tokens, policy=policy, mask=mask)
    plan = pack.plan(np.array(lengths), packing)
    assert len(made) == len(plan)
    if not len(made):
        return
    numbers = epoch * len(made) + np.arange(len(made))
    ids, pieces = made.pieces(numbers)
    assert sorted(ids.tolist()) == list(range(len(made)))
    expected = places(rows.of_plan(plan, 0, len(plan)))
    assert places(pieces) == expected
    sizes = [int(part(pieces, i, i + 1).length.sum()) for i in range(len(made))]
    assert max(sizes) <= row_tokens
    # Any rows by their numbers alone, also over the end of the epoch.
    some = numbers[len(made) // 2] + np.arange(len(made))
    here, found = made.pieces(some)
    for i in range(len(made) - len(made) // 2):
        whole = part(pieces, len(made) // 2 + i, len(made) // 2 + i + 1)
        assert here[i] == ids[len(made) // 2 + i]
        assert places(part(found, i, i + 1)) == places(whole)


@pytest.mark.parametrize("policy", ["concat", "first_fit", "best_fit", "best_fit_whole"])
def test_the_order_of_documents_is_new_in_every_epoch(policy):
    """A permutation over the whole source: where a document stood says nothing of where it will."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(2, 60, 4000)
    made = source(lengths, 64, policy)
    where = []
    for epoch in range(3):
        _, pieces = made.pieces(epoch * len(made) + np.arange(len(made)))
        row, head = np.empty(len(lengths)), pieces.start == 0
        row[pieces.document[head]] = np.repeat(np.arange(len(made)), pieces.count)[head]
        where.append(row)
    for one, two in ((0, 1), (1, 2), (0, 2)):
        assert abs(np.corrcoef(where[one], where[two])[0, 1]) < 4 / np.sqrt(len(lengths))
    for row in where:
        assert abs(np.corrcoef(row, np.arange(len(lengths)))[0, 1]) < 4 / np.sqrt(len(lengths))
        # Documents that were neighbours in the folder are no nearer than any two: a mean distance
        # of a third of the rows.
        assert np.abs(np.diff(row)).mean() == pytest.approx(len(made) / 3, rel=0.05)


@pytest.mark.parametrize("policy", ["concat", "best_fit"])
def test_rows_are_mixed_with_other_documents_each_time(policy):
    lengths = np.full(300, 17)  # all of one class
    made = source(lengths, 64, policy)
    pairs = []
    for epoch in range(2):
        _, pieces = made.pieces(epoch * len(made) + np.arange(len(made)))
        together = set()
        for i in range(len(made)):
            documents = part(pieces, i, i + 1).document.tolist()
            together |= {(a, b) for a in documents for b in documents if a < b}
        pairs.append(together)
    assert len(pairs[0] & pairs[1]) < 0.05 * len(pairs[0])


def test_a_cut_document_is_one_document_in_each_epoch():
    """Exchanged as a whole: the pieces of a row number always make up whole documents."""
    made = source([50] * 20 + [9] * 30, 16, "best_fit")
    for epoch in range(3):
        _, pieces = made.pieces(epoch * len(made) + np.arange(len(made)))
        for document in range(20):
            here = pieces.document == document
            assert sorted(pieces.start[here].tolist()) == [0, 16, 32, 48]


def test_orders_are_a_function_of_the_key_alone():
    lengths = np.random.default_rng(2).integers(2, 60, 500)
    for policy in ("concat", "best_fit"):
        numbers = np.arange(40) + 7
        ids, pieces = source(lengths, 64, policy).pieces(numbers)
        again = source(lengths, 64, policy).pieces(numbers)
        other = source(lengths, 64, policy, key=permute.key("other")).pieces(numbers)
        assert (ids == again[0]).all() and (pieces.document == again[1].document).all()
        assert (ids != other[0]).mean() > 0.9


def test_mixed_rows_are_those_of_each_source():
    rng = np.random.default_rng(3)
    sources = [
        source(rng.integers(2, 60, 100), 32, policy) for policy in ("concat", "best_fit", "whole")
    ]
    chosen = rng.integers(0, 3, 200)
    numbers = np.empty(200, np.int64)
    for k in range(3):
        numbers[chosen == k] = 5 + np.arange((chosen == k).sum())
    ids, pieces = rows.mixed(sources, chosen, numbers)
    for i in range(200):
        alone_id, alone = sources[chosen[i]].pieces(numbers[i : i + 1])
        mine = part(pieces, i, i + 1)
        assert ids[i] == alone_id[0]
        for field in ("document", "start", "length"):
            assert getattr(mine, field).tolist() == getattr(alone, field).tolist()
    none, no_pieces = rows.mixed(sources, chosen[:0], numbers[:0])
    assert len(none) == len(no_pieces) == 0


def test_rows_of_a_plan_and_after_its_end():
    plan = pack.plan(np.array([5, 9, 3]), pack.Packing(row_tokens=8, policy="concat"))
    pieces = rows.of_plan(plan, 1, 4)
    assert pieces.count.tolist() == [2, 0, 0]
    assert places(pieces) == {(1, i): 1 for i in range(4, 8)} | {(2, 0): 1, (2, 1): 1}
