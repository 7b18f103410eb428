# SPDX-License-Identifier: Apache-2.0
"""The walk over a scheduled program: a clock, and what runs beside it.

Instructions run one after another. What is started and waited for later runs on something of its
own meanwhile, one after another there: the links, the host's link in either direction, the memory's
copies to VMEM, the network between slices, the sparse cores. Only what the clock has to wait for
when it comes to the "-done" is exposed.
"""

import dataclasses
import re

from midjax.plan import flops, groups, hlo, lanes, links, tally, trips

# They take no time of their own.
_FREE = {
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "partition-id"),
    *("replica-id", "after-all", "opt-barrier", "iota", "add-dependency", "domain"),
}
_FREE_CALLS = {
    *("AllocateBuffer", "Sharding", "AssumeGatherIndicesInBound", "ConsumeBuffer"),
    *("ConcatBitcast", "SPMDFullToShardShape", "SPMDShardToFullShape", "MoveToHost"),
    *("MoveToDevice", "LayoutConstraint", "PinOutput"),
}
_SLICES = {"slice", "dynamic-slice"}
_UPDATES = {"dynamic-update-slice", "scatter"}
_RENDEZVOUS = re.compile(r'_xla_host_transfer_rendezvous="([^"]*)"')
# Two spellings of the same: the second where nothing but a call is started.
_ASYNC = ("async-start", "custom-call-start")
# What else is started alone is spelled either way, too: libtpu's own dump has "async-start" with a
# computation of one slice, the executable's text "slice-start".
_MOVES = {*_SLICES, "copy", "dynamic-update-slice"}
_START, _DONE = "AsyncCollectiveStart", "AsyncCollectiveDone"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """What a program is walked on.

    Attributes:
      mesh: devices of the program.
      rates: of the networks.
      kernel_efficiency: of the peak of matrix units, in hand-written kernels.
      grouped_efficiency: the same in those that multiply groups of rows.
      attention_share: of all pairs of query and key those that kernels look at.
    """

    mesh: groups.Mesh
    rates: links.Rates
    kernel_efficiency: float
    grouped_efficiency: float
    attention_share: float


class Walk:
    """Walks computations, each once."""

    def __init__(self, module: hlo.Module, machine: Machine) -> None:
        self.module, self.machine = module, machine
        self.chains = _chains(module)
        self._done: dict[str, tally.Tally] = {}

    def run(self, name: str) -> tally.Tally:
        """Sums of a computation, from an idle chip on."""
        if name not in self._done:
            self._done[name] = _Run(self, self.module.computations[name]).result()
        return self._done[name]


