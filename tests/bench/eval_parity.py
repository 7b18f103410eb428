# SPDX-License-Identifier: Apache-2.0
"""Every answer and every metric against lm_eval with its model `hf`, task by task.

lm_eval (in build/bench/lm_eval) runs its own task files, which are told to read local data, on a
Hugging Face folder; midjax renders, asks and scores the same documents by its own. Compared are the
requests as texts, the nats of each, whether it is greedy, generated texts, and the metrics. A model
this small solves no problem of GSM8K or BBH: so their metrics are compared on given texts as well,
right, wrong and oddly written ones ("scripted").

    python tests/bench/eval_parity.py [--data FOLDER] [--documents N] [--model HF_FOLDER]

Without --model it is stories260K, whose context of 512 tokens many prompts exceed, so that cutting
is compared too. Without --data questions are made of the demo's prose; GSM8K and BBH need it.

Prints a line per task, writes build/bench/eval_parity.json, and exits with 1 where a request, a
metric or a generated text differs, or the nats of a request do by more than 1e-3.
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import eval_inputs

FOLDER = pathlib.Path("build/bench/parity")
OUT = pathlib.Path("build/bench/eval_parity.json")
PEER = pathlib.Path("build/bench/lm_eval/bin/python")
CLOSE = 1e-3
# Of generated texts: what tasks ask for exceeds the context of stories260K.
NEW_TOKENS = 48
SPLITS = {"training_split": "train", "validation_split": "validation", "test_split": "test"}
MMLU_SHOTS = {
    "anatomy": 0, "astronomy": 5, "virology": 5, "world_religions": 5,
    "miscellaneous": 0, "professional_psychology": 5,
}  # fmt: skip
# Where lm_eval's own files are below its folder of tasks; the split that is asked; ours.
TASKS: dict[str, dict[str, Any]] = {
    "arc_easy": {
        "theirs": "arc/arc_easy.yaml",
        "files": {"test": "ai2_arc/ARC-Easy/test.jsonl"},
        "ours": "arc_easy_harness",
        "metrics": {"acc": "acc,none", "acc_norm": "acc_norm,none"},
    },
    "boolq": {
        "theirs": "super_glue/boolq/default.yaml",
        "files": {"validation": "super_glue/boolq/validation.jsonl"},
        "ours": "boolq_harness",
        "metrics": {"acc": "acc,none"},
    },
    **{
        f"mmlu_{subject}": {
            "theirs": f"mmlu/default/mmlu_{subject}.yaml",
            "files": {
                "test": f"mmlu/{subject}/test.jsonl", "dev": f"mmlu/{subject}/dev.jsonl"
            },
            "ours": "mmlu_harness",
            "subset": subject,
            "shots": shots,
            "metrics": {"acc": "acc,none"},
        }
        for subject, shots in MMLU_SHOTS.items()
    },
}  # fmt: skip
WRITTEN: dict[str, dict[str, Any]] = {
    "gsm8k": {
        "theirs": "gsm8k/gsm8k.yaml",
        "files": {"test": "gsm8k/main/test.jsonl", "train": "gsm8k/main/train.jsonl"},
        "ours": "gsm8k_harness",
        "shots": 2,
        "metrics": {
            "strict": "exact_match,strict-match",
            "flexible": "exact_match,flexible-extract",
        },
    },
    **{
        f"bbh_cot_fewshot_{subset}": {
            "theirs": f"bbh/cot_fewshot/{subset}.yaml",
            "files": {"test": f"bbh/{subset}/test.jsonl"},
            "ours": "bbh_harness",
            "subset": subset,
            "metrics": {"exact_match": "exact_match,get-answer"},
        }
        for subset in eval_inputs.BBH
    },
}


def write_tasks(folder: pathlib.Path, data: pathlib.Path, tasks: dict[str, Any]) -> None:
    """Files for lm_eval: its own, with local data; and what to run."""
    folder.mkdir(parents=True, exist_ok=True)
    (lm_eval,) = PEER.parent.parent.glob("lib/python*/site-packages/lm_eval")
    asked = {}
    for name, task in tasks.items():
        local = {
            "include": str((lm_eval / "tasks" / task["theirs"]).resolve()),
            "task": f"{name}_local",
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {
                "data_files": {split: str(data / file) for split, file in task["files"].items()}
            },
        }
        for title, split in SPLITS.items():
            if split not in task["files"]:
                local[title] = None
        # JSON is YAML.
        (folder / f"{name}_local.yaml").write_text(json.dumps(local, indent=1))
        settings = {"num_fewshot": task["shots"]} if "shots" in task else {}
        if name in WRITTEN:
            settings["gen_kwargs"] = {"max_gen_toks": NEW_TOKENS}
        asked[f"{name}_local"] = settings
    (folder / "tasks.json").write_text(json.dumps(asked))


def ours(
    engine: Any, data: pathlib.Path, task: dict[str, Any]
) -> tuple[list[Any], list[Any], dict[str, float]]:
    """Requests and answers of every document, and metrics."""
    from midjax.evals import render
    from midjax.evals import task as task_lib
    from midjax.evals.metrics import scoring

    mine = task_lib.load(task["ours"])
    subsets = [task["subset"]] if "subset" in task else None
    instances = render.prepare(mine, str(data), shots=task.get("shots"), subsets=subsets)
    if mine.kind == "generate":
        instances = [
            dataclasses.replace(
                one,
                requests=tuple(
                    dataclasses.replace(request, max_new_tokens=NEW_TOKENS)
                    for request in one.requests
                ),
            )
            for one in instances
        ]
    answers = render.ask(engine, instances)
    metrics = scoring.score(mine, instances, answers)["metrics"]
    return [one.requests for one in instances], answers, metrics


def texts_for(task: dict[str, Any], data: pathlib.Path) -> list[str]:
    """A text for each document: its gold answer in ways that filters read, misread or miss."""
    file = data / next(iter(task["files"].values()))
    records = [json.loads(line) for line in file.read_text().splitlines()]
    if task["ours"] == "gsm8k_harness":
        golds = [record["answer"].rpartition("#### ")[2] for record in records]
        ways = (
            "So it is {}.\n#### {}", "The answer is {}.", "#### {}.00", "#### 1{}", "", "#### -{}",
            "{} apples, of which 3 are red", "It costs ${} in all.\n#### ${}", "#### {} #### 5",
        )  # fmt: skip
    else:
        golds = [record["target"] for record in records]
        ways = (
            "So the answer is {}.", "the answer is {}", "{}", "So the answer is not {}.", "",
            "So the answer is {}. So the answer is no.", "So the answer is  {} .",
        )  # fmt: skip
    return [ways[i % len(ways)].replace("{}", gold) for i, gold in enumerate(golds)]


class Scripted:
    """A model that writes given texts."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def generate(self, asked: Sequence[Any]) -> list[tuple[str, ...]]:
        assert len(asked) == len(self.texts)
        return [(text,) for text in self.texts]


