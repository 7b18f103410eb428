# SPDX-License-Identifier: Apache-2.0
"""What grows, what is drawn, and what stands between what."""

from midjax.evals.long import draft


def made(beside):
    return draft.Draft(
        render=lambda units, size, tail: "", least_units=1, most_units=None, characters=0,
        references=("r", "s"), beside=lambda text: list(beside), forms=1000.0,
        elsewhere=lambda: iter(["a", "r", "b", "c", "d"]),
    )  # fmt: skip


def test_pools_are_the_candidates_of_the_text_or_the_form():
    assert made([]).pool("") == 1000
    assert made(["x", "y", "z"]).pool("") == 5


def test_decoys_are_wrong_and_those_of_the_text_come_first():
    rng = draft.generator("decoys")
    assert made([]).decoys("", 3, rng) == ("a", "b", "c")
    found = made(["x", "b"]).decoys("", 4, rng)
    assert set(found[:2]) == {"x", "b"} and found[2:] == ("a", "c")
    assert len(made(["x", "y", "z"]).decoys("", 2, rng)) == 2
    assert len(made([]).decoys("", 9, rng)) == 4  # all that there are


def test_endless_keeps_what_it_gave():
    numbers = draft.Endless(iter(range(100)))
    assert numbers.first(3) == [0, 1, 2] and numbers.first(1) == [0]
    assert numbers.first(5) == [0, 1, 2, 3, 4]


def test_draws_are_distinct_also_from_what_was_taken():
    given = iter("abacbd")
    taken = {"a"}
    assert [next(draft.distinct(lambda: next(given), taken)) for _ in range(3)] == ["b", "c", "d"]


def test_generators_depend_on_all_of_their_names():
    assert draft.generator(1, "a").random() == draft.generator(1, "a").random()
    assert len({draft.generator(*n).random() for n in ((1, "a"), (1, "b"), (2, "a"))}) == 3


def test_items_stand_after_their_share():
    filling = list("abcd")
    assert draft.spread(["X"], [0.0], filling) == list("Xabcd")
    assert draft.spread(["X"], [0.99], filling) == list("abcdX")
    assert draft.spread(["X", "Y", "Z"], [0.5, 0.1, 0.51], filling) == list("YabXZcd")
