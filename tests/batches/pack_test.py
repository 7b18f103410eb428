# SPDX-License-Identifier: Apache-2.0
"""Plans against the definition: every place of every document exactly once, unless truncated."""

import collections

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from midjax.batches import pack

LENGTHS = [5, 1, 40, 2, 17, 8, 9, 100, 3, 0, 33]


def plan(lengths, row_tokens, policy, **kwargs):
    packing = pack.Packing(row_tokens=row_tokens, policy=policy, **kwargs)
    return pack.plan(np.array(lengths, np.int64), packing)


@st.composite
def packings(draw):
    low, high = (draw(st.none() | st.integers(2, 60)) for _ in range(2))
    if low and high and low > high:
        low, high = high, low
    return pack.Packing(
        row_tokens=draw(st.integers(1, 40)),
        policy=draw(st.sampled_from(pack.POLICIES)),
        mask=draw(st.sampled_from(["document", "none"])),
        least_tokens=low,
        most_tokens=high,
    )


def expected_places(n, packing):
    """What a document of n tokens takes of rows, and what of it is truncated."""
    if n < max(2, packing.least_tokens or 0) or n > (packing.most_tokens or n):
        return 0, 0
    size = n - 1 if packing.mask == "document" else n
    if packing.policy == "whole" and n <= packing.row_tokens:
        return 0, 0
    if packing.policy in ("whole", "best_fit_whole"):
        return min(size, packing.row_tokens), max(size - packing.row_tokens, 0)
    return size, 0


