# SPDX-License-Identifier: Apache-2.0
"""What a model wrote in a code task or as function calls -> right or wrong.

[(instance, completion), ...] --code.programs--> programs --sandbox--> passed or not
                              --calls.match-->   the calls of the gold answer or not
"""

import functools
from collections.abc import Callable, Sequence

from midjax.evals import render
from midjax.evals import task as tasks
from midjax.evals.calls import match
from midjax.evals.code import programs
from midjax.evals.sandbox import run as sandboxes
from midjax.evals.sandbox.program import Program

Judge = Callable[[Sequence[tuple[render.Instance, str]]], list[bool]]
_FORMS: dict[str, Callable[..., Program]] = {
    "humaneval": programs.humaneval,
    "humaneval_whole": programs.humaneval_whole,
    "infilling": programs.infilling,
    "humaneval_fix": programs.humaneval_fix,
    "mbpp": programs.mbpp,
    "cruxeval_output": programs.cruxeval_output,
    "cruxeval_input": programs.cruxeval_input,
}


def of(
    task: tasks.Task,
    sandbox: sandboxes.Sandbox | None = None,
    told: list[str] | None = None,
) -> Judge | None:
    """The judge of a task, for `scoring.score`; None of a task that needs none.

    Args:
      task: any.
      sandbox: for code, an opened one: `sandbox.selftest.open`, which refuses where none holds.
      told: gets a text per completion: "passed", or what was wrong: of a program its status
        ("failed", "timeout", ...), of function calls the first difference.

    Raises:
      ValueError: a code task, and no sandbox.
    """
    told = [] if told is None else told
    if task.kind == "calls":
        return functools.partial(_calls, told)
    if task.kind != "code" or task.code is None:
        return None
    if sandbox is None:
        raise ValueError(f"{task.name} runs what a model wrote, so it needs a sandbox: open one.")
    form, box = _FORMS[task.code.form], sandbox

    def judge(pairs: Sequence[tuple[render.Instance, str]]) -> list[bool]:
        asked = [form(instance.fields, completion) for instance, completion in pairs]
        verdicts = box.run(asked)
        told.extend(verdict.status for verdict in verdicts)
        return [verdict.passed for verdict in verdicts]

    return judge


def _calls(told: list[str], pairs: Sequence[tuple[render.Instance, str]]) -> list[bool]:
    # No gold calls: none of the functions helps, and calling one is wrong.
    wrong = [
        match.judge(text, instance.fields["function"], instance.gold or None)
        for instance, text in pairs
    ]
    told.extend(one or "passed" for one in wrong)
    return [not one for one in wrong]