def scripted(data: pathlib.Path) -> list[dict[str, Any]]:
    """Metrics of given texts, ours and theirs."""
    texts = {name: texts_for(task, data) for name, task in WRITTEN.items()}
    given, answers = FOLDER / "texts.json", FOLDER / "scripted.json"
    given.write_text(json.dumps({f"{name}_local": told for name, told in texts.items()}))
    ask_peer("scripted", str(given), answers)
    theirs = json.loads(answers.read_text())
    return [
        compare(
            f"{name}, scripted",
            task,
            ours(Scripted(texts[name]), data, task),
            theirs[f"{name}_local"],
        )
        for name, task in WRITTEN.items()
    ]


def ask_peer(what: str, model: str, answers: pathlib.Path) -> None:
    """lm_eval on the tasks in FOLDER."""
    script = pathlib.Path(__file__).parent / "lm_eval_peer.py"
    command = [str(PEER), str(script), what, str(FOLDER / "tasks"), model, str(answers)]
    subprocess.run(command, check=True)


def compare(
    name: str, task: dict[str, Any], mine: tuple[list[Any], list[Any], Any], theirs: Any
) -> dict[str, Any]:
    requests, answers, metrics = mine
    found: dict[str, Any] = {"task": name, "requests": 0, "nats": 0.0, "wrong": []}
    if len(requests) != len(theirs["arguments"]):
        found["wrong"].append(f"{len(requests)} documents, theirs {len(theirs['arguments'])}")
    for asked, told, arguments, resps in zip(
        requests, answers, theirs["arguments"], theirs["answers"], strict=False
    ):
        for one, answer, theirs_asked, ((their_answer,),) in zip(
            asked, told, arguments, [[r] for r in resps], strict=True
        ):
            found["requests"] += 1
            if isinstance(answer, tuple):
                same = one.context == theirs_asked[0]
                # lm_eval decodes new tokens alone, where a decoder may drop the space in front.
                if answer[0] not in (their_answer, f" {their_answer}"):
                    found["wrong"].append(f"text {answer[0]!r}, theirs {their_answer!r}")
            else:
                same = [one.context, one.continuation] == list(theirs_asked)
                nats, greedy = their_answer
                found["nats"] = max(found["nats"], abs(answer.nats - float(nats)))
                if answer.greedy != (str(greedy) == "True"):
                    found["wrong"].append(f"greedy is {answer.greedy}, theirs {greedy}")
            if not same:
                found["wrong"].append(f"request {one}, theirs {theirs_asked}")
    for title, theirs_title in task["metrics"].items():
        pair = metrics[title], theirs["metrics"][theirs_title]
        found.setdefault("metrics", {})[title] = pair
        if pair[0] != pair[1]:
            found["wrong"].append(f"{title} is {pair[0]}, theirs {pair[1]}")
    found["met"] = not found["wrong"] and found["nats"] <= CLOSE
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--data", default=None)
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--model", default=None)
    given = parser.parse_args()
    if not PEER.exists():
        print(f"There is no {PEER}, so nothing to compare with: make sets it up where it can.")
        return 1
    from midjax import lm_eval_model

    model = given.model or str(eval_inputs.stories(FOLDER / "model"))
    data = eval_inputs.data_folder(FOLDER / "data", given.data, given.documents)
    tasks = TASKS | (WRITTEN if given.data else {})
    write_tasks(FOLDER / "tasks", data.resolve(), tasks)
    answers = FOLDER / "answers.json"
    ask_peer("tasks", model, answers)
    theirs = json.loads(answers.read_text())
    engine = lm_eval_model.open_engine(lm_eval_model.Settings(folder=model))
    found = [
        compare(name, task, ours(engine, data, task), theirs[f"{name}_local"])
        for name, task in tasks.items()
    ]
    if given.data:
        found += scripted(data)
    print("task | requests | largest difference (nats) | metrics (ours / theirs) | met")
    for one in found:
        metrics = ", ".join(f"{k} {a:.6g} / {b:.6g}" for k, (a, b) in one["metrics"].items())
        print(one["task"], one["requests"], f"{one['nats']:.2g}", metrics, one["met"], sep=" | ")
        for line in one["wrong"][:3]:
            print(f"  {line[:300]}")
    print(f"texts cut on the left: {dict(engine.scorer.counts)}")
    OUT.write_text(json.dumps(found, indent=1))
    return 0 if all(one["met"] for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
