# SPDX-License-Identifier: Apache-2.0
"""The clock over small programs, against times added up by hand. The chip is a v5e."""

import pytest

from midjax.hardware import slices
from midjax.plan import groups, hlo, links, tally, walk

CLOCK, HBM, LINK, HOST = 1.5e9, 0.819e12, 45e9, 16e9
MS = 1_500_000  # cycles
MB = 1_000_000

FUSED = """
%f (a: bf16[8,16], b: bf16[16,32]) -> bf16[8,32] {
  %a = bf16[8,16]{1,0} parameter(0)
  %b = bf16[16,32]{1,0} parameter(1)
  ROOT %p = bf16[8,32]{1,0} convolution(%a, %b), dim_labels=bf_io->bf
}
"""
ARGUMENTS = """
  %a = bf16[8,16]{1,0} parameter(0)
  %b = bf16[16,32]{1,0} parameter(1)
  %part = u8[1000000]{0} parameter(2)
  %whole = u8[16000000]{0} parameter(3)
"""


def work(name: str, cycles: int, more: str = "") -> str:
    return f"{name} = bf16[8,32]{{1,0}} fusion(%a, %b), kind=kOutput, calls=%f{more}, " + (
        f'backend_config={{"estimated_cycles":"{cycles}"}}'
    )


def run(lines: str, before: str = FUSED, name: str = "v5e-16", mesh=None) -> tally.Tally:
    text = (
        f"HloModule x, is_scheduled=true\n{before}\n"
        f"ENTRY %main (a: f32[]) -> f32[] {{{ARGUMENTS}{lines}\n}}\n"
    )
    module = hlo.parse(text)
    one = slices.parse(name)
    machine = walk.Machine(
        mesh=groups.Mesh(one, mesh or {"data": 4, "fsdp": 4}),
        rates=links.Rates(one=one, ici_efficiency=1.0, dcn_efficiency=1.0),
        kernel_efficiency=0.5,
        grouped_efficiency=0.8,
        attention_share=0.5,
    )
    return walk.Walk(module, machine).run(module.entry)


GATHER = "replica_groups=[4,4]<=[16], dimensions={0}"
GATHER_SECONDS = 12 * MB / LINK  # 3/4 of 16 MB into each of four chips on a line
START = f"(u8[1000000]{{0}}, u8[16000000]{{0}}) all-gather-start(%part), {GATHER}"


def parts(found: tally.Tally) -> dict[str, float]:
    assert found.seconds == pytest.approx(sum(found.parts.values()))
    return {name: seconds for name, seconds in found.parts.items() if seconds}


def test_work_is_its_cycles():
    found = run(
        f'  {work("%x", 3 * MS)}\n  %y = f32[4]{{0}} copy(%a), a={{"estimated_cycles":750}}'
    )
    assert parts(found) == pytest.approx({"matrix": 3e-3, "vector": 0.5e-6})
    assert found.flops["matrix"] == 2 * 8 * 16 * 32


def test_without_cycles_it_is_the_bytes_to_memory_and_back():
    found = run(
        "  %y = u8[16000000]{0} negate(%whole)\n"
        "  %z = u8[16000000]{0:S(1)} negate(%y)\n"  # its result goes to VMEM
        "  %i = s32[] parameter(4)\n"
        "  %u = u8[16000000]{0} dynamic-update-slice(%whole, %part, %i)\n"
        "  %s = u8[1000000]{0} dynamic-slice(%whole, %i), dynamic_slice_sizes={1000000}"
    )
    in_place = 2 * (MB + 4)  # the index is read, too
    assert found.parts["vector"] == pytest.approx((32 + 16 + 2) * MB / HBM + in_place / HBM)


def test_a_collective_that_is_waited_for():
    found = run(f"  %g = u8[16000000]{{0}} all-gather(%part), {GATHER}")
    assert parts(found) == pytest.approx({"collectives": GATHER_SECONDS})
    ((key, sums),) = found.collectives.items()
    assert key == ("fsdp", "all-gather", "ici", "waits")
    assert sums.bytes_sent == 12 * MB


