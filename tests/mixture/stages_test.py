# SPDX-License-Identifier: Apache-2.0
"""What a recipe may say of its stages, and the rows that it means."""

import pytest

from midjax.mixture import spread, stages, weights


def stage(name="s", weights=None, **kwargs):
    kwargs = kwargs or {"start_tokens": 0}
    return stages.Stage(name=name, weights=weights or {"a": 1.0, "b": 3.0}, **kwargs)


def mixture(*given, **kwargs):
    names = {name for s in given for name in s.names}
    defaults = {"max_epochs": dict.fromkeys(names, 9.0), "seed": 0, "block_rows": 10}
    return stages.Mixture(stages=given, **(defaults | kwargs))


def in_rows(mix, rows=None, row_tokens=8, total_rows=1000):
    return stages.in_rows(mix, rows or dict.fromkeys(mix.names, 50), row_tokens, total_rows)


def test_starts_and_ramps_in_tokens_and_in_shares_of_the_run():
    mix = mixture(
        stage("a"),
        stage("b", start_tokens=801, ramp_tokens=81),
        stage("c", start_share=0.5, ramp_share=0.1),
    )
    found = in_rows(mix)
    assert [(s.begin, s.end, s.ramp_blocks) for s in found] == [
        (0, 101, 0), (101, 500, 2), (500, 1000, 10)
    ]  # fmt: skip
    assert found[0].shares.tolist() == [0.25, 0.75]
    assert found[0].counts.tolist() == [640, 1920]
    assert spread.PERIOD_BLOCKS * 10 == 2560


@pytest.mark.parametrize("total_rows", range(3, 40))
def test_shares_that_fill_the_run_fit_whatever_its_length(total_rows):
    last = stage("b", start_share=0.5, ramp_share=0.5)
    found = in_rows(mixture(stage("a"), last, block_rows=1), total_rows=total_rows)
    assert found[1].ramp_blocks == found[1].end - found[1].begin


def test_rules_compute_weights_from_tokens_and_the_length_of_their_stage():
    rows = {"a": 10, "b": 1000}
    names = ("a", "b")
    mix = mixture(
        stage("even", weights.UniMax(sources=names, max_epochs=2.0)),
        stage("by size", weights.Temperature(sources=names, exponent=1.0), start_share=0.25),
    )
    even, by_size = in_rows(mix, rows, total_rows=400)
    assert even.shares == pytest.approx([20 / 100, 80 / 100])  # 2 epochs of `a`, the rest `b`
    assert by_size.shares == pytest.approx([10 / 1010, 1000 / 1010])
    assert mix.unnormalised() == []


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"start_tokens": 0, "start_share": 0.0}, "start_tokens or start_share, and not both"),
        ({"ramp_tokens": 5}, "start_tokens or start_share"),
        ({"start_tokens": -1}, "start_tokens must be 0 or more"),
        ({"start_share": 1.5}, "start_share must be between 0 and 1"),
        ({"start_tokens": 0, "ramp_tokens": 1, "ramp_share": 0.1}, "both ramp_tokens and ramp_s"),
        ({"start_tokens": 0, "ramp_share": -0.1}, "ramp_share must be between 0 and 1"),
    ],
)
def test_bad_stages(kwargs, message):
    with pytest.raises(ValueError, match=message):
        stage(**kwargs)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((stage("a", start_tokens=0, ramp_tokens=8),), "is the first and has a ramp"),
        ((stage("a"), stage("a", start_tokens=9)), "names of their own"),
        ((stage("a"), stage("b", start_share=0.5), stage("c", start_share=0.4)), "rise"),
    ],
)
def test_bad_mixtures(given, message):
    with pytest.raises(ValueError, match=message):
        mixture(*given)


@pytest.mark.parametrize(
    ("later", "message"),
    [
        (
            (stage("b", start_share=0.5), stage("c", start_tokens=80)),
            "'b' begins at 4000 tokens and the next one at 80: it would hold no row",
        ),
        ((stage("b", start_share=1.0),), "'b' begins at 8000 tokens and the run ends at 8000"),
        (
            (stage("b", start_share=0.5, ramp_share=0.6),),
            "its ramp of 600 rows is longer than the stage's 500 rows",
        ),
    ],
)
def test_stages_that_do_not_go_together_in_rows(later, message):
    with pytest.raises(ValueError, match=message):
        in_rows(mixture(stage("a"), *later))


def test_a_ramp_of_too_many_blocks_says_what_to_do():
    mix = mixture(stage("a"), stage("b", start_share=0.1, ramp_share=0.8), block_rows=1)
    with pytest.raises(ValueError, match=r"32768 blocks of 1 rows\. .*raise Mixture.block_rows"):
        in_rows(mix, total_rows=100_000)


def test_only_what_decides_the_order_is_in_the_fingerprint():
    def of(total_rows=1000, **kwargs):
        mix = mixture(stage("a"), stage("b", {"a": 1.0}, start_tokens=800), **kwargs)
        return stages.fingerprint(mix, in_rows(mix, total_rows=total_rows), {}, total_rows)

    assert of() == of(total_rows=2000) == of(max_epochs={"a": 20.0, "b": 20.0})
    assert of() != of(seed=1) and of() != of(block_rows=11)
    # Where caps shift weights, they decide, and so does the length of the run.
    assert of(over_cap="shift") != of(over_cap="shift", total_rows=2000)
    assert of(over_cap="shift") != of(over_cap="shift", max_epochs={"a": 20.0, "b": 20.0})
