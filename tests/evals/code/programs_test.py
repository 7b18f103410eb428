# SPDX-License-Identifier: Apache-2.0
"""Canonical solutions pass, wrong ones do not: HumanEval's, and documents in the others' form."""

import gzip
import json
import pathlib

import mutants
import pytest
import sandboxes

from midjax.evals.code import programs
from midjax.evals.sandbox import program

DATA = pathlib.Path(__file__).parents[2] / "data/humaneval/HumanEval.jsonl.gz"


def humaneval() -> list[dict]:
    with gzip.open(DATA, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def passes(items: list[program.Program]) -> list[bool]:
    return [verdict.passed for verdict in sandboxes.opened().run(items)]


def test_all_canonical_solutions_of_humaneval_pass():
    documents = humaneval()
    items = [programs.humaneval(d, d["canonical_solution"]) for d in documents]
    verdicts = sandboxes.opened().run(items)
    failed = [(item.id, v) for item, v in zip(items, verdicts, strict=True) if not v.passed]
    assert len(items) == 164 and not failed


def test_mutants_of_canonical_solutions_fail():
    """Every 20th problem: of a hand's count of the whole set, 1683 of 1863 mutants fail, and each
    problem has some; the 180 others pass the tests in one plain process too."""
    items = []
    for document in humaneval()[::20]:
        source = document["prompt"] + document["canonical_solution"]
        for change, text in mutants.of(source, document["entry_point"])[:4]:
            made = programs.humaneval(document, "")
            items.append((change, program.Program(**{**vars(made), "solution": text})))
    passed = passes([item for _, item in items])
    killed = {item.id for (_, item), survives in zip(items, passed, strict=True) if not survives}
    assert len(killed) == 9
    empty = [ok for (change, _), ok in zip(items, passed, strict=True) if change == "returns None"]
    assert len(empty) == 9 and not any(empty)
    assert sum(passed) <= len(items) // 5


HEAD = 'import math\n\ndef twice(x):\n    return 2 * x\n\n\ndef f(x):\n    """Quadruple."""\n'
TEST = "def check(candidate):\n    assert candidate(2) == twice(4)\n"
DOCUMENT = {"task_id": "T/0", "prompt": HEAD, "entry_point": "f", "test": TEST}


def test_a_whole_function_gets_the_prompts_imports():
    right = "def f(x):\n    return math.floor(twice(twice(x)))\n"
    wrong = (
        "def twice(x):\n    return 0\ndef f(x):\n    return 0\n"  # the tests' twice is their own
    )
    items = [programs.humaneval_whole(DOCUMENT, code) for code in (right, wrong)]
    assert passes(items) == [True, False]


def test_infilling_stands_between_prefix_and_suffix():
    document = {**DOCUMENT, "prompt": HEAD + "    y = twice(x)\n", "suffix": "    return z\n"}
    items = [
        programs.infilling(document, middle)
        for middle in ("    z = twice(y)\n", "    z = y\n", "    z = (\n")
    ]
    assert passes(items) == [True, False, False]


def test_a_fix_is_a_body_or_a_whole_function():
    document = {
        "task_id": "Python/0",
        "declaration": "from typing import List\n\n\ndef f(xs: List[int]) -> int:\n",
        "import": "",
        "test_setup": "",
        "buggy_solution": "    return sum(xs) + 1\n",
        "entry_point": "f",
        "test": "def check(g):\n    assert g([1, 2]) == 3\n\ncheck(f)",
    }
    body = "    return sum(xs)\n"
    items = [
        programs.humaneval_fix(document, code)
        for code in (body, document["declaration"] + body, document["buggy_solution"])
    ]
    assert passes(items) == [True, True, False]
    assert items[0].tests.count("check(f)") == 1


MBPP = {
    "task_id": 126,
    "code": "import math\r\ndef sum(a,b):\r\n    return a + b",
    "test_list": ["assert sum(10,15) == 25", "assert math.isclose(sum(.1,.2), .3)"],
    "test_setup_code": "",
    "challenge_test_list": ["assert sum(-1,1) == 0"],
}


def test_mbpp_takes_names_from_the_solution_even_builtin_ones():
    assert programs.mbpp(MBPP, "").names == ("math", "sum")
    assert "sum(-1,1)" in programs.mbpp(MBPP, "", challenge=True).tests
    hostile = "class math:\n    isclose = lambda *_: True\ndef sum(a, b):\n    return 25"
    codes = (MBPP["code"], "def sum(a, b):\n    return a - b", hostile)
    assert passes([programs.mbpp(MBPP, code) for code in codes]) == [True, False, False]
    [verdict] = sandboxes.opened().run([programs.mbpp(MBPP, "def sum(a, b):\n    return a + b")])
    assert verdict.reason == "the solution defines no math"  # as in the published harness


def test_mbpp_sanitized_brings_its_imports():
    document = {
        "task_id": 2,
        "code": "def g(a):\n    return set(a)",
        "test_imports": ["import math"],
        "test_list": ["assert set(g((3, 4))) == {int(math.sqrt(n * n)) for n in (3, 4)}"],
    }
    item = programs.mbpp(document, document["code"])
    assert item.names == ("g",) and passes([item]) == [True]


CRUX = {
    "id": "sample_0",
    "code": "def f(text, n=1):\n    return [c * n for c in text]",
    "input": "'ab', n=2",
    "output": "['aa', 'bb']",
}


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("['aa', 'bb']", True),
        ("assert f('ab', n=2) == ['aa', 'bb']", True),
        ("```python\n['a' * 2, 'bb']\n```", True),
        ("['aa']", False),
        ("f('ab', n=2)", False),
        ("[x for x in f('ab', 2)]", False),
        ("(lambda: 1/0)()", False),
        ("['aa', 'bb'", False),
        ("x = 1", False),
    ],
)
def test_output_prediction(answer, right):
    assert passes([programs.cruxeval_output(CRUX, answer)]) == [right]


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("f('ab', n=2)", True),
        ("f(['a', 'b'], 2)", True),
        ("assert f('ab', 2) == ['aa', 'bb']", True),
        ("f(f('ab', 1), 2)", True),
        ("f(['aa', 'bb'])", True),
        ("f('ab')", False),
        ("'ab', 2", False),
        ("(f := lambda *_: ['aa', 'bb'])(1)", False),
        ("g('ab', 2)", False),
    ],
)
def test_input_prediction(answer, right):
    assert passes([programs.cruxeval_input(CRUX, answer)]) == [right]