def test_a_collective_beside_work_is_hidden_by_it():
    done = "  %d = u8[16000000]{0} all-gather-done(%s)\n"
    start = f"  %s = {START}\n"
    short = run(f"{start}  {work('%x', MS // 10)}\n{done}")
    ((_, sums),) = short.collectives.items()
    assert sums.seconds == pytest.approx(12 * MB / LINK)
    assert sums.exposed_seconds == pytest.approx(sums.seconds - 0.1e-3)
    assert short.seconds == pytest.approx(sums.seconds)
    long = run(f"{start}  {work('%x', MS)}\n{done}")
    assert long.seconds == pytest.approx(1e-3)
    assert next(iter(long.collectives.values())).exposed_seconds == 0


def test_two_collectives_share_the_links():
    start = START
    found = run(
        f"  %s = {start}\n  %t = {start}\n"
        "  %d = u8[16000000]{0} all-gather-done(%s)\n  %e = u8[16000000]{0} all-gather-done(%t)"
    )
    assert found.seconds == pytest.approx(2 * GATHER_SECONDS)


def permute(name: str, to: int) -> str:
    pairs = ",".join(f"{{{i},{(i + to) % 16}}}" for i in range(16))
    return (
        f"  %{name} = (u8[1000000]{{0}}, u8[1000000]{{0}}, u32[], u32[]) "
        f"collective-permute-start(%part), source_target_pairs={{{pairs}}}\n"
    )


def test_permutations_in_two_directions_use_two_links():
    done = "".join(f"  %d{x} = u8[1000000]{{0}} collective-permute-done(%{x})\n" for x in "st")
    both = run(permute("s", 1) + permute("t", -1) + done)
    assert both.seconds == pytest.approx(MB / LINK)
    same = run(permute("s", 1) + permute("t", 1) + done)
    assert same.seconds == pytest.approx(2 * MB / LINK)


LOOP = """
%condition (p: (s32[], u8[1000000])) -> pred[] {
  %p = (s32[], u8[1000000]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(6)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%body (q: (s32[], u8[1000000])) -> (s32[], u8[1000000]) {
  %q = (s32[], u8[1000000]{0}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %x = u8[1000000]{0} get-tuple-element(%q), index=1
  %two = s32[] constant(2)
  %next = s32[] add(%j, %two), a={"estimated_cycles":0}
  START
  %w = f32[4]{0} copy(%x), a={"estimated_cycles":150000}
  %d = u8[16000000]{0} all-gather-done(%s)
  ROOT %out = (s32[], u8[1000000]{0}) tuple(%next, %x)
}
""".replace("START", f"%s = {START}".replace("%part", "%x"))
RUN_LOOP = """
  %zero = s32[] constant(0)
  %state = (s32[], u8[1000000]{0}) tuple(%zero, %part)
  %loop = (s32[], u8[1000000]{0}) while(%state), condition=%condition, body=%body
"""


def test_a_loop_costs_its_body_as_often_as_it_runs():
    found = run(RUN_LOOP, LOOP)
    (loop,) = found.loops
    assert (loop.trips, loop.runs) == (3, 1)
    assert loop.seconds_per_trip == pytest.approx(GATHER_SECONDS)  # 0.1 ms of it beside the copy
    assert found.seconds == pytest.approx(3 * GATHER_SECONDS)
    ((_, sums),) = found.collectives.items()
    assert (sums.runs, sums.bytes_sent) == (3, 3 * 12 * MB)
    assert sums.exposed_seconds == pytest.approx(3 * (GATHER_SECONDS - 0.1e-3))


def fused_gather(name: str, target: str) -> str:
    last = (
        f'ROOT %c.{name} = u8[16000000]{{0}} custom-call(%g.{name}), custom_call_target="{target}"'
        if target
        else f"ROOT %c.{name} = u8[16000000]{{0}} copy(%g.{name})"
    )
    return f"""
%{name} (a: u8[1000000]) -> u8[16000000] {{
  %p.{name} = u8[1000000]{{0}} parameter(0)
  %g.{name} = u8[16000000]{{0}} all-gather(%p.{name}), channel_id=7, {GATHER}
  {last}
}}
"""


