# SPDX-License-Identifier: Apache-2.0
"""What a model wrote -> the code in it, as the published harnesses cut it."""

import ast
import re
from collections.abc import Iterable

# Codex (2107.03374, section 3.1): a completion of a function ends where the next statement of the
# module begins. The harnesses of lm-eval and BigCode take the same, and the latter fences and "@".
FUNCTION_STOPS = ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```")
# BigCode's for MBPP, whose answers are whole programs, and the end mark of Austin et al.'s prompt.
PROGRAM_STOPS = ("[DONE]", "\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n<|/", "\n```")
_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+.-]*)[ \t]*\n(.*?)(?:^[ \t]*```|\Z)", re.M | re.S)
_PYTHON = {"", "py", "python", "python3"}


def cut(text: str, stops: Iterable[str]) -> str:
    """`text` up to the first of the stop strings."""
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def fenced(text: str) -> str | None:
    """The first block in ``` that is Python or says nothing; an open last block counts."""
    for match in _FENCE.finditer(text):
        if match[1].lower() in _PYTHON:
            return match[2]
    return None


def whole(text: str, entry_point: str = "") -> str:
    """The code of an answer in prose: its fenced block, else the lines that are Python.

    Without a fence the text is cut before the first and after the last line of code: from the
    first import, decorator, class or def, as far as it parses; the function `entry_point` must be
    in it if it is given, else `text` comes back as it is, and its error is the verdict.
    """
    block = fenced(text)
    if block is not None:
        return block
    lines = text.splitlines()
    starts = ("import ", "from ", "def ", "class ", "async def ", "@")
    first = next((i for i, line in enumerate(lines) if line.startswith(starts)), None)
    if first is None:
        return text
    for last in range(len(lines), first, -1):
        code = "\n".join(lines[first:last])
        try:
            tree = ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        if not entry_point or entry_point in defined(tree):
            return code + "\n"
        break
    return text


def defined(tree: ast.Module) -> set[str]:
    """Names that the module's own statements bind by def or class."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in tree.body if isinstance(node, kinds)}


def before(prompt: str, entry_point: str) -> str:
    """What a prompt holds above `def entry_point`: its imports and helpers; empty without one."""
    match = re.search(rf"^(async )?def {re.escape(entry_point)}\b", prompt, re.M)
    return prompt[: match.start()] if match else ""
