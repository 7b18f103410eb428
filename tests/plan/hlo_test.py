# SPDX-License-Identifier: Apache-2.0
"""The text of a program, line by line."""

import pytest

from midjax.plan import hlo

PROGRAM = """HloModule step, is_scheduled=true, input_output_alias={ {}: (0, {}, may-alias) }

FileNames
1 "/somewhere/step.py"

%fused (p.1: bf16[4,300]) -> f32[4,300] {
  %p.1 = bf16[4,300]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %convert.1 = f32[4,300]{1,0:T(8,128)} convert(%p.1), metadata={op_name="jit(step)/mlp"}
}

ENTRY %main (a: bf16[4,300]) -> f32[4,300] {
  %a = bf16[4,300]{1,0:T(8,128)(2,1)S(1)} parameter(0), metadata={op_name="state.params[\\'w\\']"}
  %kernel.1 = (f32[8]{0}, s8[1,2,3]{2,1,0:S(5)}) custom-call(%a, /*index=1*/%a), TARGET, a={b={
"xprof_metadata":"{\\"block_q\\": 1024}"
}}, backend_config={"custom_call_config":{"body":"abc=="}}
  ROOT %fusion.1 = f32[4,300]{1,0:T(8,128)} fusion(%a), kind=kLoop, calls=%fused, METADATA
}
"""
METADATA = (
    'metadata={op_name="jit(step)/mlp/convert" stack_frame_id=1}, '
    'backend_config={"window_config":{"estimated_cycles":"1234"}}'
)
PROGRAM = PROGRAM.replace("TARGET", 'custom_call_target="tpu_custom_call"')
PROGRAM = PROGRAM.replace("METADATA", METADATA)


def test_a_program_is_its_computations_in_order():
    module = hlo.parse(PROGRAM)
    assert module.entry == "main" and set(module.computations) == {"fused", "main"}
    assert [one.opcode for one in module.main.instructions] == [
        "parameter",
        "custom-call",
        "fusion",
    ]
    assert module.main.root.name == "fusion.1"
    assert module.main.root.cycles == 1234
    assert module.main.root.op_name == "jit(step)/mlp/convert"
    assert module.main.root.called == ("fused",)
    assert module.main.root.attribute("kind") == "kLoop"


def test_an_attribute_with_line_breaks_belongs_to_its_instruction():
    kernel = hlo.parse(PROGRAM).main.by_name["kernel.1"]
    assert kernel.operands == ("a", "a")
    assert kernel.cycles is None
    assert "block_q" in kernel.attributes
    assert kernel.attribute("custom_call_target") == "tpu_custom_call"
    assert kernel.backend_config == {"custom_call_config": {"body": "abc=="}}
    assert [shape.space for shape in kernel.shapes] == [hlo.HBM, hlo.HOST]


def test_shapes_know_their_bytes_with_and_without_tiles():
    (one,) = hlo.shapes("bf16[4,300]{1,0:T(8,128)(2,1)S(1)}")
    assert (one.dtype, one.dims, one.space) == ("bf16", (4, 300), hlo.VMEM)
    assert one.tiles == ((8, 128), (2, 1))
    assert one.bytes == 4 * 300 * 2
    assert one.padded_bytes == 8 * 384 * 2  # 4 rows fill 8, 300 columns fill three tiles of 128
    (turned,) = hlo.shapes("f32[300,4]{0,1:T(8,128)}")
    assert turned.padded_bytes == 8 * 384 * 4
    (scalar,) = hlo.shapes("s32[]{:T(128)}")
    assert (scalar.bytes, scalar.padded_bytes) == (4, 512)
    (half,) = hlo.shapes("s4[3]{0}")
    assert half.bytes == 2


def test_tuples_are_opened_and_tokens_have_no_shape():
    found = hlo.shapes("((bf16[2]{0}, s32[]), /*index=1*/f32[3,4]{1,0}, u32[]{:S(2)}, token[])")
    assert [(one.dtype, one.dims) for one in found] == [
        ("bf16", (2,)),
        ("s32", ()),
        ("f32", (3, 4)),
        ("u32", ()),
    ]


def test_operands_may_be_written_with_their_types():
    text = PROGRAM.replace("fusion(%a)", "fusion(bf16[4,300]{1,0:T(8,128)(2,1)} %a)")
    assert hlo.parse(text).main.root.operands == ("a",)


def test_elements_of_tuples_may_be_written_where_they_are_used():
    """What another version of the compiler writes for get-tuple-element."""
    text = """HloModule step, is_scheduled=true

ENTRY %main (a: (f32[2], (s32[], bf16[3,4]))) -> bf16[3,4] {
  %a = (f32[2]{0:T(128)}, /*index=1*/(s32[], bf16[3,4]{1,0:T(8,128)(2,1)})) parameter(0)
  ROOT %sum = bf16[3,4]{1,0} add(%a#1#1, %a#1#1), metadata={op_name="x"}
}
"""
    main = hlo.parse(text).main
    assert [(one.name, one.opcode) for one in main.instructions] == [
        ("a", "parameter"),
        ("a#1", "get-tuple-element"),
        ("a#1#1", "get-tuple-element"),
        ("sum", "add"),
    ]
    assert main.operand_shapes(main.root)[0].dims == (3, 4)
    assert main.by_name["a#1#1"].attribute("index") == "1"
    assert main.operand(main.by_name["a#1#1"], 0) is main.by_name["a#1"]


def test_what_a_fusion_holds():
    module = hlo.parse(PROGRAM)
    assert [one.opcode for _, one in module.inside(module.main.root)] == ["parameter", "convert"]


def test_a_program_in_no_order_is_refused():
    with pytest.raises(hlo.NotScheduledError, match="no scheduled XLA program"):
        hlo.parse(PROGRAM.replace("is_scheduled=true, ", ""))
    with pytest.raises(hlo.NotScheduledError, match="no ENTRY"):
        hlo.parse(PROGRAM.partition("ENTRY")[0])
