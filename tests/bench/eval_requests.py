# SPDX-License-Identifier: Apache-2.0
"""Requests for likelihoods per second, against lm_eval with its model `hf`.

The same Hugging Face folder, the same requests, the same processors, one after the other. lm_eval
(in build/bench/lm_eval) gets the batch size with which it was fastest here, and is warm; so is
midjax: it answers the requests twice, and the second time counts. What the first time took, with
all compilation, is printed too, and requests per CPU second (of lm_eval with the batch size that
wanted fewest): others on the machine disturb those less.

    python tests/bench/eval_requests.py [--data FOLDER] [--documents N]

Prints `figure | ours | peer | ratio | target | met`, writes build/bench/eval_requests.json, and
exits with 1 where a target is missed.
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
import time
from typing import Any

import eval_inputs

FOLDER = pathlib.Path("build/bench/eval")
OUT = pathlib.Path("build/bench/eval_requests.json")
PEER = pathlib.Path("build/bench/lm_eval/bin/python")
TARGET = 3.0
# Greatest difference between answers to the same request, in nats.
CLOSE = 1e-3


def asked(data: pathlib.Path) -> dict[str, list[list[str]]]:
    """Title of a task -> (context, continuation) of each request."""
    from midjax.evals import render, task

    def of(name: str, shots_from: str = "", **kwargs: Any) -> list[list[str]]:
        asked = task.load(name)
        if shots_from:  # the published examples may not be here; any serve
            shots = dataclasses.replace(asked.shots, take="first", split=shots_from)
            asked = dataclasses.replace(asked, shots=shots)
        instances = render.prepare(asked, str(data), **kwargs)
        flat = [request for instance in instances for request in instance.requests]
        return [[request.context, request.continuation] for request in flat]

    return {
        "ARC-Easy, 0 shots": of("arc_easy_harness"),
        "ARC-Easy, 5 shots, cloze": of("arc_easy_rc", shots_from="test"),
        "BoolQ, 0 shots": of("boolq_harness"),
        "MMLU, 5 shots": of("mmlu_harness", shots=5, subsets=eval_inputs.SUBJECTS),
    }


def ours(folder: pathlib.Path, tasks: dict[str, list[list[str]]]) -> dict[str, dict[str, Any]]:
    from midjax.evals import likelihood, likelihood_tokens, requests
    from midjax.model import hf

    config, params = hf.load(str(folder))
    tokenizer = likelihood_tokens.open_folder(str(folder))
    found = {}
    for name, pairs in tasks.items():
        scorer = likelihood.Scorer(config=config, params=params, tokenizer=tokenizer)
        wanted = [requests.Loglikelihood(context=c, continuation=more) for c, more in pairs]
        seconds, cpu = [], []
        for _ in range(3):
            begin, cpu_begin = time.perf_counter(), time.process_time()
            answers = scorer.loglikelihoods(wanted)
            seconds.append(time.perf_counter() - begin)
            cpu.append(time.process_time() - cpu_begin)
        found[name] = {
            "seconds": min(seconds[1:]),
            "first": seconds[0],
            "cpu": min(cpu[1:]),
            "answers": [[answer.nats, answer.greedy] for answer in answers],
        }
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default=None)
    parser.add_argument("--documents", type=int, default=48)
    given = parser.parse_args()
    if not PEER.exists():
        print(f"There is no {PEER}, so nothing to compare with: make sets it up where it can.")
        return 1
    folder = eval_inputs.random_llama(FOLDER / "llama")
    tasks = asked(eval_inputs.data_folder(FOLDER / "data", given.data, given.documents))
    (FOLDER / "requests.json").write_text(json.dumps(tasks))
    mine = ours(folder, tasks)
    arguments = [str(FOLDER / "requests.json"), str(folder), str(FOLDER / "answers.json")]
    subprocess.run(
        [str(PEER), str(pathlib.Path(__file__).parent / "lm_eval_peer.py"), "speed", *arguments],
        check=True,
    )
    theirs = json.loads((FOLDER / "answers.json").read_text())
    rows = []
    for name, pairs in tasks.items():
        fast, slow = (len(pairs) / found[name]["seconds"] for found in (mine, theirs))
        batch_size = theirs[name]["batch_size"]
        rows.append(row(f"requests/s, {name} (lm_eval: batches of {batch_size})", fast, slow, "-"))
        first = len(pairs) / mine[name]["first"]
        rows.append(row(f"requests/s, {name}, with compilation", first, slow, "-"))
    every = sum(map(len, tasks.values()))
    fast, slow = (every / sum(one["seconds"] for one in found.values()) for found in (mine, theirs))
    rows.append(
        row("requests/s, all of them", fast, slow, f">= {TARGET:g}x", fast / slow >= TARGET)
    )
    fast, slow = (every / sum(one["cpu"] for one in found.values()) for found in (mine, theirs))
    rows.append(row("requests per CPU second, all of them", fast, slow, "-"))
    apart = max(
        abs(a[0] - b[0])
        for name in tasks
        for a, b in zip(mine[name]["answers"], theirs[name]["answers"], strict=True)
    )
    rows.append(row("largest difference (nats)", apart, None, f"<= {CLOSE}", apart <= CLOSE))
    print("figure | ours | peer | ratio | target | met")
    for one in rows:
        peer = one["peer"]
        ratio, shown = ("-", "-") if peer is None else (f"{one['value'] / peer:.2f}", f"{peer:.3g}")
        print(
            one["figure"], f"{one['value']:.3g}", shown, ratio, one["target"], one["met"], sep=" | "
        )
    OUT.write_text(json.dumps(rows, indent=1))
    return 0 if all(one["met"] for one in rows) else 1


def row(
    figure: str, value: float, peer: float | None, target: str, met: bool = True
) -> dict[str, Any]:
    return {"figure": figure, "value": value, "peer": peer, "target": target, "met": bool(met)}


if __name__ == "__main__":
    sys.exit(main())