class _Run:
    """One computation."""

    def __init__(self, walk: Walk, computation: hlo.Computation) -> None:
        self.walk, self.module, self.machine = walk, walk.module, walk.machine
        self.chip = walk.machine.rates.one.chip
        self.computation = computation
        self.sum = tally.Tally()
        self.lanes = lanes.Lanes(self.sum)

    def result(self) -> tally.Tally:
        for instruction in self.computation.instructions:
            if instruction.opcode not in _FREE:
                self._step(instruction)
        for name in self.lanes.leave():
            self.sum.notes[f"{name} is waited for elsewhere: taken as hidden"] += 1
        return self.sum

    def _step(self, at: hlo.Instruction) -> None:
        if at.opcode == "while":
            self._loop(at)
        elif at.opcode in ("call", "conditional"):
            self._call(at)
        elif at.opcode.endswith("-done"):
            self.lanes.wait(self._origin(at))
        elif at.opcode.endswith("-update"):
            self._update(at)
        elif at.opcode in ("send", "recv"):
            self._send_or_receive(at)
        elif at.opcode in _ASYNC:
            if at.operands:  # else it begins when they are handed over, at an update
                self._async(at)
        elif at.base in links.KINDS:
            self._collective(at)
        elif at.opcode == "copy-start":
            self._copy(at, at.shapes[0].bytes, at.shapes[:2])
        elif at.opcode.endswith("-start"):
            self._started(at)
        elif at.opcode == "custom-call":
            self._custom_call(at)
        elif at.opcode == "fusion":
            self._fusion(at)
        else:
            product = flops.product(self.computation, at)
            self._busy(at, "matrix" if product else "vector", product)

    # What calls other computations.

    def _loop(self, at: hlo.Instruction) -> None:
        found = trips.count(self.module, self.computation, at)
        body = self.walk.run(at.attribute("body") or "")
        self.sum.merge(body, found.count)
        if not found.known:
            self.sum.notes[f"loop {at.name}: trips are not known, taken as 1 {found.how}"] += 1
        loop = tally.Loop(
            name=at.name,
            op_name=at.op_name,
            trips=found.count,
            how=found.how,
            runs=1,
            seconds_per_trip=body.seconds,
        )
        self.sum.loops.append(loop)

    def _call(self, at: hlo.Instruction) -> None:
        branches = [self.walk.run(name) for name in at.called if name in self.module.computations]
        if not branches:
            return
        if len(branches) > 1:
            self.sum.notes[f"{at.name}: the slowest of {len(branches)} branches is counted"] += 1
        self.sum.merge(max(branches, key=lambda one: one.seconds), 1)

    # What the chip itself does.

    def _busy(self, at: hlo.Instruction, part: str, product: float = 0.0) -> None:
        """The compiler's cycles, or where it has none the bytes that go to memory and back."""
        if at.cycles is not None:
            seconds = at.cycles / self.chip.clock_hz
        else:
            seconds = self._memory_bytes(at) / self.chip.hbm_bytes_per_second
        self._record(at, part, seconds, product)

    def _record(
        self, at: hlo.Instruction, part: str, seconds: float, product: float = 0.0, how: str = ""
    ) -> None:
        self.sum.add(part, seconds)
        if part in self.sum.flops:
            self.sum.flops[part] += product
        item = tally.Item(
            opcode=at.opcode, op_name=at.op_name, part=part, runs=1, seconds=seconds, how=how
        )
        item.flops = product
        self.sum.add_item(at.name, item)

    def _memory_bytes(self, at: hlo.Instruction) -> float:
        """Read and written of HBM; of updates in place what is new, twice, of slices as much."""
        given = [s.bytes for s in self.computation.operand_shapes(at) if s.space == hlo.HBM]
        made = [s.bytes for s in at.shapes if s.space == hlo.HBM]
        opcodes = {at.opcode, *(inner.opcode for _, inner in self.module.inside(at))}
        if opcodes & _UPDATES and given:
            return 2.0 * (sum(given) - max(given))
        if at.opcode in _SLICES:
            return 2.0 * sum(made)
        return float(sum(given) + sum(made))

    def _custom_call(self, at: hlo.Instruction) -> None:
        target = at.attribute("custom_call_target") or ""
        if target in _FREE_CALLS or target.startswith("annotate"):
            return
        found = flops.kernel(self.computation, at, self.machine.attention_share)
        machine = self.machine
        share = machine.grouped_efficiency if found.is_grouped else machine.kernel_efficiency
        peak = self.chip.bf16_flops_per_second * share
        seconds = max(found.flops / peak, found.bytes / self.chip.hbm_bytes_per_second)
        how = found.how
        if at.cycles is not None:
            seconds, how = at.cycles / self.chip.clock_hz, "the compiler's cycles"
        self._record(at, "kernels", seconds, found.flops, how)

    def _fusion(self, at: hlo.Instruction) -> None:
        product, held, marks = 0.0, [], set()
        for computation, inner in self.module.inside(at):
            product += flops.product(computation, inner)
            if inner.base in links.KINDS and not inner.opcode.endswith("-done"):
                held.append((computation, inner))
            if inner.opcode == "custom-call":
                marks.add(inner.attribute("custom_call_target"))
        if held and _START in marks:
            self._start_chain(at, *held[0])
            return
        if held and _DONE in marks:
            self.lanes.wait(_chain(held[0][1]))
            return
        if not held:
            self._busy(at, "matrix" if product else "vector", product)
            return
        seconds = (at.cycles or 0) / self.chip.clock_hz
        self._record(at, "matrix" if product else "vector", seconds, product)
        for computation, inner in held:
            # A step of a chain that another fusion has started moves bytes that are counted there.
            if _chain(inner) not in self.walk.chains:
                seconds = self._held(at, computation, inner, seconds)

    # What others do meanwhile.

    def _origin(self, at: hlo.Instruction) -> str:
        """Name under which what a "-done" waits for was started."""
        source = self.computation.operand(at, 0)
        while source is not None and source.opcode.endswith("-update"):
            source = self.computation.operand(source, 0)
        if source is None:
            return at.name
        met = _RENDEZVOUS.search(source.attributes)
        # What is sent between slices is there when it is received; sending waits for nobody.
        return met[1] if met and source.opcode == "recv" else source.name

    def _copy(self, at: hlo.Instruction, moved: int, ends: tuple[hlo.Shape, ...]) -> None:
        """Between HBM and the host, or VMEM; `ends` are where it goes to and comes from."""
        to_host = any(shape.space == hlo.HOST for shape in ends[:1])
        if to_host or any(shape.space == hlo.HOST for shape in ends):
            seconds = moved / self.chip.host_bytes_per_second
            self.sum.host_bytes += moved

            def host_done(waited: float, takes: float) -> None:
                self.sum.add("host", waited)
                self.sum.hidden_host_seconds += max(0.0, takes - waited)

            self.lanes.start(at.name, "to host" if to_host else "from host", seconds, host_done)
            return
        self.sum.prefetch_bytes += moved
        seconds = moved / self.chip.hbm_bytes_per_second
        self.lanes.start(
            at.name, "hbm", seconds, lambda waited, _: self.sum.add("prefetch", waited)
        )

    def _update(self, at: hlo.Instruction) -> None:
        start = self.computation.operand(at, 0)
        if start is not None and start.opcode in _ASYNC and not start.operands:
            self._async(start)

    def _async(self, at: hlo.Instruction) -> None:
        inner = self.module.computations.get(at.called[0]) if at.called else None
        work = [one for one in inner.instructions if one.opcode not in _FREE] if inner else []
        if inner is None or not work:
            return
        offloaded = self._offloaded(work[0])
        if offloaded is not None:
            self._collective(at, *offloaded)
        elif work[0].base in links.KINDS:
            self._collective(at, inner, work[0])
        elif "sparsecore" in at.attributes:
            moved = sum(shape.bytes for one in work for shape in one.shapes)
            seconds = 2.0 * moved / self.chip.hbm_bytes_per_second
            self.lanes.start(
                at.name, "sparse", seconds, lambda waited, _: self.sum.add("sparse", waited)
            )
        elif work[0].opcode in _MOVES:
            self._move(at, work[0].opcode, inner.operand_shapes(work[0]), work[0].shapes[0])
        else:
            self.sum.merge(self.walk.run(inner.name), 1)
            self._counted_beside(at)

    def _started(self, at: hlo.Instruction) -> None:
        """An asynchronous start that names what it starts: its type is (operands, result, ...)."""
        given = self.computation.operand_shapes(at)
        if at.base in _MOVES and len(at.shapes) > len(given) > 0:
            self._move(at, at.base, given, at.shapes[len(given)])
            return
        self._busy(at, "vector")
        self._counted_beside(at)

    def _move(
        self, at: hlo.Instruction, opcode: str, given: tuple[hlo.Shape, ...], made: hlo.Shape
    ) -> None:
        """A slice that is read, or one that is written in place; of a copy all."""
        if opcode == "dynamic-update-slice":
            self._copy(at, given[1].bytes, (made, given[1]))
        else:
            self._copy(at, made.bytes, (made, given[0]))

    def _counted_beside(self, at: hlo.Instruction) -> None:
        self.sum.notes[f"{at.name}: runs beside others, counted as if it did not"] += 1

    # Collectives.

    def _offloaded(self, call: hlo.Instruction) -> tuple[hlo.Computation, hlo.Instruction] | None:
        """The collective that a call to the sparse cores holds, if it does."""
        called = call.called if call.opcode == "custom-call" else ()
        for computation in (self.module.computations[name] for name in called):
            for one in computation.instructions:
                if one.base in links.KINDS:
                    return computation, one
        return None

    def _collective(
        self,
        at: hlo.Instruction,
        computation: hlo.Computation | None = None,
        inner: hlo.Instruction | None = None,
    ) -> None:
        inner, computation = inner or at, computation or self.computation
        group = self.machine.mesh.group(inner)
        moved = links.collective(computation, inner, group, self.machine.rates)
        self._note(at, moved)
        if at.opcode.endswith("-start"):
            self._start_transfer(at.name, moved, inner)
        else:
            self.sum.add_collective(moved, "waits", exposed_seconds=moved.seconds)
            self.sum.add("collectives", moved.seconds)

    def _start_transfer(self, name: str, moved: links.Transfer, inner: hlo.Instruction) -> None:
        self.sum.add_collective(moved, "beside")

        def done(waited: float, takes: float) -> None:
            self.sum.add_collective(moved, "beside", runs=0, exposed_seconds=waited)
            self.sum.add("collectives", waited)

        self.lanes.start(name, _lane(moved, inner), moved.seconds, done)

    def _start_chain(
        self, at: hlo.Instruction, computation: hlo.Computation, inner: hlo.Instruction
    ) -> None:
        group = self.machine.mesh.group(inner)
        moved = links.collective(computation, inner, group, self.machine.rates)
        self._note(at, moved)
        self._start_transfer(_chain(inner), moved, inner)

    def _held(
        self,
        at: hlo.Instruction,
        computation: hlo.Computation,
        inner: hlo.Instruction,
        free_seconds: float,
    ) -> float:
        """A collective in a fusion runs beside the rest of it; -> what is left of that."""
        group = self.machine.mesh.group(inner)
        opcodes = {one.opcode for _, one in self.module.inside(at)}
        scattered = inner.base == "all-reduce" and (
            "all-reduce-scatter" in at.name or "dynamic-slice" in opcodes
        )
        moved = links.collective(computation, inner, group, self.machine.rates, scattered)
        self._note(at, moved)
        waited = max(0.0, moved.seconds - free_seconds)
        self.sum.add_collective(moved, "in a fusion", exposed_seconds=waited)
        self.sum.add("collectives", waited)
        return max(0.0, free_seconds - moved.seconds)

    def _send_or_receive(self, at: hlo.Instruction) -> None:
        if "_xla_megascale_transfer_type" not in at.attributes:
            outward = at.opcode == "send"
            moved = sum(s.bytes for s in self.computation.operand_shapes(at)) if outward else 0
            moved = moved or sum(shape.bytes for shape in at.shapes if shape.dims)
            host = hlo.Shape("u8", (moved,), space=hlo.HOST)
            here = hlo.Shape("u8", (moved,))
            self._copy(at, moved, (host, here) if outward else (here, host))
            return
        met = _RENDEZVOUS.search(at.attributes)
        name = met[1] if met else at.name
        if at.opcode == "send":
            group = self.machine.mesh.across_slices(at)
            moved_between = links.between_slices(self.computation, at, group, self.machine.rates)
            self._note(at, moved_between)
            self._start_transfer(name, moved_between, at)

    def _note(self, at: hlo.Instruction, moved: links.Transfer) -> None:
        item = tally.Item(
            opcode=at.opcode,
            op_name=at.op_name,
            part="collectives",
            runs=1,
            seconds=moved.seconds,
            how=f"{moved.kind} over {moved.group.axis}",
        )
        item.bytes = moved.bytes_sent
        self.sum.add_item(at.name, item)


def _chain(inner: hlo.Instruction) -> str:
    """Name of a collective that several fusions carry on: its channel."""
    return f"channel {inner.attribute('channel_id')}"


def _lane(moved: links.Transfer, inner: hlo.Instruction) -> str:
    """What a transfer has to itself: permutes in different directions use different links."""
    if moved.network == "dcn":
        return "dcn"
    if moved.kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", inner.attributes)
        return f"ici {pairs[1]} to {pairs[2]}" if pairs else "ici"
    return "ici"


def _chains(module: hlo.Module) -> set[str]:
    """Channels of all chains that are started by a fusion of their own."""
    found = set()
    for computation in module.computations.values():
        if computation.root.attribute("custom_call_target") == _START:
            found |= {_chain(i) for i in computation.instructions if i.base in links.KINDS}
    return found
