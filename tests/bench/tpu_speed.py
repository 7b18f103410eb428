# SPDX-License-Identifier: Apache-2.0
"""The train step on TPU against MaxText's, by the TPU's own compiler: no TPU is needed.

Both systems' steps are compiled for the same slice, with the same versions of JAX and libtpu, and
both programs are judged by the same code, midjax/plan/cost.py: what the compiler estimates of its
own instructions, and a model of kernels and links for the rest. It is no measurement. Peaks of
memory are what the compiler says itself. MaxText gets every set of flags in tpu_steps/cases.py; the
fastest is the peer. MFLOPs of the model are counted by midjax/model/flops.py for both.

    make bench-tpu         (2 cores, 12 GB: an hour, most of it in the compiler)
    make bench-tpu-short   (1B on v5e-16: some minutes)
    python tests/bench/tpu_speed.py --maxtext PYTHON [--only CASE, or start] [--kept]

Prints `figure | ours | peer | ratio | target | met`, writes build/bench/tpu.json (tpu_short.json
of the short form), and exits with 1 where a target is missed. Programs stay in build/bench/tpu;
--kept takes those of an earlier run that are there, with the seconds that they took then.
"""

import argparse
import dataclasses
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
sys.path.insert(0, str(pathlib.Path(__file__).parent / "tpu_steps"))

import cases as cases_lib
import train_runs

from midjax.hardware import flags, slices
from midjax.plan import analysis, compiler, cost, groups, predict

HERE = pathlib.Path(__file__).parent
BUILD = pathlib.Path("build/bench")
PROGRAMS = BUILD / "tpu"
SHORT, START = "1B on v5e-16", "start"
MOST_COMPILING, MOST_STARTING, MOST_OVER_IDEAL = 0.8, 0.5, 1.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """A step that was compiled, or was not.

    Attributes:
      said: why there is nothing more; None where there is.
      peak_bytes: of a chip's memory, by the compiler.
      compiling_seconds: with lowering, by the clock.
      cpu_seconds: of the same, of all threads: beside other work, the fairer figure.
      judged: what the judge says of the program.
    """

    said: str | None
    peak_bytes: int = 0
    compiling_seconds: float = 0.0
    cpu_seconds: float = 0.0
    judged: cost.Cost | None = None

    @property
    def ms(self) -> float:
        assert self.judged is not None
        return 1000 * self.judged.step_seconds


def judge(text: str, one: slices.Slice, mesh: dict[str, int], places: list) -> cost.Cost:
    """The same for both."""
    knobs = dataclasses.asdict(analysis.Knobs())
    where = [groups.Place(slice_index=i, coordinates=tuple(at)) for i, at in places]
    return cost.estimate(text, one, mesh, places=where, **knobs)


def ours(case: cases_lib.Case, made: compiler.Compiler, name: str) -> Result:
    """midjax's step, as `midjax plan` compiles it, with the flags that it would run with."""
    one = slices.parse(case.slice)
    options = flags.as_compiler_options(flags.flags(one.chip.name))
    done = made.compile(case.recipe(), one, case.rows, options, name)
    if done.outcome != "compiled":
        return Result(said=str(done.record.get("refusal", done.record.get("said")))[:300])
    record = done.record
    return Result(
        said=None,
        peak_bytes=record["memory"]["peak_memory_in_bytes"],
        compiling_seconds=record["lowering_seconds"] + record["compiling_seconds"],
        cpu_seconds=record["cpu_seconds"],
        judged=judge(done.text("text"), one, record["mesh"], record["places"]),
    )


def theirs(case: cases_lib.Case, options: dict[str, str], python: str) -> Result:
    """MaxText's step, compiled in its own environment."""
    one = slices.parse(case.slice)
    arguments = case.peer_arguments(one.chips)
    key = hashlib.sha256(json.dumps([arguments, options]).encode()).hexdigest()[:16]
    out = PROGRAMS / f"maxtext-{key}"
    if not (out / "record.json").exists():
        command = [python, str(HERE / "tpu_steps" / "maxtext_program.py"), "--out", str(out)]
        with (PROGRAMS / f"maxtext-{key}.log").open("w") as log:
            subprocess.run(
                [*command, "--options", json.dumps(options), *arguments],
                stdout=log, stderr=log, check=False,
            )  # fmt: skip
    if not (out / "record.json").exists():
        return Result(said=f"MaxText's script failed: see {PROGRAMS}/maxtext-{key}.log")
    record = json.loads((out / "record.json").read_text())
    if record["outcome"] != "compiled":
        return Result(said=record["said"])
    return Result(
        said=None,
        peak_bytes=record["peak_bytes"],
        compiling_seconds=record["lowering_seconds"] + record["compiling_seconds"],
        cpu_seconds=record["cpu_seconds"],
        judged=judge((out / "program.txt").read_text(), one, record["mesh"], record["places"]),
    )


def row(figure: str, value: Any, peer: Any = None, target: str = "-", met: bool = True) -> dict:
    return {"figure": figure, "value": value, "peer": peer, "target": target, "met": bool(met)}