@hypothesis.given(lengths=st.lists(st.integers(0, 130), max_size=60), packing=packings())
@hypothesis.settings(max_examples=300, deadline=None)
def test_every_place_once_or_counted(lengths, packing):
    made = pack.plan(np.array(lengths, np.int64), packing)
    expected = [expected_places(n, packing) for n in lengths]
    size, truncated = [s for s, _ in expected], [t for _, t in expected]
    found = collections.Counter()
    pieces = zip(made.document.tolist(), made.start.tolist(), made.length.tolist(), strict=True)
    for document, start, length in pieces:
        assert length > 0
        found.update((document, start + i) for i in range(length))
    assert found == collections.Counter((d, i) for d, s in enumerate(size) for i in range(s))
    assert made.tokens == sum(size) and made.truncated_tokens == sum(truncated)
    assert sum(made.dropped.values()) + len(made.documents) == len(lengths)
    assert sorted(made.documents.tolist()) == [d for d, s in enumerate(size) if s]
    assert made.row_start[0] == 0 and made.row_start[-1] == len(made.length)
    filled = [
        int(made.length[a:b].sum())
        for a, b in zip(made.row_start, made.row_start[1:], strict=False)
    ]
    assert all(0 < tokens <= packing.row_tokens for tokens in filled)
    assert made.padding == len(made) * packing.row_tokens - sum(size)
    # Documents of one class are equally long, and every document is in one.
    for a, b in zip(made.class_start, made.class_start[1:], strict=False):
        assert len({lengths[d] for d in made.documents[a:b]}) == 1
    assert made.class_start[0] == 0 and made.class_start[-1] == len(made.documents)
    if packing.policy == "concat":
        assert all(tokens == packing.row_tokens for tokens in filled[:-1])
        stream = pack.stream(np.array(lengths, np.int64), packing)
        assert (len(stream), stream.padding) == (len(made), made.padding)
        assert stream.dropped == made.dropped
        kept = range(len(lengths)) if stream.documents is None else stream.documents.tolist()
        assert sorted(kept) == sorted(made.documents.tolist())
    elif packing.policy != "whole":  # cut only where they are longer than a row
        pieces = collections.Counter(made.document.tolist())
        for d, n in pieces.items():
            assert n == -(-size[d] // packing.row_tokens)


@hypothesis.given(
    lengths=st.lists(st.integers(2, 60), min_size=1, max_size=80), row_tokens=st.integers(1, 40)
)
@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.example(lengths=[10, 30, 12, 56, 54, 57], row_tokens=24)  # one row more than first-fit
def test_best_fit_is_within_its_bound_of_any_packing(lengths, row_tokens):
    """Longest first it needs at most 11/9 of the fewest rows and 4 (Johnson et al. 1974).

    First-fit's are no fewer than the fewest. It takes the documents in another order, and so may
    need fewer rows than best-fit: on few lengths, and here by one.
    """
    best, first = (plan(lengths, row_tokens, policy) for policy in ("best_fit", "first_fit"))
    assert best.tokens == first.tokens and 9 * len(best) <= 11 * len(first) + 36


def test_fill_on_web_like_lengths():
    """Lognormal with a mean of about 600 tokens, as in the benchmark of the data."""
    rng = np.random.default_rng(0)
    lengths = np.maximum(rng.lognormal(np.log(600) - 0.5, 1.0, 20_000).astype(int), 2)
    assert lengths.mean() == pytest.approx(600, rel=0.02)
    fill = {}
    for policy in ("first_fit", "best_fit", "best_fit_whole", "concat"):
        made = plan(lengths, 2048, policy)
        fill[policy] = made.tokens / (len(made) * 2048)
    assert fill["best_fit"] > 0.999 and fill["best_fit_whole"] > 0.999
    assert fill["first_fit"] <= fill["best_fit"] <= fill["concat"]
    assert (
        plan(lengths, 2048, "best_fit_whole").truncated_tokens
        == np.maximum(lengths - 2049, 0).sum()
    )


@pytest.mark.parametrize("policy", pack.POLICIES)
@pytest.mark.parametrize("bounds", [(None, 9), (9, 40), (40, None), (None, 17), (18, None)])
def test_bounds_are_the_plan_of_the_documents_within_them(policy, bounds):
    least, most = bounds
    made = plan(LENGTHS, 8, policy, least_tokens=least, most_tokens=most)
    inside = [d for d, n in enumerate(LENGTHS) if (least or 0) <= n <= (most or 1000)]
    alone = plan([LENGTHS[d] for d in inside], 8, policy)
    assert made.document.tolist() == [inside[d] for d in alone.document]
    for field in ("start", "length", "row_start"):
        assert getattr(made, field).tolist() == getattr(alone, field).tolist()


def test_documents_out_of_bounds_are_counted_once_with_their_reason():
    made = plan(LENGTHS, 8, "best_fit", least_tokens=5, most_tokens=33)
    assert made.dropped == {"fewer than 5 tokens": 4, "more than 33 tokens": 2}
    assert len(made) and sum(made.dropped.values()) + len(set(made.document)) == len(LENGTHS)
    made = plan(LENGTHS, 8, "whole", least_tokens=9, most_tokens=33)
    assert made.dropped == {"fewer than 9 tokens": 6, "more than 33 tokens": 2}
    assert plan(LENGTHS, 8, "concat", most_tokens=100).dropped == {"fewer than 2 tokens": 2}


def test_concat_is_the_documents_in_their_order():
    made = plan(LENGTHS, 16, "concat")
    assert made.document.tolist() == sorted(made.document.tolist())
    total = sum(max(n - 1, 0) for n in LENGTHS)
    assert len(made) == -(-total // 16) and made.padding == len(made) * 16 - total


def test_best_fit_decreasing_by_hand():
    # Pairs 8, 7, 6, 3, 2, 2 into rows of 10: [8 2] [7 3] [6 2], none of which a worse fit reaches.
    made = plan([3, 9, 4, 8, 7, 3], 10, "best_fit")
    rows = [
        sorted(made.length[made.row_start[r] : made.row_start[r + 1]].tolist())
        for r in range(len(made))
    ]
    assert sorted(rows) == [[2, 6], [2, 8], [3, 7]]


def test_first_fit_goes_in_the_documents_order():
    # Pairs 6, 5, 4, 3, 2 into rows of 10: the 4 goes beside the 6, and 3 and 2 beside the 5.
    made = plan([7, 6, 5, 4, 3], 10, "first_fit")
    rows = [
        set(made.document[a:b]) for a, b in zip(made.row_start, made.row_start[1:], strict=False)
    ]
    assert rows == [{0, 2}, {1, 3, 4}]


def test_long_documents_do_not_own_the_start_of_rows():
    lengths = np.tile([91, 9], 500)
    made = plan(lengths, 100, "best_fit")
    first = made.length[made.row_start[:-1]]
    assert 0.35 < (first == 90).mean() < 0.65


def test_whole_takes_the_head_of_long_documents_and_counts_the_rest():
    made = plan(LENGTHS, 32, "whole")
    assert made.document.tolist() == [2, 7, 10] and made.start.tolist() == [0, 0, 0]
    assert made.dropped == {"fewer than 2 tokens": 2, "fewer than 33 tokens": 6}
    assert made.truncated_tokens == 39 - 32 + 99 - 32


def test_the_plan_is_a_function_of_its_arguments():
    one, two = (plan(LENGTHS, 16, "best_fit") for _ in range(2))
    for field in ("row_start", "documents", "place", "start", "length"):
        assert (getattr(one, field) == getattr(two, field)).all()


@pytest.mark.parametrize("policy", pack.POLICIES)
def test_no_documents_no_rows(policy):
    assert len(plan([], 8, policy)) == len(plan([1, 0], 8, policy)) == 0


def test_bad_arguments():
    with pytest.raises(ValueError, match="row_tokens must be 1 or more"):
        plan([3], 0, "concat")
    with pytest.raises(ValueError, match="Unknown packing policy 'first'"):
        plan([3], 4, "first")
    with pytest.raises(ValueError, match="Unknown mask 'all'"):
        plan([3], 4, "concat", mask="all")
