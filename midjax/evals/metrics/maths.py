# SPDX-License-Identifier: Apache-2.0
"""Whether two answers to a problem of MATH are the same number, expression or set: math-verify."""

import importlib.util
import threading

_PACKAGE = "math_verify"
_SECONDS = 5


def require() -> None:
    """
    Raises:
      ValueError: math-verify is not installed.
    """
    if importlib.util.find_spec(_PACKAGE) is None:
        raise ValueError(
            "The metric math_equal compares answers with math-verify, which is not installed: "
            "pip install 'midjax[maths]'."
        )


def equal(predicted: str, gold: str) -> bool:
    """Whether what a model wrote states the gold answer.

    Args:
      predicted: a completion or an answer cut out of one; LaTeX in $ or \\boxed{}, or a number.
      gold: the answer, with or without $.

    Raises:
      ValueError: math-verify is not installed.
    """
    require()
    import math_verify

    if not predicted.strip():
        return False
    # Its timeouts, against expressions without end, are alarms, which only the main thread may set.
    alarm = threading.current_thread() is threading.main_thread()
    seconds = _SECONDS if alarm else None
    options = {"parsing_timeout": seconds}
    truth = math_verify.parse(gold if "$" in gold or "\\boxed" in gold else f"${gold}$", **options)
    told = math_verify.parse(predicted, **options) or math_verify.parse(f"${predicted}$", **options)
    return bool(math_verify.verify(truth, told, timeout_seconds=seconds))