def ideal_bytes(case: cases_lib.Case, chips: int, microbatches: int) -> float:
    """What each chip must send in a step where all chips are along fsdp and context: the ideal.

    Each matrix of a layer travels three times in bfloat16: gathered for the forward pass, gathered
    for the backward pass, and its gradient scattered. That of the head twice: what is gathered
    serves both passes of a chunk of the loss. A ring sends (n - 1) / n of the whole. Each
    microbatch does all of it: to keep what is gathered, or gradients before they are summed, takes
    the memory that it saves. Of the embedding either the table and its gradient travel, or what is
    looked up and its gradient, a vector for each token, whichever is less.

    Where context splits rows, keys and values of whole rows travel as a layer's matrices do: each
    part of a row looks at all of it, or is looked at.
    """
    config = case.recipe().model
    D, F, H = config.dim, config.ffn_dim, config.head_dim
    layer = 2 * D * H * (config.heads + config.kv_heads) + 3 * D * F
    table, own_tokens = config.vocab_size * D, case.rows * case.tokens / chips
    entries = microbatches * (3 * config.layers * layer + 2 * table)
    entries += 2 * min(microbatches * table, own_tokens * D)
    parts = case.mesh.context
    tokens = case.rows * case.tokens * parts / chips  # of the rows of which a chip has a part
    keys = 3 * config.layers * 2 * tokens * config.kv_heads * H
    return 2 * entries * (chips - 1) / chips + 2 * keys * (parts - 1) / parts


def compare(name: str, case: cases_lib.Case, made: compiler.Compiler, python: str) -> list[dict]:
    """The rows of a case."""
    one, mine = slices.parse(case.slice), ours(case, made, name)
    peers = {label: theirs(case, options, python) for label, options in case.maxtext_flags.items()}
    rows, best = [], None
    for label, peer in peers.items():
        if peer.said is not None:
            rows.append(row(f"{name}: MaxText, {label} flags: {peer.said}", None))
            continue
        rows.append(row(f"{name}: MaxText with {label} flags, ms per step", None, round(peer.ms)))
        best = peer if best is None or peer.ms < best.ms else best
    if mine.said is not None or best is None:
        said = mine.said or "MaxText has no program"
        return [*rows, row(f"{name}: ms per step: {said}", None, None, "to compile", False)]
    time, memory = mine.ms / best.ms, mine.peak_bytes / best.peak_bytes
    target = " or ".join(f"<= {t}x at <= {m}x memory" for t, m in case.targets)
    met = any(time <= t and memory <= m for t, m in case.targets)
    worth = predict.model_flops(case.recipe(), case.rows) / one.chips
    done = mine.judged.hardware_flops / worth
    of_peak = [worth / x.judged.step_seconds / one.chip.bf16_flops_per_second for x in (mine, best)]
    seconds, cpu_seconds = (
        [getattr(x, name) for x in (mine, best)] for name in ("compiling_seconds", "cpu_seconds")
    )
    rows += [
        row(f"{name}: ms per step", round(mine.ms), round(best.ms), target, met),
        row(f"{name}: peak GB per chip", *(round(x.peak_bytes / 1e9, 1) for x in (mine, best))),
        row(f"{name}: utilisation by the judge, %", *(round(100 * x, 1) for x in of_peak)),
        row(f"{name}: hardware's FLOPs over the model's", round(done, 3),
            round(best.judged.hardware_flops / worth, 3), f"<= {case.most_hardware_flops}",
            done <= case.most_hardware_flops),
        row(f"{name}: seconds of lowering and compiling", *map(round, seconds)),
        row(f"{name}: CPU seconds of lowering and compiling", *map(round, cpu_seconds),
            f"<= {MOST_COMPILING}x", cpu_seconds[0] <= MOST_COMPILING * cpu_seconds[1]),
    ]  # fmt: skip
    for part in mine.judged.parts:
        pair = [round(1000 * x.judged.parts.get(part, 0.0)) for x in (mine, best)]
        rows.append(row(f"{name}: ms of {part}", *pair))
    sent = [sum(c.bytes_sent for c in x.judged.collectives) for x in (mine, best)]
    # MaxText has one microbatch in every case.
    ideal, peers_ideal = (ideal_bytes(case, one.chips, n) for n in (case.microbatches, 1))
    rows.append(
        row(f"{name}: bytes that each chip sends over the ideal, {ideal / 1e9:.1f} GB",
            round(sent[0] / ideal, 3), round(sent[1] / peers_ideal, 3), f"<= {MOST_OVER_IDEAL}",
            sent[0] <= MOST_OVER_IDEAL * ideal)
    )  # fmt: skip
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["figure | ours | peer | ratio | target | met"]
    for one in rows:
        value, peer = one["value"], one["peer"]
        ratio = f"{value / peer:.2f}" if value is not None and peer else "-"
        cells = (one["figure"], value, peer, ratio, one["target"], one["met"])
        lines.append(" | ".join("-" if cell is None else str(cell) for cell in cells))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--maxtext", required=True, help="the Python of MaxText's environment")
    parser.add_argument("--only", action="append", choices=[*cases_lib.CASES, START])
    parser.add_argument("--short", action="store_true", help=f"{SHORT}, and nothing else")
    parser.add_argument("--kept", action="store_true", help="take programs of an earlier run")
    args = parser.parse_args()
    chosen = [SHORT] if args.short else args.only or [*cases_lib.CASES, START]
    if not args.kept and chosen != [START]:
        shutil.rmtree(PROGRAMS, ignore_errors=True)
    PROGRAMS.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with compiler.Compiler(str(PROGRAMS / "midjax")) as made:
        for name in (one for one in chosen if one != START):
            rows += compare(name, cases_lib.CASES[name], made, args.maxtext)
            print(table(rows[-12:]), flush=True)
    if START in chosen:
        rows += [row(*figure) for figure in train_runs.beside_maxtext(args.maxtext, MOST_STARTING)]
    print(table(rows))
    out = BUILD / ("tpu_short.json" if args.short else "tpu.json")
    out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0 if all(one["met"] for one in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
