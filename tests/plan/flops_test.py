# SPDX-License-Identifier: Apache-2.0
"""Operations of products and kernels, against numbers counted by hand."""

import itertools

import pytest

from midjax.plan import flops, hlo


def computation(*lines: str) -> hlo.Computation:
    body = "\n".join(f"  {line}" for line in lines)
    text = f"HloModule x, is_scheduled=true\n\nENTRY %main (a: f32[]) -> f32[] {{\n{body}\n}}\n"
    return hlo.parse(text).main


def product(left: str, right: str, out: str, call: str) -> float:
    found = computation(
        f"%l = {left} parameter(0)",
        f"%r = {right} parameter(1)",
        f"ROOT %p = {out} {call}",
    )
    return flops.product(found, found.root)


def test_a_dot():
    call = "dot(%l, %r), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_contracting_dims={1}"
    assert product("f32[3,4,5]{2,1,0}", "f32[3,5,6]{2,1,0}", "f32[3,4,6]{2,1,0}", call) == (
        2 * 3 * 4 * 5 * 6
    )


def test_a_matrix_product_written_as_a_convolution():
    call = "convolution(%l, %r), dim_labels=bf_io->bf"
    assert product("bf16[8,16]{1,0}", "bf16[16,32]{1,0}", "bf16[8,32]{1,0}", call) == (
        2 * 8 * 16 * 32
    )


def test_heads_written_as_a_padded_window():
    """[4096, 4096] x [32 heads, 4096, 128]: one place of the window meets each head."""
    call = "convolution(%l, %r), window={size=32 pad=31_31 rhs_reversal=1}, dim_labels=bf0_0oi->b0f"
    found = product(
        "bf16[4096,4096,1]{1,0,2}", "bf16[32,128,4096]{2,1,0}", "bf16[4096,32,128]{2,0,1}", call
    )
    assert found == 2 * 4096 * 4096 * 32 * 128


def test_heads_summed_by_a_window():
    call = "convolution(%l, %r), window={size=32}, dim_labels=b0f_0io->bf0"
    found = product(
        "bf16[4096,32,128]{2,0,1}", "bf16[32,128,4096]{2,1,0}", "bf16[4096,4096,1]{1,0,2}", call
    )
    assert found == 2 * 4096 * 32 * 128 * 4096


@pytest.mark.parametrize(
    ("length", "window", "low", "high", "stride", "dilate", "spread"),
    [
        (7, 3, 0, 0, 1, 1, 1),
        (7, 3, 1, 1, 1, 1, 1),
        (8, 3, 2, 2, 2, 1, 1),
        (5, 3, 2, 2, 1, 2, 1),
        (9, 3, 1, 3, 2, 1, 2),
    ],
)
def test_windows_count_only_what_they_meet(length, window, low, high, stride, dilate, spread):
    wide, reach = (length - 1) * dilate + 1, (window - 1) * spread + 1
    out = (wide + low + high - reach) // stride + 1
    there = {i * dilate for i in range(length)}
    met = sum(
        o * stride + w * spread - low in there
        for o, w in itertools.product(range(out), range(window))
    )
    call = (
        f"convolution(%l, %r), window={{size={window} stride={stride} pad={low}_{high} "
        f"lhs_dilate={dilate} rhs_dilate={spread}}}, dim_labels=b0f_0io->b0f"
    )
    found = product(
        f"f32[2,{length},3]{{2,1,0}}",
        f"f32[{window},3,4]{{2,1,0}}",
        f"f32[2,{out},4]{{2,1,0}}",
        call,
    )
    assert found == 2 * 2 * 3 * 4 * met


def test_what_multiplies_nothing():
    assert product("f32[8]{0}", "f32[8]{0}", "f32[8]{0}", "add(%l, %r)") == 0


