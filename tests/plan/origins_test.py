# SPDX-License-Identifier: Apache-2.0
"""What arrays are, by what makes them."""

import pytest

from midjax.plan import hlo, origins

TEXT = """HloModule x, is_scheduled=true

%put (table: f32[5,8,16], row: f32[8,16], i: s32[]) -> f32[5,8,16] {
  %table = f32[5,8,16]{2,1,0} parameter(0)
  %row = f32[8,16]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %lain = f32[1,8,16]{2,1,0} bitcast(%row)
  ROOT %dus = f32[5,8,16]{2,1,0} dynamic-update-slice(%table, %lain, %i)
}

%make (table.1: f32[5,32,8], x.1: f32[32,8], i.1: s32[]) -> f32[5,32,8] {
  %table.1 = f32[5,32,8]{2,1,0} parameter(0)
  %x.1 = f32[32,8]{1,0} parameter(1)
  %i.1 = s32[] parameter(2)
  %grad = f32[1,32,8]{2,1,0} negate(%x.1), metadata={op_name="BACK/mlp/dot_general"}
  ROOT %dus.1 = f32[5,32,8]{2,1,0} dynamic-update-slice(%table.1, %grad, %i.1)
}

%condition (p: STATE) -> pred[] {
  %p = STATE parameter(0)
  %j = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(5)
  ROOT %less = pred[] compare(%j, %n), direction=LT
}

%body (q: STATE) -> f32[] {
  %q = STATE parameter(0)
  %k = s32[] get-tuple-element(%q), index=0
  %one = s32[] constant(1)
  %next = s32[] add(%k, %one)
  %x = f32[8,16]{1,0} get-tuple-element(%q), index=1
  %kept = f32[5,8,16]{2,1,0} get-tuple-element(%q), index=2
  %made = f32[5,32,8]{2,1,0} get-tuple-element(%q), index=3
  %read = f32[9,9]{1,0} get-tuple-element(%q), index=4
  %stack = f32[5,8,16]{2,1,0} fusion(%kept, %x, %k), kind=kLoop, calls=%put
  %stack.2 = f32[5,32,8]{2,1,0} fusion(%made, %x, %k), kind=kLoop, calls=%make
  %y = f32[8,16]{1,0} tanh(%x), metadata={op_name="FORWARD/while/body/closed_call/mlp/tanh"}
  ROOT %out = STATE tuple(%next, %y, %stack, %stack.2, %read)
}

ENTRY %main (a: f32[8,16], w: f32[5,32,8]) -> f32[] {
  %a = f32[8,16]{1,0} parameter(0), metadata={op_name="batch.tokens"}
  %w = f32[5,32,8]{2,1,0} parameter(1), metadata={op_name="state.params['w']"}
  %zero = s32[] constant(0)
  %room = f32[5,8,16]{2,1,0} custom-call(), custom_call_target="AllocateBuffer"
  %eyes = f32[9,9]{1,0} iota(), metadata={op_name="FORWARD/mask"}
  %held = f32[9,9]{0,1} copy(%eyes)
  %state = STATE tuple(%zero, %a, %room, %w, %held)
  %loop = STATE while(%state), condition=%condition, body=%body, metadata={op_name="FORWARD/while"}
  %cast = bf16[5,32,8]{2,1,0} convert(%w), metadata={op_name="FORWARD/convert_element_type"}
  %whole = f32[64]{0} all-reduce(%a), metadata={op_name="BACK/embed/scatter-add"}
  %again = f32[64]{0} add(%a, %a), metadata={op_name="BACK/rematted_computation/mlp/add"}
  %new = f32[64]{0} add(%a, %a), metadata={op_name="jit(step)/sub"}
  ROOT %end = f32[64]{0} add(%a, %a)
}
"""
STATE = "(s32[], f32[8,16]{1,0}, f32[5,8,16]{2,1,0}, f32[5,32,8]{2,1,0}, f32[9,9]{1,0})"
TEXT = TEXT.replace("STATE", STATE)
TEXT = TEXT.replace("FORWARD", "jit(step)/jvp()").replace("BACK", "jit(step)/transpose(jvp())")


def of(name: str, *element: int) -> tuple[str, str]:
    found = origins.Origins(hlo.parse(TEXT), [(5, 32, 8)]).of(name, element)
    return found.kind, found.label


@pytest.mark.parametrize("name", ["loop", "q", "p"])
def test_what_a_loop_stacks(name):
    """The state of a loop is one array, whether the loop, its body or its condition names it."""
    assert of(name, 2) == (origins.SAVED, "mlp/tanh")  # each round's first x, by what makes it
    assert of(name, 3) == (origins.GRADIENTS, "mlp/dot_general")  # made within a fusion
    assert of(name, 4) == (origins.FORWARD, "mask")  # only read: what it was before
    assert of(name, 1) == (origins.FORWARD, "mlp/tanh")


def test_other_arrays():
    assert of("cast") == (origins.COPIES, "convert_element_type")
    assert of("whole") == (origins.GATHERED, "all-reduce of embed/scatter-add")
    assert of("again") == (origins.AGAIN, "mlp/add")
    assert of("new") == (origins.UPDATE, "sub")
    assert of("end") == (origins.NAMELESS, "add")
    assert of("room") == (origins.NAMELESS, "AllocateBuffer")
    assert of("of another text") == (origins.NAMELESS, "of another text")


def test_short_names():
    long = "jit(step)/transpose(jvp(while))/body/closed_call/checkpoint/attention/q/dot_general"
    assert origins.short(long) == "attention/q/dot_general"
    assert origins.short("jit(step)/jvp()/while") == ""
    assert origins.short("state.params['embed']") == "state.params['embed']"
