# SPDX-License-Identifier: Apache-2.0
"""How often loops run, told from their text."""

import pytest

from midjax.plan import hlo, trips

LOOP = """HloModule step, is_scheduled=true

%fused (p.2: s32[], p.3: s32[]) -> pred[] {{
  %p.2 = s32[] parameter(0)
  %p.3 = s32[] parameter(1)
  ROOT %less.2 = pred[] compare(%p.2, %p.3), direction={direction}
}}

%condition (p: (s32[], f32[8])) -> pred[] {{
  %p = (s32[], f32[8]{{0}}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %bound = s32[] constant({bound})
  {condition}
}}

%body (q: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %q = (s32[], f32[8]{{0}}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %by = s32[] constant({by})
  %x = f32[8]{{0}} get-tuple-element(%q), index=1
  %next = s32[] add(%j, %by)
  %held = s32[] copy(%next)
  ROOT %out = (s32[], f32[8]{{0}}) tuple(%held, %x)
}}

ENTRY %main (a: f32[8], n: s32[]) -> (s32[], f32[8]) {{
  %a = f32[8]{{0}} parameter(0)
  %n = s32[] parameter(1)
  %zero = s32[] constant({first})
  %copied = s32[] copy(%zero)
  %state = (s32[], f32[8]{{0}}) tuple({start}, %a)
  ROOT %loop = (s32[], f32[8]{{0}}) while(%state), condition=%condition, body=%body{known}
}}
"""
PLAIN = "ROOT %less = pred[] compare(%i, %bound), direction={direction}"
FUSED = "ROOT %less = pred[] fusion(%i, %bound), kind=kLoop, calls=%fused"
MIRRORED = "ROOT %less = pred[] compare(%bound, %i), direction=GT"


def count(
    condition=PLAIN, *, direction="LT", bound=8, by=1, first=0, start="%copied", known=""
) -> trips.Trips:
    text = LOOP.format(
        condition=condition.format(direction=direction),
        direction=direction,
        bound=bound,
        by=by,
        first=first,
        start=start,
        known=known,
    )
    module = hlo.parse(text)
    return trips.count(module, module.main, module.main.root)


@pytest.mark.parametrize("condition", [PLAIN, FUSED, MIRRORED])
def test_a_loop_counts_from_where_it_begins_to_its_bound(condition):
    assert count(condition).count == len(range(8))
    assert count(condition, first=3).count == len(range(3, 8))


def test_an_unrolled_loop_counts_in_larger_steps():
    assert count(by=2).count == len(range(0, 8, 2))
    assert count(by=3).count == len(range(0, 8, 3))


def test_other_directions():
    assert count(direction="LE").count == 9
    assert count(direction="NE").count == 8
    assert count(direction="GT", first=8, bound=0, by=-1).count == len(range(8, 0, -1))
    assert count(direction="GE", first=8, bound=0, by=-2).count == len(range(8, -1, -2))
    assert count(first=9).count == 0


def test_the_compilers_own_word_goes_first():
    known = ', backend_config={"known_trip_count":{"n":"5"}}'
    assert count(known=known).count == 5


def test_what_is_assumed_is_said():
    found = count(start="%n")
    assert (found.count, found.known) == (8, True)
    assert "0 assumed" in found.how


def test_a_condition_that_compares_nothing_is_a_guess():
    found = count("ROOT %flag = pred[] constant(true)")
    assert (found.count, found.known) == (1, False)
