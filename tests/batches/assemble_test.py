# SPDX-License-Identifier: Apache-2.0
"""Batches against the documents that they are made of."""

import collections

import fake_tokens
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from midjax.batches import assemble, pack, rows

LENGTHS = [5, 1, 40, 2, 17, 8, 9, 100, 3, 0, 33]


def assembled(lengths, row_tokens, policy, mask="document", masks=None):
    """All rows of one source as one batch."""
    packing = pack.Packing(row_tokens=row_tokens, policy=policy, mask=mask)
    plan = pack.plan(np.array(lengths, np.int64), packing)
    text = assemble.Text(tokens=fake_tokens.Documents(lengths, masks), mask=mask)
    pieces = rows.of_plan(plan, 0, len(plan))
    layout = assemble.lay(pieces, np.full(len(plan), 1), [text, text], row_tokens)
    return plan, assemble.batch(layout, 0, len(plan), [text, text])


@hypothesis.given(
    lengths=st.lists(st.integers(0, 70), max_size=25),
    row_tokens=st.integers(1, 40),
    policy=st.sampled_from(pack.POLICIES),
)
@hypothesis.settings(max_examples=200, deadline=None)
def test_every_pair_once_and_none_across_documents(lengths, row_tokens, policy):
    plan, made = assembled(lengths, row_tokens, policy)
    real = made.segments > 0
    assert made.tokens.shape == (len(plan), row_tokens)
    assert (made.weights == real).all() and (made.source == 1).all()
    assert (~real).sum() == plan.padding
    for field in (made.tokens, made.targets, made.positions):
        assert not field[~real].any()
    pairs = collections.Counter(
        zip(made.tokens[real].tolist(), made.targets[real].tolist(), strict=True)
    )
    kept = set(plan.documents.tolist())
    longest = row_tokens if policy in ("whole", "best_fit_whole") else 10**9
    expected = fake_tokens.pairs_of(lengths, lambda d, t: d in kept and t < longest)
    assert pairs == collections.Counter(expected)
    for r in range(len(plan)):
        for segment in range(1, made.segments[r].max(initial=0) + 1):
            (here,) = np.nonzero(made.segments[r] == segment)
            assert len(here) and (np.diff(here) == 1).all()
            assert made.positions[r, here].tolist() == list(range(len(here)))
            assert len(set(made.tokens[r, here] // fake_tokens.STRIDE)) == 1
        assert (np.diff(made.segments[r][real[r]]) >= 0).all()


@hypothesis.given(
    lengths=st.lists(st.integers(0, 70), max_size=25),
    row_tokens=st.integers(1, 40),
    policy=st.sampled_from(pack.POLICIES),
)
@hypothesis.settings(max_examples=200, deadline=None)
def test_rows_whose_documents_see_each_other(lengths, row_tokens, policy):
    """One segment, positions over the row, documents' last tokens between them, without loss."""
    plan, made = assembled(lengths, row_tokens, policy, mask="none")
    real = made.segments > 0
    assert made.segments.max(initial=0) <= 1
    for r in range(len(plan)):
        assert made.positions[r][real[r]].tolist() == list(range(real[r].sum()))
    document, place = np.divmod(made.tokens[real], fake_tokens.STRIDE)
    last = place == np.array(lengths)[document] - 1
    assert (made.weights[real] == ~last).all() and not made.weights[~real].any()
    assert not made.targets[real][last].any()
    assert (made.targets[real][~last] == made.tokens[real][~last] + 1).all()
    kept = set(plan.documents.tolist())
    longest = row_tokens if policy in ("whole", "best_fit_whole") else 10**9
    expected = {(d, t) for d in kept for t in range(min(lengths[d], longest))}
    found = zip(document.tolist(), place.tolist(), strict=True)
    assert collections.Counter(found) == collections.Counter(expected)


@pytest.mark.parametrize("mask", ["document", "none"])
@pytest.mark.parametrize("policy", ["concat", "best_fit"])
def test_what_bears_loss_is_what_the_targets_say(mask, policy):
    rng = np.random.default_rng(0)
    masks = {d: rng.integers(0, 2, n) for d, n in enumerate(LENGTHS) if d % 2 == 0}
    _, made = assembled(LENGTHS, 16, policy, mask=mask, masks=masks)
    seen = 0
    for token, target, weight, segment in zip(
        *(x.ravel() for x in (made.tokens, made.targets, made.weights, made.segments)), strict=True
    ):
        document, place = divmod(int(token), fake_tokens.STRIDE)
        if not segment or place == LENGTHS[document] - 1:
            assert weight == 0
            continue
        bears = masks[document][place + 1] if document in masks else 1
        assert target == token + 1 and weight == bears
        seen += 1
    assert seen == sum(max(n - 1, 0) for n in LENGTHS)


def test_rows_of_several_sources_and_masks():
    texts, plans = [], []
    for k, mask in enumerate(("document", "none")):
        lengths = [6, 4, 7] if k else [5, 5, 5]
        packing = pack.Packing(row_tokens=8, policy="concat", mask=mask)
        plans.append(pack.plan(np.array(lengths), packing))
        texts.append(assemble.Text(tokens=fake_tokens.Documents(lengths), mask=mask))
    pieces = [rows.of_plan(plan, 0, 1) for plan in plans]
    both = rows.Pieces(
        first=np.array([0, 2, 4]),
        **{
            f: np.concatenate([getattr(p, f) for p in pieces])
            for f in ("document", "start", "length")
        },
    )
    layout = assemble.lay(both, np.array([0, 1]), texts, 8)
    made = assemble.batch(layout, 0, 2, texts)
    one = fake_tokens.STRIDE
    assert made.source.tolist() == [[0] * 8, [1] * 8]
    assert made.tokens.tolist() == [
        [0, 1, 2, 3, one, one + 1, one + 2, one + 3],
        [0, 1, 2, 3, 4, 5, one, one + 1],
    ]
    assert made.targets[1].tolist() == [1, 2, 3, 4, 5, 0, one + 1, one + 2]
    assert made.segments.tolist() == [[1] * 4 + [2] * 4, [1] * 8]
    assert made.positions.tolist() == [[0, 1, 2, 3] * 2, list(range(8))]
    assert made.weights.tolist() == [[1] * 8, [1, 1, 1, 1, 1, 0, 1, 1]]
    for r in (0, 1):  # any of the rows alone
        for field, alone in vars(assemble.batch(layout, r, r + 1, texts)).items():
            assert alone.tolist() == getattr(made, field)[r : r + 1].tolist()
