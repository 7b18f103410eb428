# SPDX-License-Identifier: Apache-2.0
"""What the loop of `midjax train` costs beside its step: `loop_cost.py tiny cost`, or `saves`.

`cost`: rounds of the bare step, on a batch that lies on the mesh, and of the real loop in which the
step is replaced by one that does nothing. What is left of it is the loop's own: batches read,
packed and placed, metrics fetched, rows written. (Two whole runs differ by more than the 2 % that
are to be seen.) `saves`: a real run, its steps after a save, and what was compiled when.
"""

import json
import pathlib
import statistics
import sys
import tempfile
from typing import Any

import contest
import jax
import midjax_step

from midjax.train import loop

STEPS, FIRST, ROUNDS = 200, 20, 3
SAVE_EVERY, SAVES = 10, 4


def documents(size: contest.Size, folder: str) -> str:
    """Random documents, some longer and some shorter than a row."""
    tokens = f"{folder}/tokens"
    midjax_step.write_tokens(size, tokens, documents=2000, tokens=3 * size.row_tokens // 4)
    return tokens


def own_seconds(size: contest.Size, folder: str, tokens: str, known: list[Any]) -> float:
    """CPU seconds of one turn of the loop around a step that does nothing.

    Args:
      known: metrics of an update; empty at first.
    """
    run_dir = tempfile.mkdtemp(dir=folder)
    begun = loop.begin(midjax_step.config(size, tokens, run_dir, steps=STEPS))
    (real,) = begun.early.steps.values()
    calls: list[float] = []

    def nothing(state: Any, batch: Any) -> Any:
        if not known:
            state, metrics = real(state, batch)
            known.append(metrics)
        calls.append(contest.cpu_seconds())
        return state, known[0]

    begun.early.steps[size.batch_rows] = nothing
    loop.go(begun)
    return (calls[-1] - calls[FIRST]) / (len(calls) - 1 - FIRST)


def cost(size: contest.Size) -> dict[str, float]:
    update, _ = midjax_step.make(size)
    update()
    bare, own = [], []
    known: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        tokens = documents(size, folder)
        for _ in range(ROUNDS):
            begin = contest.cpu_seconds()
            update()
            update()
            bare.append((contest.cpu_seconds() - begin) / 2)
            own.append(own_seconds(size, folder, tokens, known))
    return {"bare": statistics.median(bare), "own": statistics.median(own)}


def saves(size: contest.Size) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        rows = pathlib.Path(folder) / "run" / "metrics.jsonl"
        late: list[int] = []

        def compiled(event: str, seconds: float, **_: Any) -> None:
            if event == "/jax/core/compile/backend_compile_duration" and rows.exists():
                # Update 2 was dispatched, and its row not written, when there is one row.
                late.append(rows.read_text().count("\n") > 1)

        jax.monitoring.register_event_duration_secs_listener(compiled)
        steps = SAVES * SAVE_EVERY + 1
        tokens = documents(size, folder)
        made = midjax_step.config(size, tokens, f"{folder}/run", steps=steps, save_every=SAVE_EVERY)
        loop.run(made)
        seconds = {r["step"]: r["perf/step_seconds"] for r in map(json.loads, rows.open())}
    after = [seconds.pop(i * SAVE_EVERY + 1) for i in range(1, SAVES + 1)]
    others = [seconds[step] for step in sorted(seconds) if step > 3]
    return {
        "after": statistics.median(after),
        "median": statistics.median(others),
        "compiled_late": sum(late),
    }


if __name__ == "__main__":
    what = {"cost": cost, "saves": saves}[sys.argv[2]]
    contest.say(what(contest.SIZES[sys.argv[1]]))
