# SPDX-License-Identifier: Apache-2.0
"""A document of a public code task and the model's code -> the program to judge.

Each function takes the fields of its data set as they are published, and a completion that has been
cut (`extract`). What the tests use of the solution is listed by name; their helpers come from the
data set, never from the model.
"""

import ast
import builtins
import copy
from collections.abc import Mapping
from typing import Any

from midjax.evals.code import extract
from midjax.evals.sandbox import program


def humaneval(document: Mapping[str, Any], completion: str) -> program.Program:
    """HumanEval: `prompt` continued by `completion`, then `test`, then `check(entry_point)`."""
    return _checked(document, document["prompt"] + completion)


def humaneval_whole(document: Mapping[str, Any], code: str) -> program.Program:
    """HumanEval answered by a whole function, as chat models do: the prompt's imports, then it."""
    return _checked(document, extract.before(document["prompt"], document["entry_point"]) + code)


def infilling(document: Mapping[str, Any], completion: str) -> program.Program:
    """HumanEval Infilling: `prompt`, the middle by the model, `suffix`; HumanEval's tests."""
    return _checked(document, document["prompt"] + completion + document["suffix"])


def humaneval_fix(document: Mapping[str, Any], code: str) -> program.Program:
    """HumanEvalFix: `code` is the repaired function, `declaration` and all or its body alone.

    The model is shown `declaration + buggy_solution`; BigCode's harness takes what follows the
    repeated declaration. A body is therefore continued from `declaration`.
    """
    entry = document["entry_point"]
    declaration = document["declaration"]
    if f"def {entry}" not in code:
        code = declaration + code
    above = extract.before(declaration, entry)
    helpers = "\n".join(filter(None, (document.get("import", ""), above)))
    setup = document.get("test_setup", "")
    # HumanEvalPack's Python tests call check themselves.
    return program.Program(
        id=str(document["task_id"]),
        solution=f"{helpers}\n{code}",
        preamble="\n".join(filter(None, (helpers, setup))),
        tests=_called(document["test"], entry),
        names=(entry,),
    )


def mbpp(document: Mapping[str, Any], code: str, *, challenge: bool = False) -> program.Program:
    """MBPP: `code`, then the setup, then every assertion of `test_list`.

    Takes the full set's `test_setup_code` and the sanitized set's `test_imports`.

    Args:
      challenge: the assertions of `challenge_test_list` too.
    """
    tests = list(document["test_list"])
    if challenge:
        tests += document.get("challenge_test_list", [])
    setup = [*document.get("test_imports", []), document.get("test_setup_code", "")]
    source = "\n".join(_unix(line) for line in [*setup, *tests] if line)
    reference = _parsed(_unix(document.get("code", "")))
    names = _needed(source, reference)
    return program.Program(
        id=str(document["task_id"]),
        solution=_unix(code),
        tests="\n".join([*_imported(reference, names), source]),
        names=names,
    )


def cruxeval_output(document: Mapping[str, Any], completion: str) -> program.Program:
    """CRUXEval-O: the value of `f(input)`, as a literal or an expression; it must be equal.

    Like the published harness, an answer that calls `f` on the input is wrong: here any that names
    `f` is. An answer `assert f(...) == value` counts by its value.
    """
    answer = _expression(completion)
    if answer is None or _names(answer, "f"):
        return _refused(document, "not one expression, or it names f")
    return program.Program(
        id=str(document["id"]),
        solution=f"{_unix(document['code'])}\nanswer = ({ast.unparse(answer)}\n)",
        tests=f"{_unix(document['code'])}\nassert f({document['input']}) == answer",
        names=("answer",),
    )


def cruxeval_input(document: Mapping[str, Any], completion: str) -> program.Program:
    """CRUXEval-I: arguments, `f(...)`, for which the output is the given one.

    The function itself is run by the tests, on the arguments that the model's expression gives.
    """
    answer = _expression(completion, left=True)
    if not (
        isinstance(answer, ast.Call) and isinstance(answer.func, ast.Name) and answer.func.id == "f"
    ):
        return _refused(document, "not a call of f")
    given = ast.unparse(ast.Call(ast.Name("given"), answer.args, answer.keywords))
    code = _unix(document["code"])
    return program.Program(
        id=str(document["id"]),
        solution=f"{code}\ndef given(*args, **kwargs):\n    return args, kwargs\nanswer = {given}",
        tests=f"{code}\nargs, kwargs = answer\nassert f(*args, **kwargs) == {document['output']}",
        names=("answer",),
    )


def _checked(document: Mapping[str, Any], solution: str) -> program.Program:
    """The form of HumanEval's tests: a function `check` that is given the entry point."""
    entry = document["entry_point"]
    return program.Program(
        id=str(document["task_id"]),
        solution=solution,
        preamble=extract.before(document["prompt"], entry),
        tests=_called(document["test"], entry),
        names=(entry,),
    )


def _called(test: str, entry: str) -> str:
    call = f"check({entry})"
    return test if f"\n{call}" in test else f"{test}\n{call}\n"


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n")


def _parsed(code: str) -> ast.Module:
    try:
        return ast.parse(code)
    except SyntaxError:
        return ast.Module([], [])


def _needed(tests: str, reference: ast.Module) -> tuple[str, ...]:
    """The names that tests take from the solution: what they load and neither bind nor get from
    Python, and what the reference solution defines, even over a builtin (`def sum`)."""
    loaded: set[str] = set()
    bound: set[str] = set()
    for node in ast.walk(ast.parse(tests)):
        if isinstance(node, ast.Name):
            (loaded if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            bound |= {_bound(alias) for alias in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
    known = extract.defined(reference)
    own = {name for name in loaded - bound if name in known or not hasattr(builtins, name)}
    return tuple(sorted(own))


def _imported(reference: ast.Module, names: tuple[str, ...]) -> list[str]:
    """Statements that take `names` which the reference imports from Python, not from the solution.

    Some tests of MBPP use `math` and leave its import to the solution. It must be there, as in the
    published harness, which the bare name checks; but what it is, a solution does not decide.
    """
    lines = []
    for node in reference.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                if _bound(alias) in names:
                    one = copy.copy(node)
                    one.names = [alias]
                    lines += [_bound(alias), ast.unparse(one)]
    return lines


def _bound(alias: ast.alias) -> str:
    return (alias.asname or alias.name).partition(".")[0]


def _expression(completion: str, *, left: bool = False) -> ast.expr | None:
    """The answer as one expression; of `assert a == b`, `a` if `left`, else `b`."""
    text = extract.fenced(completion)
    text = (completion if text is None else text).strip()
    try:
        [statement] = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if isinstance(statement, ast.Expr):
        return statement.value
    if isinstance(statement, ast.Assert) and isinstance(statement.test, ast.Compare):
        compare = statement.test
        if len(compare.ops) == 1 and isinstance(compare.ops[0], ast.Eq):
            return compare.left if left else compare.comparators[0]
    return None


def _names(tree: ast.AST, name: str) -> bool:
    return any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(tree))


def _refused(document: Mapping[str, Any], reason: str) -> program.Program:
    """A wrong answer that needs no run, in the form of the others so that counts stay simple."""
    return program.Program(
        id=str(document["id"]),
        solution="",
        tests=f"assert False, {('the answer is ' + reason)!r}",
        names=(),
    )
