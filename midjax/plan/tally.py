# SPDX-License-Identifier: Apache-2.0
"""Seconds, operations and bytes of a part of a program, to be added up and multiplied by trips."""

import collections
import dataclasses

from midjax.plan import links

PARTS = ("matrix", "vector", "kernels", "prefetch", "sparse", "collectives", "host")

CollectiveKey = tuple[str, str, str, str]  # axis, kind, network, mode


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loop:
    """A loop of the program.

    Attributes:
      name: of its instruction.
      op_name: the traced operations it comes from.
      trips: how often its body runs, each time that the loop runs.
      how: where that number comes from.
      runs: of the loop.
      seconds_per_trip: of its body.
    """

    name: str
    op_name: str
    trips: int
    how: str
    runs: int
    seconds_per_trip: float


@dataclasses.dataclass
class Item:
    """All runs of one instruction."""

    opcode: str
    op_name: str
    part: str
    runs: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0
    how: str = ""


@dataclasses.dataclass
class CollectiveSum:
    """All runs of the collectives of one key."""

    runs: int = 0
    bytes_sent: float = 0.0
    seconds: float = 0.0
    exposed_seconds: float = 0.0


class Tally:
    """Sums of one computation.

    Attributes:
      seconds: from its start to its end.
      parts: seconds in which the chip does nothing else, by `PARTS`; they add up to `seconds`.
      hidden_host_seconds: of transfers to and from the host, beside other work.
      host_bytes: of these and of those waited for.
      flops: of products ("matrix") and of kernels ("kernels").
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.parts: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self.flops: dict[str, float] = {"matrix": 0.0, "kernels": 0.0}
        self.hidden_host_seconds = 0.0
        self.host_bytes = 0.0
        self.prefetch_bytes = 0.0
        self.collectives: dict[CollectiveKey, CollectiveSum] = {}
        self.items: dict[str, Item] = {}
        self.loops: list[Loop] = []
        self.notes: collections.Counter[str] = collections.Counter()

    def add(self, part: str, seconds: float) -> None:
        """The chip is busy, or waits."""
        self.seconds += seconds
        self.parts[part] += seconds

    def add_item(self, name: str, given: Item) -> None:
        have = self.items.setdefault(
            name, Item(opcode=given.opcode, op_name=given.op_name, part=given.part, how=given.how)
        )
        have.runs += given.runs
        have.seconds += given.seconds
        have.flops += given.flops
        have.bytes += given.bytes

    def add_collective(
        self, transfer: links.Transfer, mode: str, runs: int = 1, exposed_seconds: float = 0.0
    ) -> None:
        """A transfer that has begun; what of it is waited for may be added later, with 0 runs."""
        key = (transfer.group.axis, transfer.kind, transfer.network, mode)
        have = self.collectives.setdefault(key, CollectiveSum())
        have.runs += runs
        have.bytes_sent += runs * transfer.bytes_sent
        have.seconds += runs * transfer.seconds
        have.exposed_seconds += exposed_seconds

    def merge(self, inner: "Tally", times: int) -> None:
        """What was called, so many times."""
        self.seconds += inner.seconds * times
        for part, seconds in inner.parts.items():
            self.parts[part] += seconds * times
        for part, flops in inner.flops.items():
            self.flops[part] += flops * times
        self.hidden_host_seconds += inner.hidden_host_seconds * times
        self.host_bytes += inner.host_bytes * times
        self.prefetch_bytes += inner.prefetch_bytes * times
        for key, one in inner.collectives.items():
            have = self.collectives.setdefault(key, CollectiveSum())
            have.runs += one.runs * times
            have.bytes_sent += one.bytes_sent * times
            have.seconds += one.seconds * times
            have.exposed_seconds += one.exposed_seconds * times
        for name, item in inner.items.items():
            many = dataclasses.replace(
                item,
                runs=item.runs * times,
                seconds=item.seconds * times,
                flops=item.flops * times,
                bytes=item.bytes * times,
            )
            self.add_item(name, many)
        self.loops += [dataclasses.replace(loop, runs=loop.runs * times) for loop in inner.loops]
        self.notes.update(inner.notes)
