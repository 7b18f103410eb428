# SPDX-License-Identifier: Apache-2.0
"""lm_eval with its model `hf`, run by the Python of its own environment; see eval_requests.py and
eval_parity.py, which write what it reads and read what it writes.

    lm_eval_peer.py speed REQUESTS MODEL OUT    answers a file of (context, continuation), timed
    lm_eval_peer.py tasks TASKS MODEL OUT       runs tasks, with every request and answer
    lm_eval_peer.py scripted TASKS TEXTS OUT    the same, of tasks whose texts are in a file
"""

import json
import os
import sys
import time

# The data are local files, and the model is.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
# A batch size that suits this machine and model best is not known beforehand.
BATCH_SIZES = (4, 16)


def hf(folder: str, batch_size: int):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=batch_size)


def speed(requests: str, folder: str, out: str) -> None:
    from lm_eval.api.instance import Instance

    with open(requests) as file:
        asked = json.load(file)

    def timed(model, pairs):
        instances = [
            Instance(request_type="loglikelihood", doc={}, arguments=tuple(pair), idx=i)
            for i, pair in enumerate(pairs)
        ]
        begin, cpu = time.perf_counter(), time.process_time()
        answers = model.loglikelihood(instances, disable_tqdm=True)
        return time.perf_counter() - begin, time.process_time() - cpu, answers

    found = {}
    for name, pairs in asked.items():
        best, least_cpu = None, float("inf")
        for batch_size in BATCH_SIZES:
            model = hf(folder, batch_size)
            timed(model, pairs[: 2 * batch_size])  # warm
            seconds, cpu, answers = timed(model, pairs)
            if best is None or seconds < best["seconds"]:
                best = {"seconds": seconds, "batch_size": batch_size, "answers": answers}
            least_cpu = min(least_cpu, cpu)
        found[name] = best | {"cpu": least_cpu}
    with open(out, "w") as file:
        json.dump(found, file)


def tasks(folder_of_tasks: str, folder: str, out: str) -> None:
    model = hf(folder, 8)
    run(folder_of_tasks, lambda _: model, out)


def scripted(folder_of_tasks: str, texts: str, out: str) -> None:
    """Metrics of given texts: task -> the text of each document."""
    from lm_eval.api.model import LM

    with open(texts) as file:
        given = json.load(file)

    class Scripted(LM):
        def __init__(self, told):
            super().__init__()
            self.told = told

        def generate_until(self, requests, disable_tqdm=False):
            return [self.told[request.doc_id] for request in requests]

        def loglikelihood(self, requests, disable_tqdm=False):
            raise NotImplementedError

        loglikelihood_rolling = loglikelihood

    run(folder_of_tasks, lambda name: Scripted(given[name]), out, only=given)


def run(folder_of_tasks: str, model_of, out: str, only=None) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    with open(os.path.join(folder_of_tasks, "tasks.json")) as file:
        asked = json.load(file)
    manager = TaskManager(include_path=folder_of_tasks, include_defaults=False)
    found = {}
    for name, settings in asked.items():
        if only is not None and name not in only:
            continue
        result = lm_eval.simple_evaluate(
            model=model_of(name),
            tasks=[os.path.join(folder_of_tasks, f"{name}.yaml")],
            task_manager=manager,
            log_samples=True,
            bootstrap_iters=0,
            **settings,
        )
        # A document is there once for each filter of its answer.
        by_document = {sample["doc_id"]: sample for sample in reversed(result["samples"][name])}
        samples = [by_document[number] for number in sorted(by_document)]
        found[name] = {
            "metrics": {k: v for k, v in result["results"][name].items() if "," in k},
            "arguments": [list(sample["arguments"]) for sample in samples],
            "answers": [sample["resps"] for sample in samples],
        }
    with open(out, "w") as file:
        json.dump(found, file, default=str)


if __name__ == "__main__":
    {"speed": speed, "tasks": tasks, "scripted": scripted}[sys.argv[1]](*sys.argv[2:])
