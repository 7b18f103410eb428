# SPDX-License-Identifier: Apache-2.0
"""The train step against its peers, and what the rest of a run costs beside it.

Steps: forward, backward and AdamW with a clip, float32, one process, the same model, weights, batch
and rates (Levanter and MaxText draw their own weights). Every contestant is a process of its own,
see train_steps/, which compiles and warms up, and waits for its turns. They take turns in rounds,
ours before each of the others; what counts is tokens per CPU second, the median over the rounds.
Then runs of `midjax train` itself: what the loop adds to its bare step, what it compiles and when,
the steps after a save, and the time from the start of the process to the first update.

    python tests/bench/train_speed.py [SIZE ...] [--rounds N] [--only steps|loop|start]

Levanter and MaxText have environments of their own, build/bench/levanter and build/bench/maxtext,
made by `make bench-train` where that is possible (MaxText wants Python 3.12); a peer that is not
installed is said to be. Prints `figure | ours | peer | ratio | target | met`, writes
build/bench/train.json, and exits with 1 where a target is missed.
"""

import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent / "train_steps"))

import contest
import train_runs

STEPS = pathlib.Path(__file__).parent / "train_steps"
BUILD = pathlib.Path("build/bench")
OUT = BUILD / "train.json"
HERE = sys.executable
# Name -> (interpreter, arguments); a size is put in the place of "SIZE".
OURS = "midjax"
CONTESTANTS: dict[str, tuple[str, list[str]]] = {
    OURS: (HERE, ["midjax_step.py", "SIZE"]),
    "plain JAX": (HERE, ["plain_step.py", "SIZE"]),
    "Levanter": (str(BUILD / "levanter/bin/python"), ["levanter_step.py", "SIZE"]),
    "MaxText": (str(BUILD / "maxtext/bin/python"), ["maxtext_step.py", "SIZE"]),
    "PyTorch eager": (HERE, ["torch_step.py", "SIZE", "eager"]),
    "PyTorch compiled": (HERE, ["torch_step.py", "SIZE", "compiled"]),
}
RATES = {name: (HERE, ["matmul_rate.py", "-", name]) for name in ("xla", "torch")}
SAME_WEIGHTS = ("plain JAX", "PyTorch eager", "PyTorch compiled")
IN_JAX = ("plain JAX", "Levanter", "MaxText")
# Seen on another day, quiet: for the table where the peer is not installed. Never a peer.
SEEN = {("tiny", "Levanter"): 1100, ("tiny", "MaxText"): 1030,
        ("small", "Levanter"): 137, ("small", "MaxText"): 123}  # fmt: skip
UPDATES = {"tiny": 2, "small": 1}  # of a turn


class Contestant:
    """A process that waits for its turns.

    Attributes:
      first: its first loss and its number of parameters.
      turns: CPU seconds of an update, turn after turn.
    """

    def __init__(self, python: str, arguments: list[str], size: str) -> None:
        given = [size if argument == "SIZE" else argument for argument in arguments]
        # PyTorch, JAX and BLAS each take all cores that there are.
        self._errors = (BUILD / f"{'_'.join(given)}.log").open("w+")
        self._process = subprocess.Popen(
            [python, str(STEPS / given[0]), *given[1:]],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
        )  # fmt: skip
        self.turns: list[float] = []
        self.first = self._answer()

    def turn(self, updates: int) -> None:
        assert self._process.stdin is not None
        print(updates, file=self._process.stdin, flush=True)
        self.turns.append(self._answer()["cpu"] / updates)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._errors.close()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("RESULT"):
                return json.loads(line.removeprefix("RESULT"))
        self._process.wait()
        raise RuntimeError(pathlib.Path(self._errors.name).read_text()[-1500:])


def row(figure: str, value: Any, peer: Any = None, target: str = "-", met: bool = True) -> dict:
    return {"figure": figure, "value": value, "peer": peer, "target": target, "met": bool(met)}


