# SPDX-License-Identifier: Apache-2.0
"""Seconds of collectives, against their closed forms."""

import pytest

from midjax.hardware import slices
from midjax.plan import groups, hlo, links

GB = 1_000_000_000


def transfer(
    call: str, *, out: str, given: str, name="v5p-128", scattered=False, **group
) -> links.Transfer:
    text = (
        f"HloModule x, is_scheduled=true\n\nENTRY %main (a: f32[]) -> f32[] {{\n"
        f"  %a = {given} parameter(0)\n  ROOT %c = {out} {call}\n}}\n"
    )
    main = hlo.parse(text).main
    one = slices.parse(name)
    joined = groups.Group(**{"axis": "fsdp", "size": 64, **group})
    rates = links.Rates(one=one, ici_efficiency=0.5, dcn_efficiency=0.25)
    return links.collective(main, main.root, joined, rates, scattered)


LINK = 90e9 * 0.5  # of v5p at half its peak
BIG, SMALL = f"u8[{64 * GB}]{{0}}", f"u8[{GB}]{{0}}"


def test_an_all_gather_over_a_whole_torus():
    found = transfer("all-gather(%a)", out=BIG, given=SMALL)
    assert found.bytes_sent == 63 * GB
    assert found.seconds == pytest.approx(63 * GB / (6 * LINK))  # three dimensions, two ways each
    pair = transfer("all-gather-start(%a)", out=f"({SMALL}, {BIG})", given=SMALL)
    assert pair.seconds == found.seconds


def test_a_reduce_scatter_is_half_an_all_reduce():
    whole = transfer("all-reduce(%a)", out=BIG, given=BIG)
    half = transfer("reduce-scatter(%a)", out=SMALL, given=BIG)
    kept = transfer("all-reduce(%a)", out=BIG, given=BIG, scattered=True)
    assert whole.seconds == pytest.approx(2 * 63 * GB / (6 * LINK))
    assert whole.seconds == pytest.approx(2 * half.seconds)
    assert (kept.kind, kept.seconds) == ("reduce-scatter", half.seconds)


def test_fewer_chips_have_fewer_links():
    out, given = f"u8[{4 * GB}]{{0}}", SMALL
    found = transfer("all-gather(%a)", out=out, given=given, size=4)
    assert found.seconds == pytest.approx(3 * GB / (2 * LINK))
    line = transfer("all-gather(%a)", out=out, given=given, size=4, closed=False)
    assert line.seconds == pytest.approx(3 * GB / LINK)  # its last chip has one link alone
    spread = transfer("all-gather(%a)", out=out, given=given, size=4, torus_dims=2)
    assert spread.seconds == pytest.approx(3 * GB / (4 * LINK))


def test_the_compilers_own_algorithm_goes_first():
    out, given = f"u8[{16 * GB}]{{0}}", SMALL
    plain = transfer("all-gather(%a)", out=out, given=given, size=16)
    ring = transfer(
        'all-gather(%a), backend_config={"emitter":"1DAllGather"}', out=out, given=given, size=16
    )
    assert plain.seconds == pytest.approx(15 * GB / (4 * LINK))
    assert ring.seconds == pytest.approx(15 * GB / (2 * LINK))
    for text, dims in (("StrategyRing{colors:1", 1), ("StrategyND{num_dims:3", 3)):
        call = f'all-gather(%a), backend_config={{"debug":"{text}"}}'
        found = transfer(call, out=out, given=given, size=16)
        assert found.seconds == pytest.approx(15 * GB / (2 * dims * LINK))


def test_an_all_to_all_is_limited_by_the_cut_through_the_middle():
    """A ring of 4 with b bytes each: 2 chips send half of theirs across, over two links."""
    found = transfer("all-to-all(%a)", out=SMALL, given=SMALL, size=4)
    assert found.seconds == pytest.approx(2 * (GB / 2) / 2 / LINK)
    """4 x 4: 8 chips send half of theirs across, over 4 rows of two links."""
    square = transfer("all-to-all(%a)", out=SMALL, given=SMALL, size=16)
    assert square.seconds == pytest.approx(8 * (GB / 2) / 8 / LINK)


def test_a_permutation_uses_one_link():
    found = transfer("collective-permute(%a)", out=SMALL, given=SMALL, size=2)
    assert found.seconds == pytest.approx(GB / LINK)


def test_between_slices_a_host_shares_its_network():
    """v5p: 25 GB/s for four chips, here at a quarter."""
    found = transfer("all-reduce(%a)", out=SMALL, given=SMALL, name="2xv5p-128", size=128, slices=2)
    assert found.network == "dcn"
    assert found.seconds == pytest.approx(2 * GB / 2 / (25e9 / 4 * 0.25))


def test_what_the_compiler_hands_over_to_the_network():
    text = (
        "HloModule x, is_scheduled=true\n\nENTRY %main (a: f32[]) -> f32[] {\n"
        f"  %a = {SMALL} parameter(0)\n  %t = token[] after-all()\n"
        f"  ROOT %s = ({SMALL}, u32[], token[]) send(%a, %t), "
        'frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}\n}\n'
    )
    main = hlo.parse(text).main
    rates = links.Rates(one=slices.parse("4xv5e-16"), ici_efficiency=1.0, dcn_efficiency=1.0)
    joined = groups.Group(axis="data", size=4, slices=4)
    found = links.between_slices(main, main.root, joined, rates)
    assert found.kind == "all-reduce"
    assert found.bytes_sent == pytest.approx(2 * GB * 3 / 4)
    assert found.seconds == pytest.approx(2 * GB * 3 / 4 / (12.5e9 / 4))
