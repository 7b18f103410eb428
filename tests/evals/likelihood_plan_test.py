# SPDX-License-Identifier: Apache-2.0
"""Plans give every text back, whole and once, and compute what texts share once."""

import numpy as np
import pytest

from midjax.evals import likelihood_plan


def text(ids, scored, **kwargs):
    ids = np.array(ids, np.int32)
    # A target that names its place, so that no other will do.
    return likelihood_plan.Text(ids=ids, targets=ids[-scored:] + 1000, **kwargs)


def read_back(plan, count):
    """(ids that lead to each scored place, target) of every text, and places used."""
    found, used = [[] for _ in range(count)], 0
    for group in plan.groups:
        prefix = plan.prefix(group).tolist()
        used += len(prefix)
        for rows in plan.rows(group):
            used += rows.used
            assert rows.used == np.count_nonzero(rows.segments)
            for row, (places, targets, numbers) in enumerate(rows.slots):
                for place, target, number in zip(places, targets, numbers, strict=True):
                    seen = np.arange(rows.tokens.shape[1])
                    path = seen[(seen <= place) & (place < rows.ends[row])]
                    assert len(set(rows.segments[row, path])) == 1 and rows.segments[row, place]
                    wanted = len(prefix) + np.arange(len(path))
                    assert rows.positions[row, path].tolist() == wanted.tolist()
                    found[number].append((prefix + rows.tokens[row, path].tolist(), int(target)))
    return found, used


def check(texts, plan):
    found, used = read_back(plan, len(texts))
    for one, pairs in zip(texts, found, strict=True):
        ids = one.ids.tolist()
        ends = range(len(ids) - len(one.targets) + 1, len(ids) + 1)
        want = [(ids[:end], int(t)) for end, t in zip(ends, one.targets, strict=True)]
        assert pairs == want
    return used


def shared_texts(rng, heads, questions, choices):
    """Of every head `questions`, of each `choices`."""
    found = []
    for size in heads:
        head = rng.integers(0, 50, size).tolist()
        for _ in range(questions):
            question = head + rng.integers(0, 50, rng.integers(1, 40)).tolist()
            for _ in range(choices):
                more = rng.integers(0, 50, rng.integers(1, 9)).tolist()
                found.append(text(question + more, int(rng.integers(1, len(more) + 2))))
    rng.shuffle(found)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_every_text_is_scored_whole_and_once(seed):
    rng = np.random.default_rng(seed)
    texts = shared_texts(rng, (0, 3, 40, 200, 700), 12, 3)
    texts += [text(rng.integers(0, 50, size), 1) for size in (1, 255, 256, 257, 600, 1500)]
    texts += texts[:5]  # twice the same
    assert check(texts, likelihood_plan.Plan(texts)) < sum(len(one.ids) for one in texts) / 3
    assert check(texts, likelihood_plan.Plan(texts, share=False)) == sum(
        len(one.ids) for one in texts
    )


def test_few_shot_examples_are_computed_once_for_each_subject():
    rng = np.random.default_rng(0)
    texts = shared_texts(rng, (300, 500), 40, 1)
    plan = likelihood_plan.Plan(texts)
    # A token more where all questions of a subject happen to begin alike.
    assert [group.prefix - size for group, size in zip(plan.groups, (300, 500), strict=True)] in (
        [0, 0], [0, 1], [1, 0],
    )  # fmt: skip
    rests = sum(len(one.ids) for one in texts) - 40 * 800
    assert check(texts, plan) <= 800 + rests


def test_inner_prefixes_win_where_they_spare_more():
    rng = np.random.default_rng(1)
    outer = rng.integers(0, 50, 40).tolist()
    inner = [outer + [50 + i] + rng.integers(0, 50, 300).tolist() for i in range(3)]
    texts = [text(head + rng.integers(0, 50, 60).tolist(), 2) for head in inner for _ in range(20)]
    assert [group.prefix for group in likelihood_plan.Plan(texts).groups] == [341] * 3


def test_nothing_that_is_scored_is_in_a_prefix():
    rng = np.random.default_rng(2)
    same = rng.integers(0, 50, 100).tolist()
    texts = [text(same + rng.integers(0, 50, 50).tolist(), 90) for _ in range(30)]
    plan = likelihood_plan.Plan(texts)
    assert [group.prefix for group in plan.groups] == [60]
    check(texts, plan)


def test_choices_of_one_token_cost_their_question_only():
    question = list(range(30))
    texts = [
        likelihood_plan.Text(ids=np.array(question), targets=np.array([choice]))
        for choice in range(4)
    ]
    (group,) = (plan := likelihood_plan.Plan(texts)).groups
    (rows,) = plan.rows(group)
    assert rows.used == 30 and rows.tokens.shape == (1, likelihood_plan.ROW_TOKENS)
    places, targets, _ = rows.slots[0]
    assert places.tolist() == [29] * 4 and sorted(targets.tolist()) == [0, 1, 2, 3]


def test_texts_apart_share_nothing():
    ids = list(range(40))
    texts = [text(ids, 1), text(ids, 1, is_apart=True), text(ids, 1, is_apart=True), text(ids, 1)]
    assert check(texts, likelihood_plan.Plan(texts)) == 3 * 40


def test_short_trees_fill_what_long_ones_leave():
    rng = np.random.default_rng(3)
    sizes = [600, *[100] * 8, *[50] * 4]  # one row of 1024 and three of 256
    texts = [text(rng.integers(0, 50, size), 1) for size in sizes]
    (group,) = (plan := likelihood_plan.Plan(texts)).groups
    shapes = [rows.tokens.shape for rows in plan.rows(group)]
    assert shapes == [(1, 1024), (3, 256)]
