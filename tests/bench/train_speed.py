# SPDX-License-Identifier: Apache-2.0
"""The train step against its peers, and what the rest of a run costs beside it.

Steps: forward, backward and AdamW with a clip, float32, one process, the same model, weights, batch
and rates (Levanter and MaxText draw their own weights). Every contestant is a process of its own,
see train_steps/, which compiles, warms up and waits for its turns: ours and a peer in turn, peer
after peer. What counts is tokens per CPU second, the median over the rounds; PyTorch, for which
there is no target, has one turn.
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
ROUNDS = {"tiny": 3, "small": 2}


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


def check_alike(size: str, name: str, ours: Contestant, peer: Contestant) -> None:
    """Both learn the same model; with the same weights they have the same first loss."""
    shape, first = contest.SIZES[size], peer.first
    assert first["parameters"] == ours.first["parameters"] == shape.parameters, (name, first)
    near = 1e-3 if name in SAME_WEIGHTS else 1.0
    assert abs(first["loss"] - ours.first["loss"]) < near, (name, first, ours.first)
    assert abs(ours.first["loss"] - math.log(shape.vocab_size)) < 0.3, ours.first


def beside(size: str, name: str, ours: Contestant, rounds: int) -> tuple[float, float] | str:
    """Tokens per CPU second of ours and of a peer, in turns; or why there are none.

    Only the two are in memory: all at once would take 30 GB.
    """
    python, arguments = CONTESTANTS[name]
    if not pathlib.Path(python).exists():
        return f"not installed (seen elsewhere: {SEEN.get((size, name))})"
    try:
        peer = Contestant(python, arguments, size)
    except RuntimeError as error:
        if name == "plain JAX":
            raise
        print(f"{name}: {error}", file=sys.stderr)
        return "does not run here (why: above the table)"
    check_alike(size, name, ours, peer)
    ours.turns.clear()
    for _ in range(rounds):
        ours.turn(UPDATES[size])
        peer.turn(UPDATES[size])
    peer.close()
    tokens = contest.SIZES[size].batch_tokens
    return tokens / statistics.median(ours.turns), tokens / statistics.median(peer.turns)


def steps(size: str, rounds: int, rates: dict[str, float]) -> list[dict[str, Any]]:
    ours = Contestant(*CONTESTANTS[OURS], size)
    found = {}
    for name in CONTESTANTS:
        if name != OURS:
            found[name] = beside(size, name, ours, rounds if name in IN_JAX else 1)
    ours.close()
    speeds = {name: pair for name, pair in found.items() if not isinstance(pair, str)}
    closest = min(
        (name for name in IN_JAX if name in speeds), key=lambda n: speeds[n][0] / speeds[n][1]
    )
    rows = []
    for name, pair in found.items():
        what = f"{size}: tokens per CPU second, {name}"
        if isinstance(pair, str):
            rows.append(row(f"{what}: {pair}", None))
            continue
        must = name == closest
        rows.append(
            row(what, round(pair[0], 1), round(pair[1], 1),
                ">= 1.0x (best in JAX)" if must else "-", not must or pair[0] >= pair[1])
        )  # fmt: skip
    reached = {OURS: speeds[closest][0]} | {name: pair[1] for name, pair in speeds.items()}
    shape = contest.SIZES[size]
    for name, speed in reached.items():
        rate = shape.update_gflop * speed / shape.batch_tokens
        of = rates["torch" if name.startswith("PyTorch") else "xla"]
        what = f"{size}: GFLOP per CPU second of {name}; of matmul alone"
        rows.append(row(what, round(rate, 1), round(of, 1)))
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
        cells = (figure["figure"], value, peer, ratio, figure["target"], figure["met"])
        lines.append(" | ".join("-" if cell is None else str(cell) for cell in cells))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("sizes", nargs="*", help=f"of {', '.join(contest.SIZES)}; all if none")
    parser.add_argument("--rounds", type=int, help="instead of a size's own")
    parser.add_argument("--only", choices=["steps", "loop", "start"])
    args = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    if args.only in (None, "start"):
        found += [row(*figure) for figure in train_runs.starting()]
    if args.only in (None, "loop"):
        found += [row(*figure) for figure in train_runs.looping()]
    if args.only in (None, "steps"):
        rates = matmul(rounds=3)
        for size in args.sizes or ROUNDS:
            found += steps(size, args.rounds or ROUNDS[size], rates)
    print(table(found))
    OUT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if all(figure["met"] for figure in found) else 1


if __name__ == "__main__":
    sys.exit(main())
