# SPDX-License-Identifier: Apache-2.0
"""The judge's findings about a compiled step, in plain numbers, kept beside its text."""

import dataclasses
import functools
import hashlib
import json
import pathlib
import types
from collections.abc import Mapping, Sequence
from typing import Any

from midjax import files
from midjax.hardware import slices as slices_lib
from midjax.plan import buffers, compiler, cost, groups, hlo, memory, roofline

_LARGEST = 40  # parts of memory that are told one by one


@dataclasses.dataclass(frozen=True, kw_only=True)
class Knobs:
    """What no compiler says, see `cost.estimate`.

    Attributes:
      kernel_efficiency, attention_share, ici_efficiency, dcn_efficiency: shares of a peak, and of
        the pairs of a row.
      grouped_efficiency: the same of products of experts. A guess, made when 0.5 was found to be
        28 % too slow for a published run of Mixtral on v5p: of its layers without attention 50.4 %
        of the model's FLOPs were measured on v5p-64 with megablox (AI-Hypercomputer/maxtext, issue
        1256), which is 67 % of the peak if products were made again for their gradients. The issue
        does not say whether they were.
    """

    kernel_efficiency: float = 0.5
    grouped_efficiency: float = 0.7
    attention_share: float = 0.5
    ici_efficiency: float = 0.85
    dcn_efficiency: float = 0.85


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """One step on one chip.

    Attributes:
      peak_bytes: of HBM: what must be free for the step.
      memory: what fills it at the fullest moment, by kind; adds up to `peak_bytes`.
      largest: [kind, which, bytes] of the largest parts of it.
      timeline: [position in the program, bytes in use], where it changes.
      positions: how many there are.
      peak_position, peak_op_name: the fullest moment.
      host_bytes: that lie in the host's memory.
      step_seconds: the sum of `parts`.
      parts: see `cost.Cost`.
      collectives: axis of the mesh -> bytes_sent, seconds, hidden_seconds, exposed_seconds.
      hidden_host_seconds, host_transfer_bytes: of copies to and from the host.
      matrix_flops, kernel_flops: that the hardware does.
      roofline: instructions that take the longest, see `roofline.Point`.
      notes: what could not be told, and how often.
    """

    peak_bytes: int
    memory: Mapping[str, int]
    largest: Sequence[Sequence[Any]]
    timeline: Sequence[Sequence[int]]
    positions: int
    peak_position: int
    peak_op_name: str
    host_bytes: int
    step_seconds: float
    parts: Mapping[str, float]
    collectives: Mapping[str, Mapping[str, float]]
    hidden_host_seconds: float
    host_transfer_bytes: float
    matrix_flops: float
    kernel_flops: float
    roofline: Sequence[Mapping[str, Any]]
    notes: Mapping[str, int]


def of(made: compiler.Compiled, slice_: slices_lib.Slice, knobs: Knobs) -> Found:
    """What a compiled step costs; read from beside its text where that was found out before."""
    place = made.folder / f"found-{_key(knobs)}.json"
    try:
        return Found(**files.read_json(place))
    except (FileNotFoundError, ValueError, TypeError):
        pass
    found = _find(made, slice_, knobs)
    files.write_json(place, dataclasses.asdict(found))
    return found


def _find(made: compiler.Compiled, slice_: slices_lib.Slice, knobs: Knobs) -> Found:
    record = made.record
    module = hlo.parse(made.text("text"))
    places = [groups.Place(slice_index=i, coordinates=tuple(at)) for i, at in record["places"]]
    judged = cost.estimate(
        module, slice_, record["mesh"], places=places, **dataclasses.asdict(knobs)
    )
    held = memory.of_texts(
        module,
        buffers.parse(made.text("buffers"), made.text("live_ranges")),
        types.SimpleNamespace(**record["memory"]),
        record["arguments"],
    )
    kinds = held.by_kind()
    kinds |= {"the program": held.program_bytes, "fragmentation": held.fragmentation_bytes}
    return Found(
        peak_bytes=held.required_bytes,
        memory=kinds,
        largest=[[part.kind, part.label, part.bytes] for part in held.parts[:_LARGEST]],
        timeline=[list(point) for point in held.timeline],
        positions=held.positions,
        peak_position=held.peak_position,
        peak_op_name=held.peak_op_name,
        host_bytes=held.host_bytes,
        step_seconds=judged.step_seconds,
        parts=dict(judged.parts),
        collectives=judged.by_axis(),
        hidden_host_seconds=judged.hidden_host_seconds,
        host_transfer_bytes=judged.host_bytes,
        matrix_flops=judged.matrix_flops,
        kernel_flops=judged.kernel_flops,
        roofline=[dataclasses.asdict(one) for one in roofline.points(module, judged)],
        notes=dict(judged.notes),
    )


def _key(knobs: Knobs) -> str:
    text = json.dumps([dataclasses.asdict(knobs), _source()], sort_keys=True)
    return files.sha256(text.encode())[:16]


@functools.cache
def _source() -> str:
    digest = hashlib.sha256()
    for path in sorted(pathlib.Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
