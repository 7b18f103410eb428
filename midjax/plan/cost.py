# SPDX-License-Identifier: Apache-2.0
"""How long a step takes, from the program that the TPU's compiler would run.

Every instruction costs the cycles that the compiler itself estimates, loops as often as they run;
kernels and collectives, for which it has no estimate, cost what a model of the chip says, and the
knobs of that model are arguments. It is a model and no measurement: `plan.published` has it beside
published runs.

Copies to and from the host, collectives that are started and waited for later, and copies to VMEM
run beside the rest; only what is waited for adds to the step.

Where a simpler count of the same text goes wrong, and what is done instead:
  - a loop that the compiler has unrolled counts by two: trips are (bound - first) / step;
  - a collective that several fusions carry on (an asynchronous chain) is in the text once for each
    of them, and is sent once: it runs from the first one to the last;
  - permutations in different directions use different links, at the same time;
  - the compiler's own algorithm says over how many dimensions a collective runs, a ring over one;
  - edges of a torus that don't close, as all of a v5e-16, have one link where rings have two;
  - an all-to-all is limited by the cut through the middle of the torus, however many dimensions;
  - what has no cycles costs its bytes, updates in place only those that are new;
  - slices of arrays on the host are copies to or from it, in both directions at once;
  - what the sparse cores are given, they begin when they are given it;
  - transfers between slices ("send" with a megascale target) use the host's network;
  - joined buffers and other markers among custom calls take no time;
  - sliding windows: attention kernels cost the blocks in their tables.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from midjax.hardware import slices
from midjax.plan import groups, hlo, links, tally, walk


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """All collectives of one kind over one axis of the mesh.

    Attributes:
      axis: of the mesh; several joined by "+", or "other".
      kind: "all-gather".
      network: "ici" within a slice, "dcn" between slices.
      mode: "waits" for it; "beside" other work; "in a fusion" with other work.
      runs: per step.
      bytes_sent: by each chip and step.
      seconds: that they take.
      hidden_seconds, exposed_seconds: of these beside other work, and waited for. Exposed can be
        more than it takes, where one waits for another.
    """

    axis: str
    kind: str
    network: str
    mode: str
    runs: int
    bytes_sent: float
    seconds: float
    hidden_seconds: float
    exposed_seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """All runs of one instruction in a step.

    Attributes:
      name, opcode: of the program.
      op_name: the traced operations it comes from, which names the layer.
      part: of `Cost.parts`.
      runs: per step.
      seconds: that they take; of a collective hidden ones too.
      flops: of a product or kernel.
      bytes_sent: of a collective.
      how: what is counted of a kernel, or the axis of a collective.
    """

    name: str
    opcode: str
    op_name: str
    part: str
    runs: int
    seconds: float
    flops: float
    bytes_sent: float
    how: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """One step on one chip.

    Attributes:
      step_seconds: the sum of `parts`.
      parts: seconds that the chip spends on "matrix" (products and what is fused with them),
        "vector" (everything else of the compiler's), "kernels" (hand-written), and waits for
        "prefetch" (copies to VMEM), "sparse" (its sparse cores), "collectives" and "host".
      matrix_flops, kernel_flops: that the hardware does, recomputed ones included.
      collectives: by axis and kind, longest first.
      hidden_host_seconds: of copies to and from the host, beside other work.
      host_bytes: copied to and from the host.
      prefetch_bytes: copied between HBM and VMEM.
      loops: of the program.
      most_expensive: instructions, longest first.
      assumptions: the knobs it was made with.
      notes: what could not be told, and how often.
    """

    step_seconds: float
    parts: Mapping[str, float]
    matrix_flops: float
    kernel_flops: float
    collectives: tuple[Collective, ...]
    hidden_host_seconds: float
    host_bytes: float
    prefetch_bytes: float
    loops: tuple[tally.Loop, ...]
    most_expensive: tuple[Instruction, ...]
    assumptions: Mapping[str, float]
    notes: Mapping[str, int]

    @property
    def hardware_flops(self) -> float:
        """Per chip and step: divided by the model's own it says what is done twice."""
        return self.matrix_flops + self.kernel_flops

    def by_axis(self) -> dict[str, dict[str, float]]:
        """axis -> bytes_sent, seconds, hidden_seconds, exposed_seconds of all its collectives."""
        found: dict[str, dict[str, float]] = {}
        for one in self.collectives:
            sums = found.setdefault(one.axis, {})
            for name in ("bytes_sent", "seconds", "hidden_seconds", "exposed_seconds"):
                sums[name] = sums.get(name, 0.0) + getattr(one, name)
        return found


def estimate(
    text: str | hlo.Module,
    one: slices.Slice,
    mesh: Mapping[str, int],
    *,
    kernel_efficiency: float,
    grouped_efficiency: float,
    attention_share: float,
    ici_efficiency: float,
    dcn_efficiency: float,
    places: Sequence[groups.Place] | None = None,
    most_expensive: int = 40,
) -> Cost:
    """The cost of a compiled step.

    Args:
      text: of the scheduled program, or `hlo.parse` of it.
      one: the slices it was compiled for.
      mesh: sizes of the mesh's axes, in the mesh's order; axes of size 1 may be left out.
      kernel_efficiency: of the chip's peak that hand-written kernels reach; the compiler says
        nothing. 0.5 is what splash attention is taken to reach at heads of 128 numbers.
      grouped_efficiency: the same of those that multiply groups of rows, see `analysis.Knobs`.
      attention_share: of all pairs of query and key that kernels of attention look at: 0.5 of a
        causal model. A sliding window's own, smaller share is read off the kernel's table.
      ici_efficiency: of the links' peak that collectives reach: 0.85 is taken for long messages
        (jax-ml.github.io/scaling-book, chapter 2, measures 0.8 to 0.95 of it from 1 MB on).
      dcn_efficiency: the same of the network between slices.
      places: of the mesh's devices, `groups.places(jax_mesh.devices.flat)`; without them slices
        follow one another in the mesh, and links are guessed from a group's size.
      most_expensive: so many instructions are listed.

    Raises:
      NotScheduledError: the text is no scheduled program.
      ValueError: an efficiency outside of (0, 1], or a mesh of another size than the slices.
    """
    knobs = {
        "kernel_efficiency": kernel_efficiency,
        "grouped_efficiency": grouped_efficiency,
        "attention_share": attention_share,
        "ici_efficiency": ici_efficiency,
        "dcn_efficiency": dcn_efficiency,
    }
    for name, value in knobs.items():
        if not 0 < value <= 1:
            raise ValueError(
                f"{name} is a share of a peak, more than 0 and at most 1; got {value}."
            )
    module = hlo.parse(text) if isinstance(text, str) else text
    machine = walk.Machine(
        mesh=groups.Mesh(one, mesh, places),
        rates=links.Rates(one=one, ici_efficiency=ici_efficiency, dcn_efficiency=dcn_efficiency),
        kernel_efficiency=kernel_efficiency,
        grouped_efficiency=grouped_efficiency,
        attention_share=attention_share,
    )
    return _cost(walk.Walk(module, machine).run(module.entry), knobs, most_expensive)


def _cost(found: tally.Tally, knobs: Mapping[str, float], most: int) -> Cost:
    collectives = [
        Collective(
            axis=axis,
            kind=kind,
            network=network,
            mode=mode,
            runs=one.runs,
            bytes_sent=one.bytes_sent,
            seconds=one.seconds,
            hidden_seconds=max(0.0, one.seconds - one.exposed_seconds),
            exposed_seconds=one.exposed_seconds,
        )
        for (axis, kind, network, mode), one in found.collectives.items()
    ]
    items = sorted(found.items.items(), key=lambda pair: -pair[1].seconds)
    return Cost(
        step_seconds=found.seconds,
        parts=dict(found.parts),
        matrix_flops=found.flops["matrix"],
        kernel_flops=found.flops["kernels"],
        collectives=tuple(sorted(collectives, key=lambda one: -one.seconds)),
        hidden_host_seconds=found.hidden_host_seconds,
        host_bytes=found.host_bytes,
        prefetch_bytes=found.prefetch_bytes,
        loops=tuple(found.loops),
        most_expensive=tuple(
            Instruction(
                name=name,
                opcode=item.opcode,
                op_name=item.op_name,
                part=item.part,
                runs=item.runs,
                seconds=item.seconds,
                flops=item.flops,
                bytes_sent=item.bytes,
                how=item.how,
            )
            for name, item in items[:most]
        ),
        assumptions=dict(knobs),
        notes=dict(found.notes),
    )
