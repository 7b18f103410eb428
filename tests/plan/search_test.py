# SPDX-License-Identifier: Apache-2.0
"""The order of a search, what it skips, and its front; on steps that are made up."""

import plan_recipes
import pytest

from midjax.plan import analysis, grid, predict, recipe, rough, search

POLICIES = ("full", "save_attention", "save_projections", "none")


def setting(remat="full", microbatches=1, fsdp=4, sums="by_dimension") -> grid.Setting:
    mesh = {"data": 4 // fsdp, "fsdp": fsdp, "context": 1, "expert": 1, "tensor": 1}
    return grid.Setting(
        mesh=mesh,
        microbatches=microbatches,
        remat=remat,
        state_sharding="as_params",
        state_memory="device",
        fsdp_sums=sums,
    )


def found(seconds, peak) -> analysis.Found:
    return analysis.Found(
        peak_bytes=peak, memory={}, largest=(), timeline=(), positions=0, peak_position=0,
        peak_op_name="", host_bytes=0, step_seconds=seconds, parts={}, collectives={},
        hidden_host_seconds=0.0, host_transfer_bytes=0.0, matrix_flops=0.0, kernel_flops=0.0,
        roofline=(), notes={},
    )  # fmt: skip


class Judge:
    """Steps of known time and memory; above the limit they do not fit."""

    def __init__(self, known, limit=10**9):
        self.known, self.limit, self.asked = known, limit, []

    def __call__(self, config):
        key = (config.model.remat, config.microbatches, config.mesh.fsdp)
        key += (config.fsdp_sums,) * (config.fsdp_sums != "by_dimension")
        self.asked.append(key)
        seconds, peak = self.known[key]
        common = {
            "batch_rows": 8, "row_tokens": 128, "microbatches": config.microbatches,
            "remat": config.model.remat, "layers": 2, "mesh": {}, "updates": 1,
        }  # fmt: skip
        if peak > self.limit:
            return predict.Step(outcome="out of memory", missing_bytes=peak - self.limit, **common)
        return predict.Step(outcome="fits", found=found(seconds, peak), **common)


def run(judge, guesses, **asked):
    settings = [
        (setting(*key), rough.Rough(least_bytes=bytes_, seconds=seconds))
        for key, (seconds, bytes_) in guesses.items()
    ]
    given = recipe.Search(**asked)
    return search.compiled(given, plan_recipes.train(rows=8), settings, judge)


def test_the_fastest_guess_comes_first_and_the_rest_is_counted():
    guesses = {(remat, 1, 4): (4.0 - i, 10 * i) for i, remat in enumerate(POLICIES)}
    judge = Judge(guesses)
    rows, skipped = run(judge, guesses, most_compiles=2)
    assert judge.asked == [("none", 1, 4), ("save_projections", 1, 4)]
    assert len(rows) == 2 and sum(skipped.values()) == 2


def test_what_keeps_more_than_a_step_that_did_not_fit_is_not_compiled():
    keys = [("save_projections", 2, 4), ("none", 2, 4), ("none", 4, 4), ("full", 2, 4)]
    guesses = {key: (1.0 + i, 5) for i, key in enumerate(keys)}
    judge = Judge(dict.fromkeys(keys, (1.0, 99)), limit=50)
    rows, skipped = run(judge, guesses, exhaustive=True)
    # More parts may fit where fewer did not, and another mesh is another matter.
    assert judge.asked == [keys[0], keys[2], keys[3]]
    assert list(skipped.values()) == [1] and len(rows) == 3


def test_dots_may_keep_less_than_what_did_not_fit():
    guesses = {("save_projections", 1, 4): (1.0, 5), ("dots", 1, 4): (2.0, 5)}
    known = {("save_projections", 1, 4): (1.0, 99), ("dots", 1, 4): (2.0, 40)}
    rows, skipped = run(Judge(known, limit=50), guesses, exhaustive=True)
    assert [row.step.outcome for row in rows] == ["out of memory", "fits"] and not skipped


def test_what_was_compiled_corrects_the_guesses_of_its_mesh():
    guesses = {
        ("none", 1, 4): (1.0, 5),
        ("full", 1, 4): (1.1, 5),
        ("none", 1, 2): (2.0, 5),
        ("full", 1, 2): (1.5, 5),
    }
    # Meshes of fsdp 4 turn out three times as slow as they were guessed, those of 2 as guessed.
    judge = Judge({key: (s * (3 if key[2] == 4 else 1), 5) for key, (s, _) in guesses.items()})
    run(judge, guesses, exhaustive=True)
    assert judge.asked[:3] == [("none", 1, 4), ("full", 1, 4), ("full", 1, 2)]
    assert judge.asked[3] == ("none", 1, 2)


def test_now_and_then_a_leaner_one_is_tried():
    guesses = {(remat, 1, 4): (1.0 + i, 10 - i) for i, remat in enumerate(POLICIES)}
    guesses |= {(remat, 2, 4): (10.0 + i, 1) for i, remat in enumerate(POLICIES)}
    guesses[("full", 1, 2)] = (5.5, 20)
    judge = Judge(guesses)
    run(judge, guesses, most_compiles=4)
    assert judge.asked[:3] == [(remat, 1, 4) for remat in POLICIES[:3]]
    assert judge.asked[3] == ("none", 1, 4)


def test_the_fastest_is_compiled_with_other_sums_of_gradients():
    guesses = {(remat, 1, 4): (4.0 - i, 5) for i, remat in enumerate(POLICIES)}
    both = guesses | {(*key, "at_once"): value for key, value in guesses.items()}
    # Of the three compiled the second turns out to be the fastest.
    best = ("save_projections", 1, 4)
    known = both | {best: (0.8, 5), (*best, "at_once"): (0.7, 5)}
    judge = Judge(known)
    rows, skipped = run(judge, both, most_compiles=3)
    plain = [(remat, 1, 4) for remat in POLICIES[:0:-1]]
    assert judge.asked == [*plain, (*best, "at_once")]
    assert search._ordered(rows)[0].setting == setting("save_projections", sums="at_once")
    assert skipped["slower settings with other sums of gradients"] == 3
    assert sum(skipped.values()) + len(rows) == len(both)
    run(judge := Judge(known), both, exhaustive=True)
    assert len(judge.asked) == len(both)


def test_the_front_is_faster_or_smaller_than_all_others():
    points = {"full": (4.0, 10), "save_attention": (3.0, 20), "save_projections": (2.0, 15)}
    points["none"] = (1.0, 99)
    guesses = {(remat, 1, 4): point for remat, point in points.items()}
    rows, _ = run(Judge(guesses, limit=50), guesses, exhaustive=True)
    ordered = search._ordered(rows)
    assert [row.setting.remat for row in ordered] == [
        "save_projections",
        "save_attention",
        "full",
        "none",
    ]
    assert [row.on_front for row in ordered] == [True, False, True, False]
    whole = search.Searched(stage="s", slice="v5e-4", size=4, rows=tuple(ordered), left_out={})
    assert whole.best.setting.remat == "save_projections"


@pytest.mark.parametrize("outcome", ["out of VMEM", "refused", "failed"])
def test_only_memory_rules_others_out(outcome):
    row = search.Row(
        setting=setting("save_projections", 2),
        overrides="",
        step=predict.Step(
            batch_rows=8,
            row_tokens=128,
            microbatches=2,
            layers=2,
            remat="full",
            mesh={},
            updates=1,
            outcome=outcome,
        ),
    )
    assert not search._is_hungrier(setting("none", 2), row)
