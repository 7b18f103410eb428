# SPDX-License-Identifier: Apache-2.0
"""A plan as plain text: aligned columns, and under each row what fills memory and time."""

from collections.abc import Callable, Mapping, Sequence

from midjax import units
from midjax.hardware import slices as slices_lib
from midjax.model import sharding
from midjax.plan import analysis, origins, predict, published
from midjax.plan import search as search_lib
from midjax.train import recipe as train_lib

_HEADINGS = (
    "stage",
    "batch",
    "mesh",
    "parts",
    "remat",
    "peak HBM",
    "step",
    "tokens/s",
    "utilisation",
    "time",
    "chip-hours",
    "USD",
)
_LEAST_SHARE = 0.005
_PLAIN = ("as_params", "device")
_ARRAYS = 4  # of a layer that are told
_LEFT = 5  # columns of words; the rest are numbers


def text(
    stages: Sequence[predict.Stage],
    searches: Sequence[search_lib.Searched],
    *,
    prices: Mapping[str, float | None],
    versions: Mapping[str, str],
) -> str:
    """The whole plan.

    Args:
      stages, searches: of it.
      prices: slice -> USD per chip and hour.
      versions: of what compiled.
    """
    lines = [
        f"Predicted by the TPU's compiler (libtpu {versions['libtpu']}, jax {versions['jax']}) and "
        "a model of the chip. Nothing was measured.",
        published.sentence(),
    ]
    for name in dict.fromkeys(stage.slice for stage in stages):
        of_slice = [stage for stage in stages if stage.slice == name]
        lines += ["", *_slice(name, of_slice, prices.get(name))]
    for one in searches:
        lines += ["", *_search(one)]
    return "\n".join(lines)


def _search(one: search_lib.Searched) -> list[str]:
    head = (
        f"search of {one.stage} on {one.slice}: {len(one.rows)} of {one.size:,} settings compiled"
    )
    rows: list[tuple[str, ...]] = [
        ("", "mesh", "parts", "remat", "peak HBM", "step", "utilisation")
    ]
    details: list[list[str]] = [[]]
    for row in one.rows:
        step, found = row.step, row.step.found
        numbers = ["", "", ""]
        if found is not None and step.utilisation:
            numbers = [
                gigabytes(found.peak_bytes),
                seconds(found.step_seconds),
                f"{100 * step.utilisation:.1f} %",
            ]
        else:
            numbers[0] = step.outcome
        mark = "*" if row.on_front else ""
        where = mesh(row.setting.mesh)
        policy = ", ".join([row.setting.remat, *_sums(row.setting.fsdp_sums)])
        rows.append((mark, where, f"{row.setting.microbatches}", policy, *numbers))
        missing = step.missing_bytes
        details.append([] if missing is None else [f"{gigabytes(missing)} a chip are missing"])
    lines = [head, *_aligned(rows, details, left=4)]
    lines.append("*: no other is both faster and smaller. Not compiled:")
    lines += [f"    {count:,}: {why}" for why, count in one.left_out.items()]
    lines += [row.overrides for row in one.rows if row.on_front]
    return lines


def setting(config: train_lib.Train) -> str:
    """What a search chooses, in short."""
    sizes = {axis: getattr(config.mesh, axis) for axis in sharding.MESH_AXES}
    parts = f"{config.microbatches} parts, " if config.microbatches > 1 else ""
    more = [x for x in (config.state_sharding, config.state_memory) if x not in _PLAIN]
    policy = ", ".join([config.model.remat, *more, *_sums(config.fsdp_sums)])
    return f"{mesh(sizes)}, {parts}{policy}"


def _sums(fsdp_sums: str) -> list[str]:
    return ["sums at once"] if fsdp_sums == "at_once" else []


def _slice(name: str, stages: Sequence[predict.Stage], price: float | None) -> list[str]:
    one = slices_lib.parse(name)
    chip = one.chip
    head = (
        f"{name}: {_many(one.chips, 'chip')} on {_many(one.hosts, 'host')}, "
        f"{chip.bf16_flops_per_second / 1e12:.0f} TFLOP/s and "
        f"{gigabytes(chip.usable_hbm_bytes)} each"
    )
    head += "" if price is None else f", at {price:g} USD per chip and hour"
    rows: list[tuple[str, ...]] = [_HEADINGS]
    details: list[list[str]] = [[]]
    for stage in stages:
        for index, step in enumerate(stage.steps):
            rows.append(_row(stage, step, first=index == 0))
            details.append(_details(stage, step, last=index == len(stage.steps) - 1))
    if all(row[-1] == "" for row in rows[1:]):
        rows = [row[:-1] for row in rows]
    return [head, *_aligned(rows, details)]


