# SPDX-License-Identifier: Apache-2.0
"""How long a collective takes: bytes over the links it has, nothing for its start.

Over a torus an all-gather moves (n-1)/n of the whole array into each chip, over two links for each
dimension it is spread over, or one where that dimension is no ring; a reduce-scatter is the same
backwards, and an all-reduce is both. An all-to-all is limited by the cut through the middle: a
ring of e chips with b bytes each sends e b / 8 over each of its links. Between slices each host's
network is shared by its chips.
"""

import dataclasses
import re

from midjax.hardware import slices
from midjax.plan import groups, hlo

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_EMITTER = re.compile(r'"emitter":"(\d)D')
_DIMS = re.compile(r"num_dims:(\d)")
_RING = re.compile(r"StrategyRing\{")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transfer:
    """One run of one collective.

    Attributes:
      kind: of `KINDS`.
      group: who takes part.
      network: "ici" within a slice, "dcn" between slices.
      bytes_sent: by each chip.
      seconds: if nothing else is on its links.
    """

    kind: str
    group: groups.Group
    network: str
    bytes_sent: float
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """What networks reach.

    Attributes:
      one: the slices.
      ici_efficiency: of the peak of links within a slice.
      dcn_efficiency: of the peak of the network between slices.
    """

    one: slices.Slice
    ici_efficiency: float
    dcn_efficiency: float

    @property
    def link(self) -> float:
        """Bytes per second of one link, one direction."""
        return self.one.chip.link_bytes_per_second * self.ici_efficiency

    @property
    def dcn(self) -> float:
        """Bytes per second of one chip's share of its host's network, one direction."""
        chip, share = self.one.chip, self.one.chips_per_host
        return chip.dcn_bytes_per_second / share * self.dcn_efficiency


def collective(
    computation: hlo.Computation,
    instruction: hlo.Instruction,
    group: groups.Group,
    rates: Rates,
    scattered: bool = False,
) -> Transfer:
    """Of a collective instruction, or of the one that a fusion holds.

    Args:
      computation: that it stands in.
      instruction: an opcode of `KINDS`, or its "-start".
      group: from `groups.Mesh.group`.
      rates: of the networks.
      scattered: an all-reduce of which each chip keeps only its part.
    """
    kind = "reduce-scatter" if scattered else instruction.base
    whole = _whole_bytes(computation, instruction, kind, group.size)
    across = group.slices > 1
    n = group.slices if across else group.size
    share = (n - 1) / n
    sent = _sent(kind, whole, share)
    if across:
        seconds = sent / rates.dcn
    else:
        dims = dimensions(instruction, group, rates.one)
        ringed = group.closed or (dims == 1 and group.size > max(rates.one.torus))
        links = dims * (2 if ringed else 1)
        if kind in ("all-to-all", "ragged-all-to-all"):
            edge = n ** (1 / dims)
            seconds = whole * edge / (8 if ringed else 4) / rates.link if n > 1 else 0.0
        elif kind == "collective-permute":
            seconds = whole / rates.link
        else:
            seconds = sent / (links * rates.link)
    return Transfer(
        kind=kind,
        group=group,
        network="dcn" if across else "ici",
        bytes_sent=sent,
        seconds=seconds,
    )


def between_slices(
    computation: hlo.Computation, send: hlo.Instruction, group: groups.Group, rates: Rates
) -> Transfer:
    """Of a `send` by which the compiler hands a collective over to the data centre's network."""
    found = re.search(r'_xla_megascale_transfer_type="(\w+)"', send.attributes)
    kind = found[1].lower().replace("_", "-") if found else "one-to-one"
    whole = float(sum(shape.bytes for shape in computation.operand_shapes(send)))
    n = group.slices
    if kind == "all-gather":
        whole *= n
    sent = _sent(kind, whole, (n - 1) / n)
    return Transfer(
        kind=kind, group=group, network="dcn", bytes_sent=sent, seconds=sent / rates.dcn
    )


def _sent(kind: str, whole: float, share: float) -> float:
    if kind == "all-reduce":
        return 2 * whole * share
    if kind in ("collective-permute", "one-to-one"):
        return whole
    return whole * share


def _whole_bytes(
    computation: hlo.Computation, instruction: hlo.Instruction, kind: str, size: int
) -> float:
    """Of the array before it is scattered or after it is gathered."""
    given = sum(shape.bytes for shape in computation.operand_shapes(instruction))
    result = instruction.bytes
    if instruction.opcode.endswith("-start"):
        # A pair: what goes in, and what comes out.
        arrays = [shape.bytes for shape in instruction.shapes if shape.dims]
        result = max(sum(arrays) - given, 0) or given
    if kind in ("all-gather", "collective-broadcast"):
        return float(result)
    if kind == "reduce-scatter" and not given:
        return float(result * size)
    return float(given or result)


def dimensions(instruction: hlo.Instruction, group: groups.Group, one: slices.Slice) -> int:
    """Dimensions of the torus that a collective uses at once.

    What the compiler has written down of its algorithm, else where the group's chips stand, else
    the fewest edges of the torus that the group fits in.
    """
    written = _EMITTER.search(instruction.attributes) or _DIMS.search(instruction.attributes)
    if written:
        return max(int(written[1]), 1)
    if _RING.search(instruction.attributes):
        return 1
    if group.torus_dims is not None:
        return max(group.torus_dims, 1)
    held, edges = 1, sorted(one.torus, reverse=True)
    for count, edge in enumerate(edges, 1):
        held *= edge
        if held >= group.size:
            return count
    return len(edges)
