# SPDX-License-Identifier: Apache-2.0
"""A correct function -> systematic wrong ones, each with one change; some are equivalent."""

import ast
import copy
from collections.abc import Callable

_COMPARED: dict[type, type] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_COMPUTED: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
}


def of(source: str, function: str) -> list[tuple[str, str]]:
    """(what was changed, whole source) for each change inside `function`, which comes first of all
    replaced by one that returns None."""
    tree = ast.parse(source)
    place = max(
        i
        for i, node in enumerate(tree.body)
        if isinstance(node, ast.FunctionDef) and node.name == function
    )
    found = {ast.unparse(_changed(tree, place, 0, _returns_nothing)): "returns None"}
    for index, node in enumerate(ast.walk(tree.body[place])):
        for name, change in _changes(node):
            found.setdefault(ast.unparse(_changed(tree, place, index, change)), name)
    found.pop(ast.unparse(tree), None)
    return [(name, text) for text, name in found.items()]


def _changed(tree: ast.Module, place: int, index: int, change: Callable) -> ast.Module:
    copied = copy.deepcopy(tree)
    change(list(ast.walk(copied.body[place]))[index])
    return ast.fix_missing_locations(copied)


def _returns_nothing(node: ast.FunctionDef) -> None:
    node.body = [ast.Return(ast.Constant(None))]


def _negate(node) -> None:
    node.test = ast.UnaryOp(ast.Not(), node.test)


def _compare(node: ast.Compare) -> None:
    node.ops[0] = _COMPARED[type(node.ops[0])]()


def _compute(node: ast.BinOp) -> None:
    node.op = _COMPUTED[type(node.op)]()


def _add_one(node: ast.Constant) -> None:
    node.value += 1


def _flip(node: ast.Constant) -> None:
    node.value = not node.value


def _other_connective(node: ast.BoolOp) -> None:
    node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()


def _forget(node: ast.Return) -> None:
    node.value = ast.Constant(None)


def _changes(node: ast.AST) -> list[tuple[str, Callable]]:
    if isinstance(node, (ast.If, ast.While, ast.IfExp)):
        return [("condition negated", _negate)]
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARED:
        return [("comparison", _compare)]
    if isinstance(node, ast.BinOp) and type(node.op) in _COMPUTED:
        return [("operator", _compute)]
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return [("off by one", _add_one)]
    if isinstance(node, ast.Constant) and type(node.value) is bool:
        return [("truth value", _flip)]
    if isinstance(node, ast.BoolOp):
        return [("and, or", _other_connective)]
    if isinstance(node, ast.Return) and node.value is not None:
        return [("return None", _forget)]
    return []
