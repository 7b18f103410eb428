# SPDX-License-Identifier: Apache-2.0
"""Bytes that instructions move: of small programs written by hand."""

from midjax.hardware import slices
from midjax.plan import cost, hlo, roofline

KNOBS = {
    "kernel_efficiency": 0.5,
    "grouped_efficiency": 0.7,
    "attention_share": 0.5,
    "ici_efficiency": 0.85,
    "dcn_efficiency": 0.85,
}
TEXT = """HloModule x, is_scheduled=true

%sliced (p: f32[8,256], i: s32[]) -> f32[1,256] {
  %p = f32[8,256]{1,0} parameter(0)
  %i = s32[]{:S(2)} parameter(1)
  ROOT %d = f32[1,256]{1,0} dynamic-slice(%p, %i, %i), dynamic_slice_sizes={1,256}
}

%written (q: f32[8,256], u: f32[1,256], j: s32[]) -> f32[8,256] {
  %q = f32[8,256]{1,0} parameter(0)
  %u = f32[1,256]{1,0} parameter(1)
  %j = s32[]{:S(2)} parameter(2)
  ROOT %e = f32[8,256]{1,0} dynamic-update-slice(%q, %u, %j, %j)
}

ENTRY %main (a: f32[8,256], n: s32[]) -> f32[8,256] {
  %a = f32[8,256]{1,0} parameter(0)
  %n = s32[]{:S(2)} parameter(1)
  %s = f32[1,256]{1,0} fusion(%a, %n), kind=kLoop, calls=%sliced, x={"estimated_cycles":30}
  %v = f32[1,256]{1,0:S(1)} copy(%s), x={"estimated_cycles":20}
  ROOT %w = f32[8,256]{1,0} fusion(%a, %s, %n), kind=kLoop, calls=%written,x={"estimated_cycles":9}
}
"""
ROW = 4 * 256


def test_slices_count_and_not_what_they_are_taken_of():
    module = hlo.parse(TEXT)

    def moved(name):
        return roofline.hbm_bytes(module, module.main, module.main.by_name[name])

    assert moved("s") == 2 * ROW
    assert moved("v") == ROW  # written to VMEM
    assert moved("w") == 2 * ROW  # the update is read, and written


def test_points_are_of_what_takes_the_longest():
    module = hlo.parse(TEXT)
    judged = cost.estimate(module, slices.parse("v5e-1"), {"data": 1}, **KNOBS)
    found = roofline.points(module, judged)
    assert [point.label for point in found] == ["s", "v", "w"]
    assert [point.part for point in found] == ["vector"] * 3
    assert found[0].seconds > found[1].seconds > found[2].seconds
