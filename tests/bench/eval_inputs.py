# SPDX-License-Identifier: Apache-2.0
"""What eval_requests.py and eval_parity.py ask, and whom: a Hugging Face folder and a data folder.

Questions are real ones where `--data` names a folder with `olmes_docs`, `mmlu`, `gsm8k` and `bbh`;
otherwise they are made of the demo's prose, in the same form and of like length.
"""

import gzip
import json
import pathlib
import random
import shutil
from collections.abc import Iterator
from typing import Any

LETTERS = "ABCD"
SUBJECTS = ("anatomy", "astronomy", "virology", "world_religions")
# Of the public validation set's subjects two with enough questions by themselves.
LARGE_SUBJECTS = ("miscellaneous", "professional_psychology")
BBH = ("boolean_expressions", "date_understanding")


def lines(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        for line in file:
            yield json.loads(line)


def write(path: pathlib.Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def data_folder(folder: pathlib.Path, given: str | None, documents: int) -> pathlib.Path:
    """Writes the data sets in their public form, `documents` of each (and of each subject)."""
    shutil.rmtree(folder, ignore_errors=True)
    made = _given(pathlib.Path(given), documents) if given else _made(documents)
    for name, records in made.items():
        write(folder / f"{name}.jsonl", records)
    if given:
        _bbh(pathlib.Path(given) / "bbh", folder / "bbh", documents)
    return folder


def _bbh(theirs: pathlib.Path, folder: pathlib.Path, documents: int) -> None:
    """The authors' files with fewer questions, for midjax; and the questions alone, for lm_eval."""
    for subset in BBH:
        whole = json.loads((theirs / "bbh" / f"{subset}.json").read_text())
        examples = whole["examples"][:documents]
        (folder / "bbh").mkdir(parents=True, exist_ok=True)
        (folder / "bbh" / f"{subset}.json").write_text(json.dumps(whole | {"examples": examples}))
        write(folder / subset / "test.jsonl", examples)
    shutil.copytree(theirs / "cot-prompts", folder / "cot-prompts")


def _given(data: pathlib.Path, documents: int) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    arc = list(lines(data / "olmes_docs" / "arc_easy.val.jsonl.gz"))[:documents]
    found["ai2_arc/ARC-Easy/test"] = [
        _arc(
            one["id"],
            one["query"].removeprefix("Question: ").removesuffix("\nAnswer:"),
            one["choices"],
            one["gold"],
        )
        for one in arc
    ]
    boolq = list(lines(data / "olmes_docs" / "boolq.val.jsonl.gz"))[:documents]
    found["super_glue/boolq/validation"] = [
        {
            "passage": one["query"].partition("\nQuestion: ")[0],
            "question": one["query"].partition("\nQuestion: ")[2].removesuffix("?\nAnswer:"),
            "label": 1 - one["gold"],
        }
        for one in boolq
    ]
    for ours, theirs in (("test", "validation"), ("dev", "dev")):
        every = list(lines(data / "mmlu" / f"{theirs}.jsonl.gz"))
        for subject in SUBJECTS + LARGE_SUBJECTS:
            found[f"mmlu/{subject}/{ours}"] = [r for r in every if r["subject"] == subject][
                :documents
            ]
    problems = list(lines(data / "gsm8k" / "train.jsonl"))
    found["gsm8k/main/test"], found["gsm8k/main/train"] = problems[:documents], problems[-200:]
    return found


def _arc(name: str, question: str, choices: list[str], gold: int) -> dict[str, Any]:
    labels = [chr(ord("A") + i) for i in range(len(choices))]
    return {
        "id": name,
        "question": question,
        "choices": {"text": choices, "label": labels},
        "answerKey": labels[gold],
    }


def _made(documents: int) -> dict[str, list[dict[str, Any]]]:
    from midjax import demo_data

    prose = " ".join(
        one["text"] for one in lines(pathlib.Path(demo_data.path("prose.heldout.jsonl.gz")))
    )
    rng, words = random.Random(0), prose.split()

    def text(least: int, most: int) -> str:
        begin = rng.randrange(len(words) - most)
        return " ".join(words[begin : begin + rng.randint(least, most)])

    def choice(subject: str) -> dict[str, Any]:
        return {
            "question": f"{text(5, 40)}?",
            "subject": subject,
            "choices": [text(1, 10) for _ in LETTERS],
            "answer": rng.randrange(4),
        }

    found = {
        "ai2_arc/ARC-Easy/test": [
            _arc(str(i), f"{text(8, 30)}?", [text(1, 7) for _ in LETTERS], rng.randrange(4))
            for i in range(documents)
        ],
        "super_glue/boolq/validation": [
            {"passage": text(60, 150), "question": text(6, 11), "label": rng.randrange(2)}
            for _ in range(documents)
        ],
    }
    for subject in SUBJECTS + LARGE_SUBJECTS:
        found[f"mmlu/{subject}/dev"] = [choice(subject) for _ in range(5)]
        found[f"mmlu/{subject}/test"] = [choice(subject) for _ in range(documents)]
    return found


def random_llama(folder: pathlib.Path) -> pathlib.Path:
    """A Llama of 26M parameters with random weights, 32,000 tokens of which the demo's tokenizer
    uses 2,048, and a context of 2,048."""
    import jax

    from midjax import demo_data
    from midjax.model import architecture, hf, rope, transformer

    config = architecture.TransformerConfig(
        vocab_size=32_000, dim=384, layers=8, heads=6, kv_heads=2, head_dim=64, ffn_dim=1024,
        norm_eps=1e-5, tied_head=True, context_tokens=2048,
        rope=rope.Rope(theta=10_000.0, scaling=rope.RopeScaling(kind="none")),
        initializer_std=0.05, param_dtype="float32", compute_dtype="float32", remat="none",
        loss_chunk_tokens=256,
    )  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(demo_data.path("tokenizer"), folder)
    params = jax.jit(lambda key: transformer.init(config, key))(jax.random.key(0))
    hf.save(str(folder), config, params, "float32", ids={"bos_token_id": 0, "eos_token_id": 1})
    return folder


def stories(folder: pathlib.Path) -> pathlib.Path:
    """Karpathy's stories260K as a Hugging Face folder: trained weights, and a context of 512 that
    few-shot prompts exceed."""
    import jax

    from midjax import demo_data
    from midjax.importing import llama2c
    from midjax.model import hf

    here = pathlib.Path(demo_data.__file__).parent / "stories260K"
    files = {"path": str(here / "stories260K.bin"), "tokenizer": str(here / "tok512.bin")}
    opened = llama2c.Llama2c(**files).open(None)
    assert opened.read is not None
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params: dict[str, Any] = {"layers": {}}
    for name, take in opened.params.items():
        theirs = opened.read(dict.fromkeys(take.theirs, one))
        within = params["layers"] if name.startswith("layers/") else params
        within[name.removeprefix("layers/")] = take.change(*(theirs[n] for n in take.theirs))
    shutil.rmtree(folder, ignore_errors=True)
    hf.save(str(folder), opened.model, params, "float32", ids={"bos_token_id": 1})
    for file, content in (opened.tokenizer or {}).items():
        (folder / file).write_bytes(content)
    return folder
