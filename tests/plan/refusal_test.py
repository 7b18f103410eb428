# SPDX-License-Identifier: Apache-2.0
"""What libtpu 0.0.42 and 0.0.52 say of programs that do not fit."""

import pytest

from midjax.plan import refusal

USED = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: XLA:TPU compile permanent error. Ran out of "
    "memory in memory space hbm. Used 17.31G of 15.75G hbm. Exceeded hbm capacity by 1.56G.\n\n"
    "Total hbm usage >= 17.56G:\n    reserved        258.00M\n"
)
TEMPORARIES = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
    "(149.06G) exceeds available HBM (15.75G)."
)
SCOPED = (
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem while allocating on stack for "
    "%splash. Scoped allocation with size 33.51M and limit 16.00M exceeded scoped vmem limit by "
    "17.51M. It should not be possible to run out of scoped vmem."
)

# libtpu 0.0.42.1 of the backward pass of attention, in two rows of 8,192 tokens per v5e chip; the
# instruction, a page long, is shortened.
SPLASH = (
    "RESOURCE_EXHAUSTED: E1001: CompileTimeScopedVmemOom:\nRan out of memory in memory space vmem "
    "while allocating on stack for %splash_mha_dkv_segmented_no_residuals.1 = (f32[2,1024,128]"
    '{2,1,0:T(8,128)}) custom-call(%copy-done.14), frontend_attributes={kernel_metadata={\n"x": 1}}'
    ". Scoped allocation with size 16.67M and limit 16.00M exceeded scoped vmem limit by 688.0K. "
    "It should not be possible to run out of scoped vmem - \nSee https://openxla.org/xla/errors/"
    "error_1001 for more details."
)


@pytest.mark.parametrize(
    "message, kind, needs, has",
    [
        (USED, "hbm", 17.31 * 2**30, 15.75 * 2**30),
        (TEMPORARIES, "hbm", 149.06 * 2**30, 15.75 * 2**30),
        (SCOPED, "vmem", 33.51 * 2**20, 16 * 2**20),
        (SPLASH, "vmem", 16.67 * 2**20, 16 * 2**20),
    ],
)
def test_the_numbers_are_read(message, kind, needs, has):
    found = refusal.read(message)
    assert found["kind"] == kind
    assert found["needs_bytes"] == round(needs) and found["has_bytes"] == round(has)
    assert "\n" not in found["said"] and (kind == "vmem" or found["said"] in message)


@pytest.mark.parametrize(
    "message, begin",
    [
        (SCOPED, "%splash wants 33.51M of VMEM, and 16.00M is the most: "),
        (SPLASH, "%splash_mha_dkv_segmented_no_residuals.1 wants 16.67M of VMEM, and 16.00M is "),
    ],
)
def test_what_has_no_room_in_vmem_is_named_with_what_to_do(message, begin):
    said = refusal.read(message)["said"]
    assert said.startswith(begin) and "--xla_tpu_scoped_vmem_limit_kib" in said


def test_a_lack_without_numbers_is_one_still():
    found = refusal.read("RESOURCE_EXHAUSTED: no room in VMEM")
    assert found == {"kind": "vmem", "said": "RESOURCE_EXHAUSTED: no room in VMEM"}


def test_other_errors_are_no_lack_of_memory():
    assert refusal.read("INVALID_ARGUMENT: No such compile option: 'xla_nonsense'") is None