def _row(stage: predict.Stage, step: predict.Step, *, first: bool) -> tuple[str, ...]:
    found = step.found
    numbers = ["", "", "", ""]
    if found is not None and step.tokens_per_second and step.utilisation:
        numbers = [
            gigabytes(found.peak_bytes),
            seconds(found.step_seconds),
            units.human(step.tokens_per_second),
            f"{100 * step.utilisation:.1f} %",
        ]
    else:
        numbers[0] = step.outcome
    whole = ["", "", ""]
    if first and stage.seconds is not None and stage.chip_hours is not None:
        cost = "" if stage.cost_usd is None else f"{stage.cost_usd:,.0f}"
        whole = [units.human_seconds(stage.seconds), f"{stage.chip_hours:,.1f}", cost]
    return (
        stage.name if first else "",
        f"{step.batch_rows:,} x {step.row_tokens:,}",
        mesh(step.mesh),
        f"{step.microbatches}",
        step.remat,
        *numbers,
        *whole,
    )


def _details(stage: predict.Stage, step: predict.Step, *, last: bool) -> list[str]:
    found, lines = step.found, []
    if found is None:
        missing = step.missing_bytes
        lacking = "" if missing is None else f"{gigabytes(missing)} a chip are missing: "
        lines.append(f"{lacking}{step.said}")
    else:
        lines.append(_sum("memory", found.memory, found.peak_bytes, gigabytes))
        lines += _of_layers(step.layers, found)
        lines.append(_sum("step", found.parts, found.step_seconds, seconds))
        for axis, sums in found.collectives.items():
            lines.append(
                f"collectives over {axis}: {seconds(sums['seconds'])} for "
                f"{gigabytes(sums['bytes_sent'])}, {seconds(sums['hidden_seconds'])} of it hidden"
            )
        if found.host_transfer_bytes:
            lines.append(
                f"host: {gigabytes(found.host_transfer_bytes)} to and fro, "
                f"{seconds(found.hidden_host_seconds)} of it hidden; "
                f"{gigabytes(found.host_bytes)} of its memory for each chip"
            )
        flops = found.matrix_flops + found.kernel_flops
        lines.append(
            f"FLOPs of a chip: {step.model_flops / 1e12:,.3g} T of the model, "
            f"{flops / 1e12:,.3g} T of the hardware"
        )
    if last and stage.checkpoint_bytes is not None:
        time = stage.checkpoint_seconds
        takes = "" if time is None else f", {units.human_seconds(time)} to write"
        lines.append(f"checkpoint: {gigabytes(stage.checkpoint_bytes)}{takes}")
    return lines


def _of_layers(layers: int, found: analysis.Found) -> list[str]:
    """What each layer keeps for the backward pass, and of it the largest arrays."""
    kept = found.memory.get(origins.SAVED, 0)
    if kept < _LEAST_SHARE * found.peak_bytes:
        return []
    arrays = [(label, size) for kind, label, size in found.largest if kind == origins.SAVED]
    shown = ", ".join(f"{label} {gigabytes(size / layers)}" for label, size in arrays[:_ARRAYS])
    each = f"{gigabytes(kept / layers)} for each of {_many(layers, 'layer')}"
    return [f"activations kept: {each}: {shown}"]


def _sum(what: str, parts: Mapping[str, float], whole: float, say: Callable[[float], str]) -> str:
    """`what: a 1.2 GB, b 0.3 GB = 1.5 GB`, the largest first, those under half a percent as one."""
    shown = sorted(((v, k) for k, v in parts.items() if v >= _LEAST_SHARE * whole), reverse=True)
    small = [v for v in parts.values() if 0 < v < _LEAST_SHARE * whole]
    shown += [(sum(small), "the rest")] if small else []
    return f"{what}: " + ", ".join(f"{k} {say(v)}" for v, k in shown) + f" = {say(whole)}"


def _aligned(
    rows: Sequence[tuple[str, ...]], details: Sequence[Sequence[str]], left: int = _LEFT
) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row, more in zip(rows, details, strict=True):
        cells = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
        lines += [f"    {line}" for line in more]
    return lines


def mesh(sizes: Mapping[str, int]) -> str:
    """`data 2 x fsdp 32`; axes of one device left out."""
    return " x ".join(f"{name} {size}" for name, size in sizes.items() if size > 1) or "1"


def gigabytes(amount: float) -> str:
    """In powers of 1,000."""
    return f"{amount / 1e9:.2f} GB" if amount >= 1e8 else units.human_bytes(amount)


def seconds(amount: float) -> str:
    """`3.21 s`, or milliseconds below one."""
    if amount >= 1:
        return f"{amount:.2f} s"
    return f"{1e3 * amount:.3g} ms" if amount >= 1e-6 or not amount else "< 1 us"


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")