def start(size: str) -> tuple[dict[str, Contestant], list[dict[str, Any]]]:
    """Those that can run, one after the other, and rows for those that cannot."""
    found, rows = {}, []
    for name, (python, arguments) in CONTESTANTS.items():
        what = f"{size}: tokens per CPU second, {name}"
        if not pathlib.Path(python).exists():
            seen = SEEN.get((size, name))
            rows.append(row(f"{what}: not installed (seen elsewhere: {seen})", None))
            continue
        try:
            found[name] = Contestant(python, arguments, size)
        except RuntimeError as error:
            if name not in ("Levanter", "MaxText", "PyTorch compiled"):
                raise
            print(f"{name}: {error}", file=sys.stderr)
            rows.append(row(f"{what}: does not run here (see the log)", None))
    return found, rows


def check_alike(size: str, found: dict[str, Contestant]) -> None:
    """All learn the same model; those that share the weights have the same first loss."""
    ours, shape = found[OURS].first, contest.SIZES[size]
    assert ours["parameters"] == shape.parameters
    for name, contestant in found.items():
        first = contestant.first
        assert first["parameters"] == ours["parameters"], (name, first, ours)
        near = 1e-3 if name in SAME_WEIGHTS else 1.0
        assert abs(first["loss"] - ours["loss"]) < near, (name, first, ours)
    assert abs(ours["loss"] - math.log(shape.vocab_size)) < 0.3


def steps(size: str, rounds: int, rates: dict[str, float]) -> list[dict[str, Any]]:
    found, rows = start(size)
    check_alike(size, found)
    for _ in range(rounds):
        for name, contestant in found.items():
            if name != OURS:
                found[OURS].turn(UPDATES[size])
                contestant.turn(UPDATES[size])
    for contestant in found.values():
        contestant.close()
    tokens = contest.SIZES[size].batch_tokens
    speeds = {name: tokens / statistics.median(c.turns) for name, c in found.items()}
    ours = round(speeds[OURS], 1)
    best = max((name for name in IN_JAX if name in speeds), key=lambda name: speeds[name])
    for name, speed in speeds.items():
        if name != OURS:
            must = name == best
            rows.append(
                row(f"{size}: tokens per CPU second, {name}", ours, round(speed, 1),
                    ">= 1.0x (best in JAX)" if must else "-", not must or ours >= speed)
            )  # fmt: skip
    for name, speed in speeds.items():
        rate = contest.SIZES[size].update_gflop * speed / tokens
        of = rates["torch" if name.startswith("PyTorch") else "xla"]
        rows.append(row(f"{size}: GFLOP per CPU second of {name}; of matmul alone",
                        round(rate, 1), round(of, 1)))  # fmt: skip
    return rows


def matmul(rounds: int) -> dict[str, float]:
    """GFLOP per CPU second of a large product, by library."""
    import matmul_rate

    found = {name: Contestant(*how, size="-") for name, how in RATES.items()}
    for _ in range(rounds):
        for contestant in found.values():
            contestant.turn(2)
    gflop = 2e-9 * matmul_rate.SIDE**3 * matmul_rate.PRODUCTS
    for contestant in found.values():
        contestant.close()
    return {name: gflop / statistics.median(c.turns) for name, c in found.items()}


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["figure | ours | peer | ratio | target | met"]
    for figure in rows:
        value, peer = figure["value"], figure["peer"]
        ratio = "-" if peer is None or value is None else f"{value / peer:.2f}"
        cells = (figure["figure"], value, "-" if peer is None else peer, ratio, figure["target"])
        lines.append(" | ".join(str(cell) for cell in (*cells, figure["met"])))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("sizes", nargs="*", help=f"of {', '.join(contest.SIZES)}; all if none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["steps", "loop", "start"])
    args = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    if args.only in (None, "start"):
        found += [row(*figure) for figure in train_runs.starting()]
    if args.only in (None, "loop"):
        found += [row(*figure) for figure in train_runs.looping()]
    if args.only in (None, "steps"):
        rates = matmul(args.rounds)
        for size in args.sizes or ["tiny", "small"]:
            found += steps(size, args.rounds, rates)
    print(table(found))
    OUT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if all(figure["met"] for figure in found) else 1


if __name__ == "__main__":
    sys.exit(main())