def fusion(name: str, cycles: int | None = None) -> str:
    told = f', backend_config={{"estimated_cycles":"{cycles}"}}' if cycles is not None else ""
    return f"  %run.{name} = u8[16000000]{{0}} fusion(%part), kind=kCustom, calls=%{name}{told}\n"


def test_a_collective_carried_through_several_fusions_is_sent_once():
    before = (
        fused_gather("first", "AsyncCollectiveStart")
        + fused_gather("step", "")
        + fused_gather("last", "AsyncCollectiveDone")
    )
    steps = fusion("step", MS // 20).replace("%run.step", "%one") + fusion("step", MS // 20)
    found = run(fusion("first") + steps + fusion("last"), before)
    ((key, sums),) = found.collectives.items()
    assert key == ("fsdp", "all-gather", "ici", "beside")
    assert (sums.runs, sums.bytes_sent) == (1, 12 * MB)
    assert sums.exposed_seconds == pytest.approx(GATHER_SECONDS - 0.1e-3)
    assert parts(found) == pytest.approx({"vector": 0.1e-3, "collectives": GATHER_SECONDS - 0.1e-3})


def test_a_collective_within_one_fusion_runs_beside_the_rest_of_it():
    found = run(fusion("alone", MS // 10), fused_gather("alone", ""))
    assert found.seconds == pytest.approx(GATHER_SECONDS)
    assert parts(found)["vector"] == pytest.approx(0.1e-3)
    assert next(iter(found.collectives))[3] == "in a fusion"


def test_the_host_is_reached_in_both_directions_at_once():
    out = "(u8[16000000]{0:S(5)}, u8[16000000]{0}, u32[]) copy-start(%whole)"
    back = "(u8[16000000]{0}, u8[16000000]{0:S(5)}, u32[]) copy-start(%there)"
    found = run(
        f"  %there = u8[16000000]{{0:S(5)}} parameter(4)\n  %s = {out}\n  %t = {back}\n"
        f"  {work('%x', MS // 4)}\n"
        "  %d = u8[16000000]{0:S(5)} copy-done(%s)\n  %e = u8[16000000]{0} copy-done(%t)"
    )
    assert parts(found) == pytest.approx({"matrix": 0.25e-3, "host": 0.75e-3})  # 16 MB: 1 ms
    assert found.hidden_host_seconds == pytest.approx(0.25e-3 + 1e-3)
    assert found.host_bytes == 32 * MB


SLICE = """
%read (t: u8[16000000], i: s32[]) -> u8[1000000] {
  %t = u8[16000000]{0:S(5)} parameter(0)
  %i = s32[] parameter(1)
  ROOT %ds = u8[1000000]{0} dynamic-slice(%t, %i), dynamic_slice_sizes={1000000}
}

%write (t2: u8[16000000], u: u8[1000000], i2: s32[]) -> u8[16000000] {
  %t2 = u8[16000000]{0:S(5)} parameter(0)
  %u = u8[1000000]{0} parameter(1)
  %i2 = s32[] parameter(2)
  ROOT %dus = u8[16000000]{0:S(5)} dynamic-update-slice(%t2, %u, %i2)
}
"""


@pytest.mark.parametrize(
    "call",
    [
        "((u8[16000000]{0:S(5)}, s32[]), u8[1000000]{0}, u32[]) async-start(%h, %i), calls=%read",
        "((u8[16000000]{0:S(5)}, u8[1000000]{0}, s32[]), u8[16000000]{0:S(5)}, u32[]) "
        "async-start(%h, %part, %i), calls=%write",
        # The same as an executable's own text has it.
        "((u8[16000000]{0:S(5)}, s32[]), u8[1000000]{0}, u32[]) "
        "dynamic-slice-start(%h, %i), dynamic_slice_sizes={1000000}",
        "((u8[16000000]{0:S(5)}, u8[1000000]{0}, s32[]), u8[16000000]{0:S(5)}, u32[]) "
        "dynamic-update-slice-start(%h, %part, %i)",
    ],
)
def test_slices_of_arrays_on_the_host(call):
    found = run(
        f"  %h = u8[16000000]{{0:S(5)}} parameter(4)\n  %i = s32[] parameter(5)\n"
        f"  %s = {call}\n  %d = u8[1000000]{{0}} async-done(%s)",
        SLICE,
    )
    assert parts(found) == pytest.approx({"host": MB / HOST})
    assert found.host_bytes == MB


def test_a_slice_to_vmem_runs_beside():
    started = "slice-start(%whole), slice={[0:1000000]}"
    found = run(
        f"  %s = ((u8[16000000]{{0}}), u8[1000000]{{0:S(1)}}, s32[]{{:S(2)}}) {started}\n"
        f"  {work('%x', MS)}\n  %d = u8[1000000]{{0:S(1)}} slice-done(%s)"
    )
    assert parts(found) == pytest.approx({"matrix": MS / CLOCK})
    assert found.prefetch_bytes == MB and not found.notes


def test_what_is_started_and_not_known_is_told():
    found = run(
        "  %s = ((u8[1000000]{0}), u8[16000000]{0}, u32[]) "
        "pad-start(%part)\n  %d = u8[16000000]{0} pad-done(%s)"
    )
    assert "s: runs beside others, counted as if it did not" in found.notes
    assert parts(found)["vector"] > 0


def test_copies_to_vmem_run_beside():
    copy = "(u8[16000000]{0:S(1)}, u8[16000000]{0}, u32[]) copy-start(%whole)"
    found = run(f"  %s = {copy}\n  %d = u8[16000000]{{0:S(1)}} copy-done(%s)")
    assert parts(found) == pytest.approx({"prefetch": 16 * MB / HBM})
    assert found.prefetch_bytes == 16 * MB


GATHERED = """
%looked_up (t: bf16[1000,512], i: s32[8]) -> bf16[8,512] {
  %t = bf16[1000,512]{1,0} parameter(0)
  %i = s32[8]{0} parameter(1)
  ROOT %k = bf16[8,512]{1,0} custom-call(%t, %i), custom_call_target="offloaded"
}
"""


def test_sparse_cores_begin_when_they_are_given_something():
    start = 'async-start(), async_execution_thread="sparsecore", calls=%looked_up'
    found = run(
        f"  %s = ((), ()) {start}\n  {work('%x', MS)}\n"
        "  %u = ((bf16[1000,512]{1,0}, s32[8]{0}), bf16[8,512]{1,0}) async-update(%s, %a, %b)\n"
        "  %d = bf16[8,512]{1,0} async-done(%u)",
        FUSED + GATHERED,
    )
    assert found.parts["sparse"] == pytest.approx(2 * 8 * 512 * 2 / HBM)


OFFLOADED = """
%moved (p: bf16[64,512]) -> bf16[1024,512] {
  %p = bf16[64,512]{1,0} parameter(0)
  %t = (bf16[64,512]{1,0}) tuple(%p)
  ROOT %g = bf16[1024,512]{1,0} all-gather(%t#0), replica_groups=[1,16]<=[16], dimensions={0}
}

%asked (q: bf16[64,512]) -> bf16[1024,512] {
  %q = bf16[64,512]{1,0} parameter(0)
  ROOT %k = bf16[1024,512]{1,0} custom-call(%q), custom_call_target="", called_computations={%moved}
}
"""


@pytest.mark.parametrize(
    ("call", "started"),
    [
        ("async", "calls=%asked"),
        ("custom-call", 'custom_call_target="", called_computations={%moved}'),
    ],
)
def test_collectives_of_the_sparse_cores_are_collectives(call, started):
    start = f'{call}-start(), async_execution_thread="sparsecore", {started}'
    found = run(
        f"  %part = bf16[64,512]{{1,0}} parameter(4)\n  %s = ((), ()) {start}\n"
        f"  %u = ((bf16[64,512]{{1,0}}), bf16[1024,512]{{1,0}}) {call}-update(%s, %part)\n"
        f"  {work('%x', MS)}\n"
        f"  %d = bf16[1024,512]{{1,0}} {call}-done(%u)",
        FUSED + OFFLOADED,
        mesh={"fsdp": 16},
    )
    ((key, sums),) = found.collectives.items()
    assert key == ("fsdp", "all-gather", "ici", "beside")
    assert sums.bytes_sent == 1024 * 512 * 2 * 15 / 16
    assert sums.exposed_seconds == 0 and "sparse" not in parts(found)


def test_slices_talk_over_the_data_centres_network():
    marks = (
        '_xla_host_transfer_rendezvous="all-reduce.3_0",_xla_megascale_target="{1,2}x{0:15}",'
        '_xla_megascale_transfer_type="ALL_REDUCE"'
    )
    found = run(
        "  %t = token[] after-all()\n"
        f"  %s = (u8[16000000]{{0}}, u32[], token[]) send(%whole, %t), a={{{marks}}}\n"
        f"  %r = (u8[16000000]{{0}}, u32[], token[]) recv(%t), a={{{marks}}}\n"
        f"  {work('%x', MS)}\n"
        "  %sd = token[] send-done(%s)\n"
        "  %rd = (u8[16000000]{0}, token[]) recv-done(%r)",
        FUSED,
        "2xv5e-16",
        {"data": 2, "fsdp": 16},
    )
    takes = 16 * MB / (12.5e9 / 4)  # twice a half of it; a host's network has four chips
    ((key, sums),) = found.collectives.items()
    assert key == ("data", "all-reduce", "dcn", "beside")
    assert sums.seconds == pytest.approx(takes)
    assert parts(found) == pytest.approx({"matrix": 1e-3, "collectives": takes - 1e-3})


def test_kernels_are_what_the_model_says():
    heads, name = "bf16[8,1024,128]{2,1,0}", "splash_mha_fwd"
    found = run(
        f"  %q = {heads} parameter(4)\n"
        f'  %{name} = {heads} custom-call(%q, %q, %q), custom_call_target="tpu_custom_call"\n'
        f'  %free = {heads} custom-call(), custom_call_target="AllocateBuffer"'
    )
    flops = 2 * 2 * 8 * 1024 * 1024 * 128 * 0.5
    assert parts(found) == pytest.approx({"kernels": flops / (197e12 * 0.5)})
    assert found.flops["kernels"] == flops
    assert found.items[name].how == "attention x2, 0.5"


def test_products_of_experts_reach_another_share_of_the_peak():
    found = run(
        "  %r = bf16[4096,512]{1,0} parameter(4)\n"
        "  %e = bf16[8,512,1024]{2,1,0} parameter(5)\n"
        '  %gmm = bf16[4096,1024]{1,0} custom-call(%r, %e), custom_call_target="tpu_custom_call"'
    )
    flops = 2 * 4096 * 512 * 1024
    assert parts(found) == pytest.approx({"kernels": flops / (197e12 * 0.8)})


def test_of_branches_the_slowest_is_counted():
    before = FUSED.replace("%f (", "%fast (").replace("%p =", "%p.1 =").replace(
        "dim_labels=bf_io->bf", 'dim_labels=bf_io->bf, a={"estimated_cycles":150}'
    ) + FUSED.replace("%f (", "%slow (").replace(
        "dim_labels=bf_io->bf", 'dim_labels=bf_io->bf, a={"estimated_cycles":1500}'
    )
    call = "conditional(%i, %a, %b), branch_computations={%fast, %slow}"
    found = run(f"  %i = s32[] parameter(4)\n  %c = bf16[8,32]{{1,0}} {call}", before)
    assert found.seconds == pytest.approx(1e-6)
    assert found.notes == {"c: the slowest of 2 branches is counted": 1}


def test_a_loop_that_says_nothing_is_noted():
    odd = LOOP.replace(
        "ROOT %less = pred[] compare(%i, %n), direction=LT", "ROOT %f = pred[] not(%i)"
    )
    found = run(RUN_LOOP, odd)
    assert found.seconds == pytest.approx(GATHER_SECONDS)
    assert any("trips are not known" in note for note in found.notes)