def kernel(name: str, out: str, operands: list[str], attributes: str = "", share: float = 0.5):
    lines = [f"%o{i} = {one} parameter({i})" for i, one in enumerate(operands)]
    args = ", ".join(f"%o{i}" for i in range(len(operands)))
    call = f'ROOT %{name} = {out} custom-call({args}), custom_call_target="tpu_custom_call"'
    found = computation(*lines, call + attributes)
    return flops.kernel(found, found.root, share)


HEADS = "bf16[32,8192,128]{2,1,0}"
KEYS = "bf16[8,65536,128]{2,1,0}"
PAIRS = 32 * 8192 * 65536 * 128


@pytest.mark.parametrize(
    ("name", "products"),
    [("splash_mha_fwd.1", 2), ("splash_mha_dq.2", 3), ("splash_mha_dkv_no_residuals.3", 4)],
)
def test_attention_by_the_kernels_name(name, products):
    found = kernel(name, HEADS, ["s8[1,8,64]{2,1,0}", HEADS, KEYS, KEYS])
    assert found.flops == 2 * products * PAIRS * 0.5
    assert kernel(name, HEADS, [HEADS, KEYS, KEYS], share=1.0).flops == 2 * products * PAIRS


def test_all_gradients_in_one_kernel():
    """It is told by what it writes: partial gradients of the queries for each block of keys."""
    partial = "bf16[64,32,8192,128]{3,2,1,0}"
    written = f"({partial}, {KEYS}, {KEYS})"
    found = kernel("splash_mha_dkv.1", written, [HEADS, KEYS, KEYS])
    assert found.flops == 2 * 5 * PAIRS * 0.5
    apart = kernel("splash_mha_dkv.1", f"({KEYS}, {KEYS})", [HEADS, KEYS, KEYS])
    assert apart.flops == 2 * 4 * PAIRS * 0.5


def test_a_sliding_window_is_read_off_the_kernels_table():
    """Blocks of 1024: two of 64 blocks of keys for each of eight of queries."""
    mark = ', a="{\\"block_q\\": 1024, \\"block_kv\\": 1024}"'
    operands = ["s8[1,8,2]{2,1,0}", HEADS, KEYS, KEYS]
    assert kernel("splash_mha_fwd.1", HEADS, operands, mark).flops == 2 * 2 * PAIRS * 2 / 64
    operands[0] = "s8[1,8,64]{2,1,0}"
    assert kernel("splash_mha_fwd.1", HEADS, operands, mark).flops == 2 * 2 * PAIRS * 0.5


def test_a_kernels_own_estimate_goes_first():
    mark = ', backend_config={"cost_estimate":{"flops":"77","bytes_accessed":"5"}}'
    found = kernel("splash_mha_fwd.1", HEADS, [HEADS, KEYS, KEYS], mark)
    assert (found.flops, found.bytes) == (77, 5)


def test_grouped_products():
    rows, experts = "bf16[4096,512]{1,0}", "bf16[8,512,1024]{2,1,0}"
    sizes = "s32[9]{0}"
    assert kernel("gmm.1", "bf16[4096,1024]{1,0}", [sizes, rows, experts]).flops == (
        2 * 4096 * 512 * 1024
    )
    gradient = kernel("tgmm.1", experts, [sizes, "bf16[512,4096]{1,0}", "bf16[4096,1024]{1,0}"])
    assert gradient.flops == 2 * 4096 * 512 * 1024 and gradient.is_grouped
    mark = ', backend_config={"cost_estimate":{"flops":"77","bytes_accessed":"5"}}'
    assert kernel("gmm.1", experts, [sizes, rows, experts], mark).is_grouped
    assert not kernel("splash_mha_fwd.1", HEADS, [HEADS, KEYS, KEYS]).is_grouped


def test_of_an_unknown_kernel_only_bytes_are_known():
    found = kernel("mine.1", "f32[256]{0}", ["f32[1024]{0}"])
    assert (found.flops, found.bytes, found.how) == (0, 4 * (256 + 1024), "bytes only")
